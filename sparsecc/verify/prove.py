"""The checks every compile makes of itself before anything is published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from sparsecc.axes import Keep
from sparsecc.backends.onnxruntime_cpu import OnnxRuntimeCpu
from sparsecc.errors import InputError, InternalError
from sparsecc.feeds import feeds_from, input_values, random_feeds
from sparsecc.graph.analysis import Analysis
from sparsecc.options import CompileOptions
from sparsecc.text import one_line, quoted
from sparsecc.verify.narrowed import Narrowed
from sparsecc.verify.numerics import QUANTIZED, Outputs, fidelity, is_quantized, tolerance_of, worst_error
from sparsecc.verify.oracle import masked

if TYPE_CHECKING:
    from sparsecc.backends.base import Backend
    from sparsecc.backends.onnxruntime_session import OrtRunner
    from sparsecc.pipeline import Job
    from sparsecc.plan import Plan

Feeds = Mapping[str, np.ndarray]

_RUNTIME = OnnxRuntimeCpu()
SYNTHETIC = "synthetic"
"""The value of `--calib` that asks for random inputs."""

_LARGE = 1 << 30
_DRAWS = 3
"""How often inputs are perturbed to see how strongly the model amplifies rounding."""
_AMPLIFIED = 16.0
PROBE_SECONDS = 30.0
"""How long a first run on random inputs may take: a loop without an end must not hang the compile."""
_TOO_LARGE = "its values need too much memory at every size that was tried"


class Probes:
    """Inputs on which the dense model, the masked one and the compiled one are compared."""

    SAMPLES = 256

    def __init__(self, scratch: Path, model: ir.Model, options: CompileOptions) -> None:
        self.scratch = scratch
        self.options = options
        self.model = model
        self.dense = write(model, scratch / "dense" / "model.onnx")
        self._runner = _RUNTIME.load(self.dense, threads=options.threads, level="none")
        self.feeds: list[dict[str, np.ndarray]] = []
        self.expected: list[dict[str, np.ndarray]] = []
        self.narrowed = Narrowed()
        self._reference = self._runner
        self.failure = ""
        self._artefact: tuple[Path, Any] | None = None
        self._ran: dict[object, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}

    def require_known_inputs(self) -> None:
        """InputError where the options name an input that there is not, or give it another rank."""
        ranks = {v.name: len(v.shape) for v in input_values(self.model) if v.shape is not None}
        for name, shape in self.options.inputs:
            if name not in ranks:
                known = ", ".join(quoted(n or "") for n in ranks)
                raise InputError(f"--input {quoted(name)}: no such input: inputs are {known}")
            given = shape if name in self.options.dims else shape[0]
            if isinstance(given, tuple) and len(given) != ranks[name]:
                raise InputError(
                    f"--input {quoted(name)} has rank {len(given)}, the model's has {ranks[name]}"
                )

    def runs(self, sizes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether the dense model runs at these input sizes."""
        feeds = random_feeds(self.model, seed=self.options.seed, sizes=sizes)
        try:
            outputs = self._runner.run(feeds, seconds=PROBE_SECONDS)
        except InputError as e:
            self.failure = str(e)
            return False
        self._ran = {**dict(list(self._ran.items())[-1:]), _key(sizes): (feeds, outputs)}
        return True

    def settle(self, analysis: Analysis) -> None:
        """Fix the inputs that everything is compared on, and the dense model's outputs for them.

        InputError where the dense model ran at no input sizes that were tried.
        """
        if not analysis.shapes.works:
            raise InputError(
                f"the model does not run on random inputs ({self.failure or _TOO_LARGE}): "
                "give sizes with --input name:1x3x224x224 or samples with --calib"
            )
        for sizes in analysis.shapes.inputs:
            if _key(sizes) not in self._ran:
                self.runs(sizes)
        ran = [self._ran[_key(sizes)] for sizes in analysis.shapes.inputs]
        self._ran = {}
        self.feeds = [feeds for feeds, _ in ran]
        self.expected = [outputs for _, outputs in ran]

    def of_removal(self, analysis: Analysis, keep: Keep) -> list[Path]:
        """The masked dense model per probe: what the pruned one must compute."""
        self.narrowed = Narrowed.of(analysis, keep)
        return [
            write(masked(analysis, keep, probe), self.scratch / f"masked{probe}" / "model.onnx")
            for probe in range(len(self.feeds))
        ]

    @property
    def small_feeds(self) -> Feeds | None:
        """The first inputs for the pruned model, None where they are those of the dense one."""
        return self.narrowed.feeds(self.feeds[0]) if self.narrowed.inputs else None

    def rest_on(self, runner: OrtRunner) -> None:
        """From here on this model, of which layers are silenced, stands for the dense one in proofs."""
        self._reference = runner
        self.expected = [runner.run(feeds) for feeds in self.feeds]

    def reference(self, proof: Sequence[Path]) -> Iterator[tuple[Feeds, Outputs, Callable[[], float]]]:
        """Per probe: the inputs, the wanted outputs, and how far rounding of the inputs moves them.

        The masked models of `proof` are read once and removed; without any, the dense model is the reference.
        """
        for probe, feeds in enumerate(self.feeds):
            runner = self._reference
            if proof:
                runner = _RUNTIME.load(proof[probe], threads=self.options.threads, level="none")
                proof[probe].unlink()
            wanted = runner.run(feeds) if proof else self.expected[probe]
            yield feeds, wanted, partial(moved_by_rounding, runner, feeds, wanted)

    def of_artefact(self, backend: Backend, compiled: Path, model: ir.Model, plan: Plan) -> dict[str, Any]:
        """Load and run what was built; how close it is to the pruned graph and to the dense model."""
        runner = self._loaded(backend, compiled)
        plain = _RUNTIME.load(write(model, self.scratch / "final" / "model.onnx"), level="none")
        worst = 0.0
        for feeds in self.feeds:
            feeds = self.narrowed.feeds(feeds)
            wanted, found = plain.run(feeds), runner.run(feeds)
            error = worst_error(wanted, found)
            worst = max(worst, error)
            allowed = QUANTIZED if is_quantized(model) else _AMPLIFIED * tolerance_of(wanted)
            if plan.quantization or error <= allowed:
                continue
            if error > _AMPLIFIED * moved_by_rounding(plain, feeds, wanted):
                raise InternalError(
                    f"the built {compiled.name} differs from the graph it was built from by {error:.2g}"
                )
        return {"runs": True, "artefact_relative_error": worst}

    def synthetic(self, number: int) -> Iterator[Feeds]:
        """Random inputs in place of calibration samples (`--calib synthetic`)."""
        sizes = {name: array.shape for name, array in self.feeds[0].items()}
        for draw in range(number):
            yield random_feeds(self.model, seed=self.options.seed + 1 + draw, sizes=sizes)

    def _loaded(self, backend: Backend, compiled: Path) -> Any:
        """The compiled model, loaded once for all checks: large ones take their time."""
        if self._artefact is None or self._artefact[0] != compiled:
            path = backend.numerics_file(compiled)
            self._artefact = compiled, backend.load(path, threads=self.options.threads)
        return self._artefact[1]

    def close_to_dense(self, backend: Backend, compiled: Path) -> dict[str, Any]:
        """Fidelity of the compiled model on calibration samples where given, else on the random inputs."""
        runner = self._loaded(backend, compiled)
        feeds: Sequence[Mapping[str, np.ndarray]] = self.feeds[:1]
        data = "random inputs"
        if self.options.calibration not in (None, SYNTHETIC):
            feeds = [
                f for _, f in zip(range(8), feeds_from(self.options.calibration, self.model), strict=False)
            ]
            data = "calibration samples"
        facts: dict[str, list[float]] = {}
        for one in feeds:
            for name, value in fidelity(
                self.narrowed.wanted(self._runner.run(one)), runner.run(self.narrowed.feeds(one))
            ).items():
                facts.setdefault(name, []).append(value)
        return {**{name: float(np.mean(values)) for name, values in facts.items()}, "data": data}


