"""What to say about a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from sparsecc.errors import InputError
from sparsecc.text import quoted


def unknown(kind: str, plural: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is none of `known`: it names the closest one, and all."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return InputError(f"unknown {kind} {quoted(name)}: {hint}{plural} are {', '.join(names)}")
