"""The backend `tensorrt`: a plan built here by Python or trtexec, or on a device, or emitted for later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from sparsecc.backends.base import Artefact, Availability, Backend, NotTimedError
from sparsecc.backends.nvidia.api import TENSORRT, THREE_WAYS, Flavour, availability
from sparsecc.backends.nvidia.build import build_plan
from sparsecc.backends.nvidia.device import NoGpuError, gpus
from sparsecc.backends.nvidia.engine_inspector import as_rows, census, parse_layers, sparsity_table
from sparsecc.backends.nvidia.options import BuildOptions
from sparsecc.backends.nvidia.plans import CODE, is_vouched, vouch
from sparsecc.backends.nvidia.remote import build_on, find_trtexec, local_trtexec
from sparsecc.backends.nvidia.run import EngineRunner, open_plan
from sparsecc.backends.nvidia.scripts import SETTINGS, read_settings, write_scripts
from sparsecc.backends.nvidia.trtexec import ENGINE, ONNX
from sparsecc.devices import open_device
from sparsecc.errors import SparseccError, UnavailableError
from sparsecc.loading.models import load_ir
from sparsecc.measure.interleave import Comparison
from sparsecc.options import CompileOptions
from sparsecc.passes.prepare_tensorrt import prepare
from sparsecc.runtime import kernel_census
from sparsecc.runtime.layer_times import layer_times
from sparsecc.runtime.runner import Feeds, LayerTime, Progress
from sparsecc.runtime.session import OrtRunner, open_session

LAYERS = "model.layers.json"
_LARGEST_INLINE = 1_000_000_000


class TensorrtEngine(Backend):
    """NVIDIA TensorRT 10.13 or later, and 11. The options are those of `BuildOptions`."""

    name: ClassVar[str] = "tensorrt"
    forms: ClassVar[tuple[str, ...]] = ("onnx", "engine")
    flavour: ClassVar[Flavour] = TENSORRT

    def availability(self) -> Availability:
        """Whether a plan can be built on this machine, by Python or by trtexec."""
        found = availability(self.flavour)
        if found.ok or not _has_gpu() or local_trtexec() is None:
            return found
        return Availability(True, "trtexec")

    def require(self, options: Mapping[str, Any]) -> None:
        self._require(BuildOptions.from_mapping(options))

    def require_device(self, device: str, models: Sequence[Path], *, times: bool, builds: bool) -> None:
        """Building needs trtexec there."""
        if builds:
            with open_device(device) as there:
                find_trtexec(there)

    def build_options(self, asked: CompileOptions) -> dict[str, Any]:
        """Fixed shapes and ranges as profiles, the form to emit, where to build, and sparse kernels for a pattern."""
        chosen = super().build_options(asked)
        shapes = {**{name: (shape,) for name, shape in asked.dims.items()}, **asked.profiles}
        if shapes:
            chosen["profiles"] = {name: _profile(ranged) for name, ranged in shapes.items()}
        if asked.emit is not None:
            chosen["emit"] = asked.emit
        if asked.device != "local":
            chosen["device"] = asked.device
        return chosen | ({"sparse_weights": True} if asked.sparsity else {})

    def build(
        self, model: ir.Model, folder: Path, options: Mapping[str, Any], progress: Progress
    ) -> Artefact:
        """Write `model.onnx` and from it `model.engine`, or with `emit: onnx` the scripts that build it.

        UnavailableError in one line with the ways out when nothing here can build it.
        """
        chosen = BuildOptions.from_mapping(options)
        self._require(chosen)
        facts: dict[str, Any] = {"prepared": prepare(model)}
        files = save_onnx(model, folder)
        if chosen.emit == "onnx":
            scripts = write_scripts(folder, chosen)
            return Artefact(ONNX, (*files, *scripts), facts | {"emitted": True})
        return self._built(folder, files, chosen, progress, facts)

    def is_unfinished(self, folder: Path) -> bool:
        return (folder / SETTINGS).is_file()

    def finish(
        self,
        folder: Path,
        progress: Progress,
        *,
        device: str | None = None,
        own: Mapping[str, Any] | None = None,
    ) -> Artefact:
        """Build what `emit: onnx` left in `folder`, on this machine or on a device.

        `own` are options of the user's that stand above build.json; the facts name what that may not set.
        """
        chosen, left = read_settings(folder)
        given = {**(own or {}), **({} if device is None else {"device": device})}
        asked = BuildOptions.from_mapping(given)
        chosen = replace(chosen, **{name: getattr(asked, name) for name in given})
        lines = [one.line(SETTINGS) for one in left if one.option.removeprefix("build ") not in given]
        self._require(chosen)
        files = tuple(name for name in (ONNX, f"{ONNX}.data") if (folder / name).is_file())
        return self._built(folder, files, chosen, progress, {"left_out": lines} if lines else {})

    def load(self, path: Path, *, threads: int = 1) -> EngineRunner | OrtRunner:
        """A plan on the GPU here; an emitted `model.onnx` on the CPU, for its numerics, every 16-bit value rounded.

        The latter as it stands: ONNX Runtime's optimizer crashes on some half-precision graphs made for GPUs.
        UnavailableError for a plan where there is no GPU: check `numerics_file` instead.
        """
        if path.suffix == ".onnx":
            return open_session(path, threads=threads, level="none", rounds=True)
        return open_plan(self.flavour, path)

    def numerics_file(self, path: Path) -> Path:
        """What `load` can run here: a plan that was built here for the GPU and this user, else its `model.onnx`."""
        return path if _has_gpu() and is_vouched(path) else path.with_name(ONNX)

    def is_timed_here(self, path: Path, options: Mapping[str, Any]) -> bool:
        """Whether a plan just built can be timed: on the GPU here, or by trtexec where it was built."""
        if path.suffix == ".onnx":
            return False
        return _has_gpu() or self.uses_trtexec(BuildOptions.from_mapping(options))

    def census(self, path: Path) -> dict[str, Any]:
        """Counts from the layer information written at build time, else from the plan itself."""
        if path.suffix == ".onnx":
            return kernel_census.census(path)
        stored = path.with_name(LAYERS)
        if stored.is_file():
            return census(parse_layers(stored.read_text(encoding="utf-8")))
        return census(parse_layers(self._information(path)))

    def layers(self, path: Path, log: Sequence[str] = ()) -> dict[str, Any]:
        """Their census, every layer with type, tactic and padding, and the table of 2:4 eligible against picked."""
        stored = path.with_name(LAYERS)
        text = stored.read_text(encoding="utf-8") if stored.is_file() else self._information(path)
        layers = parse_layers(text)
        return {
            "census": census(layers),
            "layers": as_rows(layers),
            "sparsity": sparsity_table(layers, log),
        }

    def profile(self, path: Path, feeds: Feeds, *, threads: int = 1, runs: int = 20) -> Sequence[LayerTime]:
        """Mean time per layer on the GPU here."""
        if path.suffix == ".onnx":
            return layer_times(path, feeds, threads=threads, runs=runs)
        runner = open_plan(self.flavour, path)
        try:
            return runner.layers(feeds, runs=runs)
        finally:
            runner.close()

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
        """Of the plan beside the model of a bundle, which it names."""
        from sparsecc.backends.nvidia.layer_profile import profile_plan

        folder = path.parent
        return {"model": folder.name, **profile_plan(self, folder, feeds, device=device, layers=layers)}

    def compare(
        self, dense: Path, compiled: Path, feeds: tuple[Feeds, Feeds], asked: CompileOptions, scratch: Path
    ) -> Comparison | None:
        """The plan beside one of the dense model, where this machine or the device can run both."""
        from sparsecc.backends.nvidia.compare import compare_plans

        options = self.build_options(asked)
        if not self.is_timed_here(compiled, options):
            return None
        try:
            return compare_plans(self, load_ir(dense), compiled, feeds, options, scratch, seed=asked.seed)
        except SparseccError as e:
            raise NotTimedError(f"no latency beside the dense model: {e}") from e

    def _built(
        self,
        folder: Path,
        files: tuple[str, ...],
        chosen: BuildOptions,
        progress: Progress,
        facts: dict[str, Any],
    ) -> Artefact:
        if self.uses_trtexec(chosen):
            with open_device(chosen.device) as device:
                facts = facts | build_on(device, folder, chosen, progress)
            vouch(folder / ENGINE, chosen.device)
            files = (*files, ENGINE, f"{ENGINE}{CODE}", LAYERS, "build.log")
        else:
            facts = facts | build_plan(self.flavour, folder / ONNX, folder / ENGINE, chosen, progress)
            files = (*files, ENGINE, f"{ENGINE}{CODE}", *self._store_layers(folder, chosen))
        if LAYERS in files:
            facts |= self.layers(folder / ENGINE, facts["sparsity"])
        return Artefact(ENGINE, files, facts)

    def _store_layers(self, folder: Path, chosen: BuildOptions) -> tuple[str, ...]:
        if chosen.stripped or not _has_gpu():
            return ()
        runner = open_plan(self.flavour, folder / ENGINE)
        try:
            (folder / LAYERS).write_text(runner.layer_information(), encoding="utf-8")
        finally:
            runner.close()
        return (LAYERS,)

    def _require(self, chosen: BuildOptions) -> None:
        """Refuse before anything is written when this machine cannot do what is asked."""
        if chosen.emit == "onnx" or chosen.device != "local":
            return
        found = self.availability()
        if not found.ok:
            raise UnavailableError(f"{self.name}: {found.reason}: {found.remedy}")
        if chosen.builder == "trtexec" and local_trtexec() is None:
            raise UnavailableError(f"{self.name}: no trtexec on the PATH: add it, or {THREE_WAYS}")

    def uses_trtexec(self, chosen: BuildOptions) -> bool:
        """Whether trtexec builds and runs, here or on a device, in place of the Python API."""
        if chosen.device != "local" or chosen.builder == "trtexec":
            return True
        return chosen.builder == "auto" and not availability(self.flavour).ok

    def _information(self, path: Path) -> str:
        runner = open_plan(self.flavour, path)
        try:
            return runner.layer_information()
        finally:
            runner.close()


def _profile(shapes: tuple[tuple[int, ...], ...]) -> str:
    """(least, usual, largest), or one shape for all three, as builders spell it: `1x3|2x3|4x3`."""
    return "|".join("x".join(str(d) for d in shape) for shape in shapes)


def save_onnx(model: ir.Model, folder: Path) -> tuple[str, ...]:
    """Write `model.onnx`, with the weights beside it when they exceed 1 GB; returns the files' names."""
    weights = sum(
        v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None
    )
    data = f"{ONNX}.data" if weights > _LARGEST_INLINE else None
    ir.save(model, folder / ONNX, external_data=data)
    return (ONNX,) if data is None else (ONNX, data)


def _has_gpu() -> bool:
    try:
        return bool(gpus())
    except NoGpuError:
        return False
