"""JSON files, from whoever wrote them: objects of bounded size in plain files."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError
from sparsecc.escaping import one_line

LARGEST = 256 << 20
"""Bytes that such a file may have."""
READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def read_json(path: Path, remedy: str, *, links: bool = True) -> dict[str, Any]:
    """The JSON object of a file; without `links`, of one that is no link. InputError, which ends in `remedy`, where it
    is missing, no plain file, too large or none."""
    shown, flags = one_line(str(path), 120), READ_FLAGS if links else READ_FLAGS | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{shown} is not a plain file: {remedy}")
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise InputError(f"{shown} is over {LARGEST >> 20} MiB: {remedy}")
        data = json.loads(text)
    except OSError as e:
        raise InputError(f"cannot read {shown}: {one_line(e.strerror or str(e))}") from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"{shown} is not JSON: {one_line(str(e), 120)}; {remedy}") from e
    if not isinstance(data, dict):
        raise InputError(f"{shown} holds no JSON object: {remedy}")
    return data
