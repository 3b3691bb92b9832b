"""Functions of the user's own (`FILE.py:FUNCTION`): loaded as they are, their errors told by file and line."""

from __future__ import annotations

import ast
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError
from sparsecc.escaping import one_line

_PREFIX = "sparsecc_user_"
"""Of the names of the modules that such files become."""
MOST = 8
"""Functions of a file that are named."""
_OURS = Path(__file__).resolve().parents[1]


def file_and_function(spec: str, flag: str) -> tuple[Path, str]:
    """What FILE.py:FUNCTION names. InputError where it names no function, or there is no such file; nothing runs."""
    file, _, name = spec.removeprefix("py:").rpartition(":")
    if not file:
        file, name = name, ""
    path, where = Path(file), f"{flag} {spec}"
    if not path.is_file():
        raise InputError(f"{where}: no file '{file}': write path/to/file.py:function")
    if not name:
        raise InputError(f"{where} names no function: {_what_it_has(path)}: write {path}:FUNCTION")
    return path, name


def function_in(file: Path, name: str, flag: str) -> Callable[..., Any]:
    """The function of that name in a Python file, which runs for it. InputError where there is none; `flag` is where
    the user named it."""
    where = f"{flag} {file}:{name}"
    if not file.is_file():
        raise InputError(f"{where}: no file '{file}': write path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"{_PREFIX}{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{where}: {file} is no Python: write path/to/file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as e:
        raise InputError(
            f"{file.name}:{e.lineno} cannot be imported: SyntaxError: {e.msg}: correct it"
        ) from e
    found = getattr(module, name, None)
    if not callable(found):
        what = f"has no function '{name}'" if found is None else f"has '{name}', which is no function"
        raise InputError(f"{where}: {file.name} {what}: {_what_it_has(file)}")
    function: Callable[..., Any] = found
    return function


def _what_it_has(file: Path) -> str:
    """The functions that a Python file defines, unless it is none; without running it."""
    try:
        nodes = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError, OSError):
        return f"{file.name} is no Python"
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    listed = f"{', '.join(names[:MOST])}{' and others' if names[MOST:] else ''}"
    return f"{file.name} has {listed}" if names else f"{file.name} defines no function"


def error_of(error: BaseException) -> InputError | None:
    """What to tell where an exception came out of the user's file, or of a library that it called; None where it is
    ours."""
    frames = traceback.extract_tb(error.__traceback__)
    files = _files()
    last = next((i for i in reversed(range(len(frames))) if frames[i].filename in files), None)
    if last is None or any(_is_ours(frame.filename) for frame in frames[last + 1 :]):
        return None
    frame = frames[last]
    where = f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
    return InputError(f"{where}: {type(error).__name__}: {one_line(str(error), 200)}: correct that function")


def _files() -> set[str]:
    return {
        module.__file__
        for name, module in list(sys.modules.items())
        if name.startswith(_PREFIX) and module.__file__ is not None
    }


def _is_ours(filename: str) -> bool:
    return Path(filename).resolve().is_relative_to(_OURS)
