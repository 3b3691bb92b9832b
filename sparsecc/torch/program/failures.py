"""Whose fault it is where something does not run in torch: the user's module, or what was made of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparsecc.errors import InternalError

TORCH_FAILURES = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError,
)  # fmt: skip
"""What torch and a user's forward raise: sizes that do not fit, operators that are missing, export's refusals."""


def reason_of(failure: BaseException) -> str:
    """The first line that a failure says, its kind where it says nothing."""
    told = str(failure).strip()
    return told.splitlines()[0][:200] if told else type(failure).__name__


@contextlib.contextmanager
def made_by_us(name: str) -> Iterator[None]:
    """What fails inside is a fault of ours: torch has exported a module of the class `name`, so it runs."""
    try:
        yield
    except TORCH_FAILURES as e:
        raise InternalError(
            f"{name} runs, what was made of it does not ({type(e).__name__}: {reason_of(e)}): please report it with "
            "the module, or with the program that torch.export makes of it"
        ) from e


def why_it_does_not_run(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What a module's own forward raises on these arguments in eval mode; "" where it runs."""
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    except TORCH_FAILURES as e:
        return f"{type(e).__name__}: {reason_of(e)}"
    return ""
