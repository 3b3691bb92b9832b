"""Which keys of a builder a file may set, and how it is said that one was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsecc.escaping import one_line, quoted

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


@dataclass(frozen=True)
class LeftOut:
    """An option of a file that was not taken: why, and how the command line gives it again. A compile is another one
    without an option that `decides`."""

    option: str
    why: str
    again: str
    decides: bool = False

    def line(self, file: str) -> str:
        return f"{file}: '{self.option}' {self.why}: a file may not; give {self.again} again"


def all_left_out(file: str, left: Sequence[LeftOut]) -> str:
    """One line for several, so that all can be given at once."""
    if len(left) == 1:
        return left[0].line(file)
    what = " and ".join(f"'{one.option}' {one.why}" for one in left)
    return f"{file}: {what}: a file may not; give {' and '.join(one.again for one in left)} again"


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
