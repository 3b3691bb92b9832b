"""Which options a file may set. A recipe or build.json may come from anyone: it is data, and nothing it names runs.

`MAY_SET` has a row for every option of `compile`, `BUILD_KEYS` the builders' own keys. Functions, devices, plug-ins,
caches and the limits of a worker come from the command line or a Python call alone, and samples from a file only
where they lie beside it: those are left out, with a line that says so.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError, unknown
from sparsecc.escaping import one_line, quoted


def _is_number(value: Any) -> bool:
    """A number, or a text that holds one with its unit: 0.5, 50%, 5ms, 4GiB, auto."""
    text = isinstance(value, str) and re.fullmatch(r"[0-9.]+ ?[A-Za-z%]{0,4}|auto", value) is not None
    return text or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_name(value: Any) -> bool:
    """A word out of a table of ours, or several with commas, a pattern of sparsity, a budget: never a path."""
    return isinstance(value, str) and re.fullmatch(r"[\w.:@+, -]*", value, re.ASCII) is not None


def _is_pattern(value: Any) -> bool:
    """Globs on the names in a model: matched, never opened."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _are_names(value: Any) -> bool:
    return _is_name(value) or (isinstance(value, list) and all(map(_is_name, value)))


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _are_shapes(value: Any) -> bool:
    """What is no shape is refused where shapes are read."""
    return isinstance(value, str | list | dict)


def _are_pairs(value: Any) -> bool:
    """Fields of our passes, `method: gptq` or `method=gptq`: numbers, words and names of nodes."""
    parts = value.values() if isinstance(value, dict) else _listed(value)
    return all(isinstance(part, str | int | float) for part in parts)


Kind = Callable[[Any], bool]
"""Whether a value is of that kind."""

DATA, BUILD, NEVER = "data", "build", "never"
"""Samples beside the file; the builders' keys, see `BUILD_KEYS`; the command line alone."""

MAY_SET: dict[str, Kind | str] = {
    "target": _is_name,
    "ratio": _is_number,
    "metric": _is_name,
    "speedup": _is_number,
    "latency": _is_number,
    "fps": _is_number,
    "max_drop": _is_number,
    "size": _is_number,
    "working_memory": _is_number,
    "calibration": DATA,
    "calibration_general": DATA,
    "calib_memory": _is_number,
    "evaluate": NEVER,
    "inputs": _are_shapes,
    "criterion": _is_name,
    "allocator": _is_name,
    "align": _is_number,
    "keep": _is_pattern,
    "only": _is_pattern,
    "prune": _are_names,
    "prune_io": _is_switch,
    "layer_criterion": _is_name,
    "tokens": _is_number,
    "sparsity": _is_name,
    "quantize": _is_name,
    "recover": _is_name,
    "recover_budget": _is_name,
    "device": NEVER,
    "seed": _is_number,
    "threads": _is_number,
    "measure": _is_switch,
    "emit": _is_name,
    "build": BUILD,
    "quantize_options": _are_pairs,
    "sparsity_options": _are_pairs,
    "deadline": NEVER,
    "memory": NEVER,
}
"""Option -> what a file may give it."""

BUILD_KEYS = frozenset(
    {"level", "ort_format", "platform", "external_above"}
    | {"allow_fallback", "cuda_graph", "tf32", "engine_cache", "context_model", "workspace"}
    | {
        "optimization_level",
        "tactic_sources",
        "profiles",
        "version_compatible",
        "hardware_compatible",
        "refit",
    }
    | {"stripped", "weight_streaming", "sparse_weights", "compute_capabilities", "builder"}
)
"""Keys of `build`, and of build.json, that a file may set: never `plugins`, `timing_cache`, `device`, `emit`."""

SPELLED = {"calibration": "--calib", "calibration_general": "--calib-general", "evaluate": "--eval"} | {
    "memory": "--memory-limit"
}
"""Options whose flag is not their name."""

NEEDED = frozenset({"calibration", "calibration_general", "evaluate"})
"""What a compile without it would be another compile: it must be given again, or nothing is done."""


@dataclass(frozen=True)
class LeftOut:
    """An option of a file that was not taken: why, and how the command line gives it again."""

    option: str
    why: str
    again: str

    def line(self, file: str) -> str:
        return f"{file}: '{self.option}' {self.why}: a file may not; give {self.again} again"


def own_options(given: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[LeftOut]]:
    """(the options that a file in `folder` may set, what was left out of it).

    `given` are those the file holds, by their names in `MAY_SET`. Paths come back with `folder` before them.
    InputError for a name that is none, or a value of another kind.
    """
    taken: dict[str, Any] = {}
    left: list[LeftOut] = []
    for name, value in given.items():
        if name not in MAY_SET:
            raise unknown("option", "options", one_line(str(name), 60), tuple(MAY_SET))
        kind = MAY_SET[name]
        if value is None or (name, value) == ("device", "local"):
            continue
        if kind == BUILD:
            taken[name], keys = build_settings(value)
            left += keys
        elif isinstance(kind, str):
            path, why = _samples_beside(folder, value) if kind == DATA else ("", _NEVER[name])
            if why:
                left.append(LeftOut(name, f"is {quoted(str(value), 60)}, {why}", _flag(name)))
            else:
                taken[name] = path
        elif kind(value):
            taken[name] = value
        else:
            raise InputError(
                f"option {name} cannot be {one_line(repr(value), 60)} in a file: write a plain value"
            )
    return taken, left


def _flag(name: str) -> str:
    return SPELLED.get(name, f"--{name.replace('_', '-')}")


_NEVER = {
    "evaluate": "which names code to run",
    "device": "a machine to run on",
    "deadline": "a limit of the worker",
    "memory": "a limit of the worker",
}


def build_settings(given: Any) -> tuple[dict[str, Any], list[LeftOut]]:
    """The keys for a builder that a file may set, from a mapping or KEY=VALUE texts; and what was left out."""
    pairs = (
        given.items()
        if isinstance(given, dict)
        else [str(part).partition("=")[::2] for part in _listed(given)]
    )
    taken: dict[str, Any] = {}
    left = []
    for key, value in pairs:
        if str(key).replace("-", "_") in BUILD_KEYS:
            taken[str(key)] = value
        else:
            name = one_line(str(key), 40)
            why = f"is {quoted(str(value), 60)}, a file or machine of the builder"
            left.append(LeftOut(f"build {name}", why, f"--build {name}=…"))
    return taken, left


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _samples_beside(folder: Path, value: Any) -> tuple[str, str]:
    """(where the samples lie that a file names, "") or ("", why they are not taken)."""
    if value == "synthetic":
        return value, ""
    if not isinstance(value, str) or ":" in value:
        return "", "which names code to run, or no file"
    steps = Path(value).parts
    if not steps or not value.isprintable() or "\\" in value or os.path.isabs(value) or ".." in steps:
        return "", "a path outside its folder"
    path = folder
    for step in steps:
        path = path / step
        if path.is_symlink():
            return "", "a path through a link"
    if not path.exists():
        return "", "which is not beside it"
    tokenizer = [path.with_name("tokenizer.json")] if path.suffix.lower() == ".txt" else []
    read = path.iterdir() if path.is_dir() else [path, *tokenizer]
    if any(os.path.lexists(one) and not _is_plain(one) for one in read):
        return "", "which holds a link or something else than plain files"
    return str(path), ""


def _is_plain(path: Path) -> bool:
    """A folder, or a file with one name: a second one could lie anywhere."""
    facts = path.lstat()
    return stat.S_ISDIR(facts.st_mode) or (stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1)
