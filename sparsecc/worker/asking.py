"""What a task asks of the process that started it: samples and functions that a Python call holds in memory.

Questions and replies are plain data on the pipes of the worker; arrays travel as files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsecc.errors import InputError

Question = dict[str, Any]
Reply = dict[str, Any]
Exchange = Callable[[Reply], Question]
"""Sends a reply and waits for the next question: how a function of the user's has the worker run a model."""
Answer = Callable[[Question, Exchange], Reply]

_parent: list[Callable[[Question], Reply]] = []


def listen(ask: Callable[[Question], Reply]) -> None:
    """From here on questions of this process go to its parent, by `ask`."""
    _parent[:] = [ask]


def ask(question: Question) -> Reply:
    """The parent's reply. InputError where this process is no worker."""
    if not _parent:
        raise InputError("samples and functions in memory belong to a call in Python: give a file instead")
    return _parent[0](question)


def nothing_held(question: Question, exchange: Exchange) -> Reply:
    """The answer of a parent that holds nothing in memory."""
    raise InputError("memory: names what a call in Python holds: give a file instead")
