"""What a runtime offers: build an artefact, run it, time it, say which kernels it uses.

Callers ask a backend; none looks at which one it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from sparsecc.errors import InputError, UnavailableError
from sparsecc.measure.interleave import Comparison
from sparsecc.options import SWITCHES, CompileOptions
from sparsecc.runtime.runner import Feeds, LayerTime, Progress, Runner

if TYPE_CHECKING:
    from sparsecc.measure.layer_pair import LayerPair


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
    runner: Runner | None = None
    """`main` as it was loaded when it was built, on one thread; None where it was not."""
    weights: int | None = None
    """Bytes of its weights; None where they are not told apart."""


class NotTimedError(Exception):
    """Why two models were not timed: a remark in the report, and no end of the compile."""


def with_switches(texts: Mapping[str, str]) -> dict[str, Any]:
    """A builder's options with `true`, `off` and their like as switches."""
    return {key: SWITCHES.get(text, text) if text.isalpha() else text for key, text in texts.items()}


class Backend(ABC):
    """One runtime. Stateless: everything it needs is handed in. What it does not override it cannot do."""

    name: ClassVar[str]
    forms: ClassVar[tuple[str, ...]] = ("onnx",)
    """What `--emit` may ask for."""
    runs_here: ClassVar[bool] = False
    """Whether it runs any ONNX graph on the CPU of this machine, the dense one too: kernels are counted then, memory
    is measured, and a search may time its trials."""
    takes_any_size: ClassVar[bool] = False
    """Whether it builds models that do not fit into memory."""

    @abstractmethod
    def availability(self) -> Availability:
        """Cheap: never imports the runtime when a look at the installed packages is enough."""

    @abstractmethod
    def build(
        self, model: ir.Model, folder: Path, options: Mapping[str, Any], progress: Progress
    ) -> Artefact:
        """Write the runtime's artefact into `folder` (which exists and is empty of it)."""

    @abstractmethod
    def load(self, path: Path, *, threads: int = 1) -> Runner:
        """What `build` wrote, ready to run."""

    def require(self, options: Mapping[str, Any]) -> None:
        """Refuse, before any work, what cannot be built here: UnavailableError or InputError in one line."""
        found = self.availability()
        if not found.ok:
            raise UnavailableError(f"{self.name}: {found.reason}: {found.remedy}")

    def require_device(self, device: str, models: Sequence[Path], *, times: bool, builds: bool) -> None:
        """UnavailableError where a device is out of reach or lacks what this runtime `times` and `builds` with there;
        SystemFailureError where its disk is too small for the models. A runtime that does neither asks nothing."""
        return

    def build_options(self, asked: CompileOptions) -> dict[str, Any]:
        """What `build` is told: the KEY=VALUE texts of `--build`, `true` and its like as switches.

        InputError for a form that it does not emit.
        """
        if asked.emit is not None and asked.emit not in self.forms:
            raise InputError(f"--emit {asked.emit}: target {asked.target} emits {' or '.join(self.forms)}")
        return with_switches(dict(asked.build))

    def is_unfinished(self, folder: Path) -> bool:
        """Whether the bundle in `folder` is one that `finish` builds."""
        return False

    def finish(
        self,
        folder: Path,
        progress: Progress,
        *,
        device: str | None = None,
        own: Mapping[str, Any] | None = None,
    ) -> Artefact:
        """Build what an earlier compile left to be built, on this machine or on a device.

        `own` are the user's options of the builder, which stand above those in `folder`.
        """
        raise InputError(f"{self.name}: nothing is left to build")

    def numerics_file(self, path: Path) -> Path:
        """What `load` can run on this machine for the numbers in `path`: itself, or the graph it was built from."""
        return path

    def census(self, path: Path) -> dict[str, Any]:
        """Which kernels the runtime really picks: counts by operator and type. Needs no clock."""
        return {}

    def profile(self, path: Path, feeds: Feeds, *, threads: int = 1, runs: int = 20) -> Sequence[LayerTime]:
        """Mean time per layer."""
        raise UnavailableError(f"{self.name}: layers cannot be timed here: run sparsecc doctor")

    def latency(
        self,
        path: Path,
        feeds: Feeds,
        progress: Progress,
        *,
        device: str = "local",
        threads: int = 1,
        layers: bool = False,
    ) -> dict[str, Any]:
        """The facts of `sparsecc profile`: latency of one model on a device, per layer where asked, as JSON data.

        UnavailableError where nothing can run it.
        """
        raise UnavailableError(f"target {self.name} has no runtime here to profile on: run sparsecc doctor")

    def compare(
        self, dense: Path, compiled: Path, feeds: tuple[Feeds, Feeds], asked: CompileOptions, scratch: Path
    ) -> Comparison | None:
        """The dense model and what was built of it, interleaved on the device that was asked for; each takes its
        own of the two `feeds`. None where nothing runs them, NotTimedError where that failed."""
        return None

    def compare_layers(
        self, dense: Path, compiled: Path, feeds: tuple[Feeds, Feeds], asked: CompileOptions
    ) -> LayerPair | None:
        """The time of every layer in both, run in turn; None where nothing tells them apart."""
        return None
