"""YAML files, from whoever wrote them: plain values of bounded size and depth."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError
from sparsecc.escaping import one_line

LARGEST = 1 << 16
"""Bytes that such a file may have."""
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def read_yaml(path: str | Path, what: str, *, deepest: int, how: str) -> Any:
    """The value in a YAML file of the kind `what`, nested `deepest` levels at most.

    InputError, which ends in `how` to write one, for a file that cannot be read, is none, is too large or too deep, or
    uses aliases or tags.
    """
    import yaml  # here, so that --help does not load it

    text = _text(path, what, how)
    try:
        _check_shape(path, what, how, deepest, yaml.parse(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise InputError(f"{path}{line} is not plain YAML: {one_line(problem)}; {how}") from error


def _check_shape(path: str | Path, what: str, how: str, deepest: int, events: Iterable[Any]) -> None:
    """Refuse while parsing: aliases and deep nesting cost far more to load than to write; a tag asks for a conversion
    that its value need not allow."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"{path}: YAML aliases are not allowed in a {what}; {how}")
        if getattr(event, "tag", None) is not None:
            raise InputError(f"{path} is not plain YAML: it has the tag {one_line(event.tag, 60)}; {how}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > deepest:
            raise InputError(f"{path} is nested too deeply for a {what}; {how}")


def _text(path: str | Path, what: str, how: str) -> str:
    try:
        with open(os.open(path, _FLAGS), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{path} is not a plain file, so no {what}; {how}")
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot read the {what} {path}: {why}; {how}") from error
    if len(content) > LARGEST:
        raise InputError(f"{path} is larger than {LARGEST} bytes, too large for a {what}; {how}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text, so no {what}; {how}") from error
