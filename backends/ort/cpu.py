"""ONNX Runtime on the CPU: an optimized `model.onnx` (or `.ort`), its sessions, kernel census and profile."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from sparsecc.backends.base import Artefact, Availability, Backend
from sparsecc.backends.ort.unfold import unfold
from sparsecc.errors import InputError, InternalError, SystemFailureError
from sparsecc.ir.save import write
from sparsecc.runtime.runner import Feeds, LayerTime, Progress
from sparsecc.system import memory, process
from sparsecc.system.runtime_packages import installed, remedy

if TYPE_CHECKING:
    from sparsecc.measure.interleave import Comparison
    from sparsecc.measure.layer_pair import LayerPair
    from sparsecc.options import CompileOptions
    from sparsecc.runtime.session import OrtRunner

LEVELS = ("none", "basic", "extended", "all")
_ORT_FORMAT_SECONDS = 300
_NO_ROOM = "ONNX Runtime's optimizer holds several copies of the weights: there is not the memory for it"


@dataclass(frozen=True)
class BuildOptions:
    """What `build` accepts. `platform` ("amd64" or "arm") matters to the `.ort` format only.

    A `.ort` file runs as it was written: only `level="all"` gives it the blocked layout of this processor,
    which sessions on `model.onnx` make for themselves.
    """

    level: str = "extended"
    ort_format: bool = False
    platform: str = "amd64"
    external_above: int = memory.BESIDE

    @staticmethod
    def of(options: Mapping[str, Any]) -> BuildOptions:
        """InputError names an unknown option or value."""
        unknown = sorted(set(options) - set(BuildOptions.__dataclass_fields__))
        if unknown:
            known = ", ".join(BuildOptions.__dataclass_fields__)
            raise InputError(f"onnxruntime: unknown build option '{unknown[0]}': options are {known}")
        chosen = BuildOptions(**options)
        if chosen.level not in LEVELS:
            raise InputError(f"onnxruntime: unknown level '{chosen.level}': levels are {', '.join(LEVELS)}")
        if chosen.platform not in ("amd64", "arm"):
            raise InputError(f"onnxruntime: unknown platform '{chosen.platform}': give amd64 or arm")
        return chosen


class OnnxRuntimeCpu(Backend):
    """The backend `onnxruntime`."""

    name: ClassVar[str] = "onnxruntime"
    forms: ClassVar[tuple[str, ...]] = ("onnx", "ort")
    runs_here: ClassVar[bool] = True
    takes_any_size: ClassVar[bool] = True

    def availability(self) -> Availability:
        found = list(installed().values())
        if found:
            return Availability(ok=True, version=found[-1])
        return Availability(ok=False, reason="onnxruntime is not installed", remedy=remedy())

    def require(self, options: Mapping[str, Any]) -> None:
        """Always here: it is a dependency. InputError for unknown options."""
        BuildOptions.of(options)

    def require_device(self, device: str, models: Sequence[Path], *, times: bool, builds: bool) -> None:
        """Timing needs Python, numpy and ONNX Runtime there."""
        from sparsecc.devices import open_device
        from sparsecc.devices.ready import require_ready

        if times:
            with open_device(device) as there:
                require_ready(there, tuple(models))

    def build_options(self, asked: CompileOptions) -> dict[str, Any]:
        """`--emit ort` asks for the ORT format."""
        return super().build_options(asked) | ({"ort_format": True} if asked.emit == "ort" else {})

    def build(
        self, model: ir.Model, folder: Path, options: Mapping[str, Any], progress: Progress
    ) -> Artefact:
        """Write `model.onnx`, optimized for no processor in particular (level EXTENDED by default).

        Where ONNX Runtime cannot load what it wrote itself, the next lower level is taken and
        `facts["level"]` and `facts["level_lowered"]` say so. Equal models give equal bytes. InputError when
        ONNX Runtime refuses the model.
        """
        chosen = BuildOptions.of(options)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
            progress("optimizing for ONNX Runtime", 0.0)
            built, facts, runner, weights = _optimized(model, Path(scratch), chosen)
            files = sorted(path.name for path in built.iterdir())
            if chosen.ort_format:
                progress("converting to the ORT format", 0.7)
                _convert_to_ort_format(built, chosen)
                files = sorted(path.name for path in built.iterdir())
            for file in sorted(files, key="model.onnx".__eq__):
                _flush(built / file)
                os.replace(built / file, folder / file)
            progress("optimizing for ONNX Runtime", 1.0)
        if chosen.ort_format:
            return Artefact("model.ort", tuple(files), facts)
        return Artefact("model.onnx", tuple(files), facts, runner, weights)

    def load(self, path: Path | bytes, *, threads: int = 1, level: str = "all") -> OrtRunner:
        """A runner over a file or its bytes; `level="none"` runs the graph exactly as it is written."""
        from sparsecc.runtime.session import open_session

        return open_session(path, threads=threads, level=level)

    def census(self, path: Path) -> dict[str, Any]:
        """Which kernels ONNX Runtime really picks here: see `kernel_census.census`."""
        from sparsecc.runtime.kernel_census import census

        return census(path)

    def profile(self, path: Path, feeds: Feeds, *, threads: int = 1, runs: int = 20) -> Sequence[LayerTime]:
        """Mean time per node over `runs` runs after a warm-up, in the order in which they run."""
        from sparsecc.runtime.layer_times import layer_times

        return layer_times(path, feeds, threads=threads, runs=runs)

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
        """CPU and wall milliseconds per run; on this machine also memory, the census, and layers beside the roofline.

        InputError for layers on a device: they are timed on this machine only.
        """
        from sparsecc.backends.ort.latency import latency

        return latency(path, feeds, device=device, threads=threads, layers=layers, progress=progress)

    def compare(
        self, dense: Path, compiled: Path, feeds: tuple[Feeds, Feeds], asked: CompileOptions, scratch: Path
    ) -> Comparison | None:
        """In rounds of fresh sessions. Raises what the device raises."""
        from sparsecc.measure.pair import measure_pair

        before, after = feeds
        return measure_pair(
            dense,
            compiled,
            before,
            device=asked.device,
            threads=asked.threads,
            seed=asked.seed,
            after_feeds=None if after is before else after,
        )

    def compare_layers(
        self, dense: Path, compiled: Path, feeds: tuple[Feeds, Feeds], asked: CompileOptions
    ) -> LayerPair | None:
        """By ONNX Runtime's trace, on this machine only."""
        from sparsecc.measure.layer_pair import time_layers

        return None if asked.device != "local" else time_layers(dense, compiled, feeds, threads=asked.threads)


