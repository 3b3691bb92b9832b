"""What a runtime must offer: build an artefact, run it, say which kernels it uses, time its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import onnx_ir as ir

from sparsecc.runtime.runner import Feeds, LayerTime, Progress, Runner


@dataclass(frozen=True)
class Availability:
    """Whether a runtime works here; when not, `reason` and `remedy` are each one line."""

    ok: bool
    version: str = ""
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Artefact:
    """What a backend wrote. `files` are relative to the folder; `main` is the one to load."""

    main: str
    files: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """One runtime. Stateless: everything it needs is handed in."""

    name: ClassVar[str]

    def availability(self) -> Availability:
        """Cheap: never imports the runtime when a look at the installed packages is enough."""
        ...

    def require(self, options: Mapping[str, Any]) -> None:
        """Refuse, before any work, what cannot be built here: UnavailableError or InputError in one line."""
        ...

    def build(
        self, model: ir.Model, folder: Path, options: Mapping[str, Any], progress: Progress
    ) -> Artefact:
        """Write the runtime's artefact into `folder` (which exists and is empty of it)."""
        ...

    def load(self, path: Path, *, threads: int = 1) -> Runner: ...

    def numerics_file(self, path: Path) -> Path:
        """What `load` can run on this machine for the numbers in `path`: itself, or the graph it was built from."""
        ...

    def census(self, path: Path) -> dict[str, Any]:
        """Which kernels the runtime really picks: counts by operator and type. Needs no clock."""
        ...

    def profile(
        self, path: Path, feeds: Feeds, *, threads: int = 1, runs: int = 20
    ) -> Sequence[LayerTime]: ...
