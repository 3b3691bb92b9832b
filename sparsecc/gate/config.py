"""The gate's file for many models: a YAML list of {name, current, baseline, max_regression, ...}."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError
from sparsecc.options import reading
from sparsecc.system.plain_yaml import read_yaml

CHECKS = ("kernels", "macs", "size", "channels")
"""What a gate looks at before any clock runs."""
DEEPEST = 3
"""The deepest that is written: entries, one of them, its checks."""
_REQUIRED = ("name", "current", "baseline", "max_regression")


@dataclass(frozen=True)
class GateEntry:
    """One model to gate; paths are relative to the file."""

    name: str
    current: Path
    baseline: Path
    max_regression: float
    threads: int = 1
    checks: tuple[str, ...] = CHECKS


def read_gate_config(file: Path) -> list[GateEntry]:
    """The entries of the file. InputError names the entry and the fault."""
    data = read_yaml(file, "gate's file", deepest=DEEPEST, how="see the gate's example")
    if not isinstance(data, list) or not data:
        raise InputError(f"{file}: must be a list of models, each with {', '.join(_REQUIRED)}")
    entries = [_entry(f"{file}: entry {number}", item, file.parent) for number, item in enumerate(data, 1)]
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{file}: two models are called '{twice}': give each its own name")
    return entries


def _entry(where: str, item: object, folder: Path) -> GateEntry:
    if not isinstance(item, dict):
        raise InputError(f"{where}: must be a mapping with {', '.join(_REQUIRED)}")
    known = [field.name for field in fields(GateEntry)]
    for key in item:
        if key not in known:
            raise InputError(f"{where}: unknown key '{key}': keys are {', '.join(known)}")
    for key in _REQUIRED:
        if key not in item:
            raise InputError(f"{where}: '{key}' is missing: each model needs {', '.join(_REQUIRED)}")
    threads, checks = item.get("threads", 1), item.get("checks", list(CHECKS))
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise InputError(f"{where}: threads must be a whole number from 1, not {threads!r}")
    if not isinstance(checks, list) or not set(map(str, checks)) <= set(CHECKS):
        raise InputError(f"{where}: checks must be a list out of {', '.join(CHECKS)}")
    paths = [folder / str(item[key]) for key in ("current", "baseline")]
    limit = read_share(where, item["max_regression"])
    return GateEntry(str(item["name"]), paths[0], paths[1], limit, threads, tuple(map(str, checks)))


def read_share(where: str, value: Any) -> float:
    """A share written as 0.05 or "5%", as the command line reads it."""
    try:
        share = reading.share(str(value).strip())
    except ValueError as e:
        raise InputError(f"{where}: max_regression: {e}") from e
    if not share:
        raise InputError(f"{where}: max_regression 0 is less than any machine can tell: write 5% or 0.05")
    return share