def _optimized(
    model: ir.Model, scratch: Path, chosen: BuildOptions
) -> tuple[Path, dict[str, Any], OrtRunner | None, int]:
    """The folder with the optimized model, facts, the model as it was loaded from there, and bytes of its weights; a
    lower level where what was written does not load."""
    from sparsecc.runtime.session import VERSION, open_session, optimize

    if not memory.fits(memory.weight_bytes(model)):
        facts = {
            "level": "none",
            "onnxruntime": VERSION,
            **({"level_lowered": [f"{chosen.level}: {_NO_ROOM}"]} if chosen.level != "none" else {}),
        }
        path = scratch / "none" / "model.onnx"
        _write_plain(without_traces(model, model), path, min(chosen.external_above, memory.HELD))
        return path.parent, facts, None, memory.weight_bytes(model)
    failures: list[str] = []
    for level in reversed(LEVELS[: LEVELS.index(chosen.level) + 1]):
        built = scratch / level / "model.onnx"
        if level == "none":
            optimized = model.clone()
        else:
            optimized = _read(optimize(model, scratch / f"{level}-raw" / "model.onnx", level))
            unfold(optimized, model)
        _write_plain(without_traces(optimized, model), built, chosen.external_above)
        weights = memory.weight_bytes(optimized)
        try:
            runner = open_session(built)
        except InputError as e:
            failures.append(f"{level}: {e}")
            continue
        facts = {"level": level, "onnxruntime": VERSION}
        if failures:
            facts["level_lowered"] = failures
        return built.parent, facts, runner, weights
    raise InputError(failures[-1].partition(": ")[2])


def _read(path: Path) -> ir.Model:
    """An optimized model, its large weights left in their file; those of inner graphs are read."""
    model = ir.load(path)
    for graph in model.graph.subgraphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name)
    return model


