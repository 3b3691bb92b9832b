"""What a TensorRT build may be asked for, checked before any of its libraries is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError, unknown
from sparsecc.escaping import quoted

Shape = tuple[int, ...]
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"(\d+)\s*([KMG]?)(?:i?B)?", re.IGNORECASE)


@dataclass(frozen=True)
class Profile:
    """The shapes one dynamic input may take: the smallest, the one to tune for, and the largest."""

    low: Shape
    opt: Shape
    high: Shape


@dataclass(frozen=True)
class BuildOptions:
    """The options of a build, as the keys of the mapping that `from_mapping` reads.

    `workspace` is in bytes (or `4GiB`), `optimization_level` from 0 (fast build) to 5; `profiles`
    maps an input to `min|opt|max`, e.g. `1x3x224x224|8x3x224x224|32x3x224x224`. `emit` is `engine`, or `onnx`
    for the prepared model with its build scripts. `stripped` implies `refit`. `plugins` is a folder whose
    shared libraries are loaded before parsing. `hardware_compatible` is `none`, `ampere+` or
    `same-compute-capability`; `compute_capabilities` (TensorRT-RTX) are names such as `8.6` or `SM86`.
    `builder` is `api` (Python), `trtexec`, or `auto` (Python where it is at hand); `device` says where:
    `local` or `ssh://user@host`, which is always trtexec.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    tactic_sources: tuple[str, ...] = ()
    timing_cache: str | None = None
    profiles: Mapping[str, Profile] | None = None
    version_compatible: bool = False
    hardware_compatible: str = "none"
    refit: bool = False
    stripped: bool = False
    weight_streaming: bool = False
    sparse_weights: bool = False
    tf32: bool = True
    compute_capabilities: tuple[str, ...] = ()
    plugins: str | None = None
    emit: str = "engine"
    builder: str = "auto"
    device: str = "local"

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> BuildOptions:
        """Read and check a mapping. InputError names the key, the value and what is allowed."""
        known = {f.name for f in fields(cls)}
        for key in options:
            if key not in known:
                raise unknown("TensorRT option", "options", str(key), sorted(known))
        given = {key: value for key, value in options.items() if value is not None}
        readers: dict[str, Callable[[object], Any]] = {
            "workspace": parse_size,
            "optimization_level": _level,
            "tactic_sources": _names,
            "compute_capabilities": _capabilities,
            "profiles": _profiles,
            "hardware_compatible": lambda value: _one_of("hardware_compatible", value, HARDWARE),
            "builder": lambda value: _one_of("builder", value, BUILDERS),
            "emit": lambda value: _one_of("emit", value, ("engine", "onnx")),
            "plugins": _folder,
        }
        read = {key: readers[key](value) if key in readers else value for key, value in given.items()}
        made = cls(**read)
        for f in fields(cls):
            if isinstance(f.default, bool) and not isinstance(getattr(made, f.name), bool):
                raise InputError(f"TensorRT option '{f.name}' must be true or false")
        return made


BUILDERS = ("auto", "api", "trtexec")
HARDWARE = ("none", "ampere+", "same-compute-capability")


def parse_size(value: object) -> int:
    """Bytes from a number or from text such as `512MiB`, `4G`. InputError when it is neither."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = _SIZE.fullmatch(str(value).strip())
    size = int(found[1]) * _UNITS[found[2].upper()] if found else 0
    if size == 0:
        raise InputError(f"TensorRT option 'workspace' is {quoted(str(value))}: give a size such as 4GiB")
    return size


def parse_shape(text: str) -> Shape:
    """`1x3x224x224` as a tuple; an empty text is a scalar. InputError on anything else."""
    if not re.fullmatch(r"(\d+(x\d+)*)?", text):
        raise InputError(f"shape {quoted(text)} is not numbers joined by 'x': write it as 1x3x224x224")
    return tuple(int(part) for part in text.split("x")) if text else ()


def parse_profile(name: str, value: object) -> Profile:
    """`min|opt|max` (or one shape for all three) as a profile. InputError when min <= opt <= max fails."""
    if isinstance(value, Profile):
        return value
    shapes = [parse_shape(part.strip()) for part in str(value).split("|")]
    if len(shapes) not in (1, 3):
        raise InputError(
            f"profile of input {quoted(name)} has {len(shapes)} shapes: write min|opt|max, or one shape"
        )
    low, opt, high = shapes * 3 if len(shapes) == 1 else shapes
    if not len(low) == len(opt) == len(high):
        raise InputError(
            f"profile of input {quoted(name)} mixes ranks: min, opt and max need as many dimensions"
        )
    if any(not a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
        raise InputError(
            f"profile of input {quoted(name)} is out of order: every dimension needs min <= opt <= max"
        )
    return Profile(low, opt, high)


def _profiles(value: object) -> dict[str, Profile]:
    if not isinstance(value, Mapping):
        raise InputError("TensorRT option 'profiles' must map input names to min|opt|max shapes")
    return {str(name): parse_profile(str(name), shapes) for name, shapes in value.items()}


def _level(value: object) -> int:
    text = str(value)
    if text not in {"0", "1", "2", "3", "4", "5"}:
        raise InputError(f"TensorRT option 'optimization_level' is {quoted(text)}: it goes from 0 to 5")
    return int(text)


def _names(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise InputError(
            f"TensorRT option 'tactic_sources' is {quoted(str(value))}: give names joined by commas"
        )
    return tuple(str(part).strip().upper() for part in parts if str(part).strip())


def _capabilities(value: object) -> tuple[str, ...]:
    """`8.6`, `86`, `sm86` and `SM86` all mean SM86."""
    parts = [str(value)] if isinstance(value, (int, float)) else _names(value)
    names = []
    for part in parts:
        found = re.fullmatch(r"(?:SM_?)?(\d{1,2})\.?(\d)", part.upper())
        if not found and part.upper() != "CURRENT":
            raise InputError(
                f"compute capability {quoted(part)} is not one: write it as 8.6 or SM86, or 'current'"
            )
        names.append(f"SM{found[1]}{found[2]}" if found else "CURRENT")
    return tuple(dict.fromkeys(names))


def _one_of(key: str, value: object, allowed: tuple[str, ...]) -> str:
    text = str(value)
    if text not in allowed:
        raise InputError(f"TensorRT option '{key}' is {quoted(text)}: it is one of {', '.join(allowed)}")
    return text


def _folder(value: object) -> str:
    if not Path(str(value)).is_dir():
        raise InputError(
            f"plugins folder {quoted(str(value))} does not exist: give the folder of the libraries"
        )
    return str(value)


def _joined(names: set[str]) -> str:
    return ", ".join(sorted(names))


def as_mapping(options: BuildOptions) -> dict[str, Any]:
    """The options that differ from the defaults, as JSON data that `from_mapping` reads back."""
    changed = {
        f.name: getattr(options, f.name) for f in fields(options) if getattr(options, f.name) != f.default
    }
    profiles = changed.pop("profiles", None) or {}
    texts = {
        name: "|".join("x".join(str(size) for size in shape) for shape in (p.low, p.opt, p.high))
        for name, p in profiles.items()
    }
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}
    return plain | ({"profiles": texts} if texts else {})