def _key(sizes: Mapping[str, tuple[int, ...]]) -> object:
    return tuple(sorted(sizes.items()))


def prove(job: Job, pruned: ir.Model, probes: Probes, proof: Sequence[Path]) -> dict[str, Any]:
    """Check the pruned graph against the masked dense model. InternalError where they differ."""
    path = write(pruned, job.scratch / "pruned" / "model.onnx")
    verdict = check(path, probes.dense)
    runner = _RUNTIME.load(path, threads=job.options.threads, level="none")
    worst, floor = 0.0, None
    for feeds, wanted, moved in probes.reference(proof):
        found = runner.run(probes.narrowed.feeds(feeds))
        error = worst_error(probes.narrowed.wanted(wanted), found)
        worst = max(worst, error)
        if error > tolerance_of(wanted):
            floor = max(floor or 0.0, moved())
            if error > _AMPLIFIED * floor:
                raise InternalError(
                    f"the pruned model differs from the masked dense one by {error:.2g}, "
                    f"rounding explains {floor:.2g}"
                )
    return {
        "oracle": "masked dense model" if proof else "dense model",
        "max_relative_error": worst,
        "rounding_floor": floor,
        "inputs": [{n: list(a.shape) for n, a in feeds.items()} for feeds in probes.feeds],
        "checker": verdict,
    }


def moved_by_rounding(runner: OrtRunner, feeds: Feeds, wanted: Outputs) -> float:
    """The largest relative change of the outputs when the inputs move by about a rounding step."""
    moved = [worst_error(wanted, runner.run(_nudged(feeds, draw))) for draw in range(_DRAWS)]
    return max((m for m in moved if np.isfinite(m)), default=0.0)


def check(path: Path, dense: Path) -> str:
    """onnx's checker on a file we wrote: what it refuses is our fault, unless it refuses the dense one."""
    complaint = _complaint(path)
    if complaint is None:
        return "passed"
    if _complaint(dense) is None:
        raise InternalError(f"the checker refuses the pruned model: {complaint}")
    return f"refuses the input as well: {complaint}"


def _complaint(path: Path) -> str | None:
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as e:
        return one_line(str(e), 300)
    return None


def write(model: ir.Model, path: Path) -> Path:
    """Write a graph as it stands, weights beside it where they are large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    constants = [v.const_value for v in model.graph.initializers.values()]
    if sum(t.nbytes for t in constants if t is not None) > _LARGE:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    else:
        ir.save(model, path)
    return path


def _nudged(feeds: Mapping[str, np.ndarray], draw: int) -> dict[str, np.ndarray]:
    """Floats moved by about one rounding step each."""
    generator = np.random.default_rng(draw)
    moved = {}
    for name, array in feeds.items():
        moved[name] = array
        if array.dtype.kind == "f":
            step = 2 * np.finfo(array.dtype).eps
            moved[name] = (array * (1 + step * generator.uniform(-1, 1, array.shape))).astype(array.dtype)
    return moved