def without_traces(model: ir.Model, given: ir.Model) -> ir.Model:
    """The model without what tells where it was made: notes of nodes, unused opsets, order of weights.

    What belongs to it stays as it is in the `given` one: metadata (class names, preprocessing), version and domain,
    doc strings of the model, its inputs and its outputs; and what it was optimized to asks for no newer format.
    """
    model.doc_string, about = given.doc_string, dict(given.metadata_props)
    model.producer_name, model.producer_version = "sparsecc", None
    model.domain, model.model_version = given.domain, given.model_version
    model.ir_version = min(model.ir_version, given.ir_version)
    model.metadata_props.clear()
    model.metadata_props.update(about)
    said = {v.name: v.doc_string for v in (*given.graph.inputs, *given.graph.outputs)}
    main, description = model.graph, given.graph.doc_string
    for graph in model.graphs():
        graph.doc_string = description if graph is main else None
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.doc_string = said.get(value.name) if graph is main else None
            value.metadata_props.clear()
        ordered = sorted(graph.initializers.items())
        graph.initializers.clear()
        graph.initializers.update(ordered)
        for tensor in (value.const_value for _, value in ordered):
            _clear_tensor(tensor)
    _clear_nodes(model)
    return model


def _clear_nodes(model: ir.Model) -> None:
    used = {""}
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for node in (node for graph in graphs for node in ir.traversal.RecursiveGraphIterator(graph)):
        used.add(node.domain)
        node.doc_string = None
        node.metadata_props.clear()
        for output in node.outputs:
            output.metadata_props.clear()
            if not output.is_graph_output():
                output.doc_string = None
        for attribute in node.attributes.values():
            attribute.doc_string = None
            if attribute.type == ir.AttributeType.TENSOR:
                _clear_tensor(attribute.value)
    kept = {domain: number for domain, number in sorted(model.opset_imports.items()) if domain in used}
    model.opset_imports.clear()
    model.opset_imports.update(kept)


def _clear_tensor(tensor: ir.TensorProtocol | None) -> None:
    if isinstance(tensor, ir.TensorProtoTensor):
        tensor.raw.ClearField("doc_string")
    elif isinstance(tensor, (ir.Tensor, ir.LazyTensor, ir.ExternalTensor, ir.StringTensor)):
        tensor.doc_string = None
    if tensor is not None:
        tensor.metadata_props.clear()


def _write_plain(model: ir.Model, path: Path, external_above: int) -> None:
    """Save `model`, its weights beside it when large."""
    try:
        write(model, path, external_above)
    except OSError as e:
        raise SystemFailureError(
            f"{path.name}: cannot be written: {e.strerror}: free space and try again"
        ) from e


def _convert_to_ort_format(built: Path, chosen: BuildOptions) -> None:
    """Add `model.ort` and the required-operators configuration (with types) of a minimal build."""
    with tempfile.TemporaryDirectory(dir=built.parent.absolute()) as out:
        arguments = [
            str(built.absolute() / "model.onnx"),
            "--output_dir",
            out,
            "--optimization_style",
            "Fixed",
        ]
        arguments += ["--enable_type_reduction", "--target_platform", chosen.platform]
        program = {"module": "onnxruntime.tools.convert_onnx_models_to_ort", "arguments": arguments}
        level = {"none": "disable"}.get(chosen.level, chosen.level)
        try:
            ended = process.run(
                "sparsecc.system.process:run_module",
                program,
                scratch=Path(out),
                seconds=_ORT_FORMAT_SECONDS,
                env={"ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL": level},
            )
        except TimeoutError as e:
            raise InternalError(
                f"model.ort: the converter took over {_ORT_FORMAT_SECONDS} s: build without the ORT format"
            ) from e
        made = next(Path(out).glob("*.ort"), None)
        config = next(Path(out).glob("*.config"), None)
        if ended.status != 0 or made is None or config is None:
            last = (ended.printed.strip() or "no output").splitlines()[-1]
            raise InputError(
                f"model.ort: ONNX Runtime's converter failed: {last}: build without the ORT format"
            )
        shutil.move(made, built / "model.ort")
        lines = [line for line in config.read_text().splitlines() if not line.startswith("#")]
        (built / "required_operators_and_types.config").write_text("\n".join(lines).strip() + "\n")


def _flush(path: Path) -> None:
    """On the disk before it gets its name, so that a power cut leaves the old file or the new one."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
