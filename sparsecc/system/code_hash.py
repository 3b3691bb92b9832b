"""The hash of the code behind a module, for keys of caches: what other code found is not ours."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PACKAGE = __name__.partition(".")[0]
_ROOT = Path(__file__).resolve().parents[2]
_IMPORTS = re.compile(
    rf"^\s*(?:from ({_PACKAGE}[\w.]*) import ([^\n(]+|\([^)]*\))|import ({_PACKAGE}[\w.]*))", re.MULTILINE
)


@cache
def code_hash(module: str) -> bytes:
    """Of a module of ours and of all of ours that it imports, directly or not, wherever these files are."""
    files = sorted(set(source_files(module)))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).digest()


def source_files(module: str) -> Iterator[Path]:
    """The file of a module of ours, and those of all of ours that it imports, in functions too.

    What the package itself holds is not followed: it has everything public, by name, when it is first used.
    """
    waiting, seen = [module], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or (path := _file_of(name)) is None:
            continue
        seen.add(name)
        yield path
        for whole, names, plain in _IMPORTS.findall(path.read_text("utf-8")):
            waiting += [name for name in (whole, plain) if name not in ("", _PACKAGE)]
            waiting += [f"{whole}.{part}" for part in re.findall(r"\w+", names)]


def _file_of(name: str) -> Path | None:
    """The source of a module; None where the name is that of something inside one."""
    path = _ROOT.joinpath(*name.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
