"""Where the samples and the metric of a call come from, as a key: what came from elsewhere was another question."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsecc.data.named import MEMORY
from sparsecc.options import CompileOptions, rows_of

MOST = 100_000
"""Files of a folder that are looked at."""


def origin(options: Mapping[str, Any]) -> str:
    """A hash of the files that options name: their names, sizes and times, in folders all the way down. What is in
    memory is another one in every call."""
    digest = hashlib.sha256()
    for row in rows_of(CompileOptions).values():
        for text in texts_of(options.get(row.name)) if row.names_code else ():
            if text.startswith(MEMORY):
                digest.update(os.urandom(16))
                continue
            path = Path(text)
            path = path if path.exists() else Path(text.removeprefix("py:").rpartition(":")[0])
            for file in sorted(_files(path)) if text else ():
                facts = file.stat()
                fact = row.name, os.path.relpath(file, path.parent), facts.st_size, facts.st_mtime_ns
                digest.update(repr(fact).encode())
    return digest.hexdigest()


def texts_of(value: Any) -> list[str]:
    """What an option was given: nothing, one text, or each of several."""
    several = value if isinstance(value, list | tuple) else () if value is None else (value,)
    return [str(one) for one in several]


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield from [path] if path.is_file() else []
        return
    seen = 0
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names if Path(folder, name).is_file())
        seen += len(names)
        if seen > MOST:
            return
