"""The checks every compile makes of itself before anything is published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from sparsecc.axes.algebra import Keep
from sparsecc.backends import backend_named
from sparsecc.backends.onnxruntime_cpu import OnnxRuntimeCpu
from sparsecc.data.random_inputs import feeds_from, random_feeds
from sparsecc.errors import InputError, InternalError
from sparsecc.escaping import one_line, quoted
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.options import CompileOptions
from sparsecc.reference.masked_channels import masked
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.runtime.numerics import QUANTIZED, Outputs, fidelity, is_quantized, tolerance_of, worst_error
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.session import OrtRunner, open_session
from sparsecc.shapes.dynamic_dims import input_values
from sparsecc.system import memory
from sparsecc.system.files import size_of
from sparsecc.targets import target_named

if TYPE_CHECKING:
    from sparsecc.backends.base import Backend
    from sparsecc.plan import Plan
    from sparsecc.tasks.compile import Job

Feeds = Mapping[str, np.ndarray]
Runs = OrtRunner | PartedRunner
Masked = Callable[[], Runs]
"""Loads the masked dense model of one probe."""

FEW = 16
"""Integers of an input of at most so many are kept in the report: lengths, rates, choices."""

_DRAWS = 3
"""How often inputs are perturbed to see how strongly the model amplifies rounding."""
_AMPLIFIED = 16.0
PROBE_SECONDS = 30.0
"""How long a first run on random inputs may take: a loop without an end must not hang the compile."""
_TOO_LARGE = "its values need too much memory at every size that was tried"


class Probes:
    """Inputs on which the dense model, the masked one and the compiled one are compared."""

    SAMPLES = 256

    def __init__(
        self, scratch: Path, model: ir.Model, options: CompileOptions, source: Path | None = None
    ) -> None:
        """`source` is the file that the model came from."""
        self.scratch = scratch
        self.source = source
        self.options = options
        self.model = model
        self.weights = memory.weight_bytes(model)
        self.by_parts = not memory.fits(self.weights)
        self.dense = scratch / "dense" / "model.onnx"
        self.runner = self.opened(model, self.dense)
        self.feeds: list[dict[str, np.ndarray]] = []
        self.expected: list[dict[str, np.ndarray]] = []
        self.narrowed = Narrowed()
        self._reference = self.runner
        self.failure = ""
        self.sample = self._first_sample()
        self._artefact: tuple[Path, Any] | None = None
        self.pruned: list[Outputs] = []
        self._found: Outputs = {}
        self._ran: dict[object, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}

    def opened(self, model: ir.Model, path: Path) -> Runs:
        """A model ready to run: written to `path` and loaded, or by parts where it is too large for that."""
        if self.by_parts:
            return PartedRunner(model, threads=self.options.threads)
        return open_session(write(model, path), threads=self.options.threads, level="none")

    def _first_sample(self) -> Feeds:
        """The first sample of `--calib`: its sizes, and its integers, are such as the model runs with."""
        if self.options.samples is None:
            return {}
        return next(feeds_from(self.options.samples, self.model), {})

    @property
    def sample_sizes(self) -> dict[str, tuple[int, ...]] | None:
        """The shapes of the first sample of `--calib`, None without one."""
        return {name: array.shape for name, array in self.sample.items()} or None

    @property
    def integers(self) -> dict[str, Any]:
        """The few integers of the sample that the inputs hold besides random numbers, by input."""
        found = {n: a for n, a in self.sample.items() if a.dtype.kind in "iu" and a.size <= FEW}
        return {name: array.tolist() for name, array in found.items()}

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

    def require_room(self) -> None:
        """InputError where the options need more than a part of a model in memory, and there is no room."""
        options = self.options
        wants = {
            "--calib": options.calibration is not None,
            "--prune layers": "layers" in options.prune,
            "--tokens": options.tokens is not None,
            f"--recover {options.recover}": options.recover not in ("auto", "none"),
            "--emit ort": options.emit == "ort",
            f"target {options.target}": not isinstance(
                backend_named(target_named(options.target).backend), OnnxRuntimeCpu
            ),
        }
        asked = next((name for name, wanted in wants.items() if wanted), None)
        if self.by_parts and asked:
            raise InputError(
                f"{self.too_large()}: {asked} needs it whole: raise --memory-limit, or leave it out"
            )

    def too_large(self) -> str:
        """Why the model is run by parts."""
        limit = memory.gigabytes(memory.ceiling())
        return f"the weights take {memory.gigabytes(self.weights)}, too much to run whole within {limit}"

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense model's files."""
        return self.weights if self.by_parts else size_of(self.dense.parent)

    def runs(self, sizes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether the dense model runs at these input sizes."""
        feeds = random_feeds(self.model, seed=self.options.seed, sizes=sizes, sample=self.sample)
        try:
            outputs = self.runner.run(feeds, seconds=PROBE_SECONDS)
        except InputError as e:
            self.failure = str(e)
            return False
        self._ran = {**dict(list(self._ran.items())[-1:]), _key(sizes): (feeds, outputs)}
        return True

    def analysed(self, model: ir.Model, like: Analysis | None = None) -> Analysis:
        """A model analysed as the options say, at sizes that the dense one runs at; those of `like`, if given."""
        asked = self.options
        runs = self.runs if like is None else lambda sizes: dict(sizes) in like.shapes.inputs
        return analyse(model, asked.dims, prune_io=asked.prune_io, runs=runs, sample=self.sample_sizes)

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

    def of_removal(self, analysis: Analysis, keep: Keep) -> list[Masked]:
        """The masked dense model per probe: what the pruned one must compute."""
        self.narrowed = Narrowed.of(analysis, keep)
        return [self._masked(masked(analysis, keep, probe), probe) for probe in range(len(self.feeds))]

    def _masked(self, model: ir.Model, probe: int) -> Masked:
        """Loads the model from a file that is gone afterwards."""
        if self.by_parts:
            runner = PartedRunner(model, threads=self.options.threads)
            return lambda: runner
        path = write(model, self.scratch / f"masked{probe}" / "model.onnx")

        def load() -> Runs:
            loaded = open_session(path, threads=self.options.threads, level="none")
            path.unlink()
            return loaded

        return load

    @property
    def small_feeds(self) -> Feeds | None:
        """The first inputs for the pruned model, None where they are those of the dense one."""
        return self.narrowed.feeds(self.feeds[0]) if self.narrowed.inputs else None

    def rest_on(self, runner: Runs) -> None:
        """From here on this model, of which layers are silenced, stands for the dense one in proofs."""
        self._reference = runner
        self.expected = [runner.run(feeds) for feeds in self.feeds]

    def reference(self, proof: Sequence[Masked]) -> Iterator[tuple[Feeds, Outputs, Callable[[], float]]]:
        """Per probe: the inputs, the wanted outputs, and how far rounding of the inputs moves them.

        The masked models of `proof` are loaded once; without any, the dense model is the reference.
        """
        for probe, feeds in enumerate(self.feeds):
            runner = proof[probe]() if proof else self._reference
            wanted = runner.run(feeds) if proof else self.expected[probe]
            yield feeds, wanted, partial(moved_by_rounding, runner, feeds, wanted)

    def of_artefact(self, backend: Backend, compiled: Path, model: ir.Model, plan: Plan) -> dict[str, Any]:
        """Load and run what was built; how close it is to the pruned graph and to the dense model."""
        runner = self.artefact(backend, compiled)
        plain = self.opened(model, self.scratch / "final" / "model.onnx")
        checked = {"checker": check(compiled, self.source)} if self.by_parts else {}
        worst = 0.0
        changed = plan.patterns or plan.quantization or plan.repaired or not self.by_parts
        for probe, feeds in enumerate(self.feeds):
            feeds = self.narrowed.feeds(feeds)
            wanted = plain.run(feeds) if changed else self.pruned[probe]
            found = runner.run(feeds)
            self._found = self._found or found
            error = worst_error(wanted, found)
            worst = max(worst, error)
            allowed = QUANTIZED if is_quantized(model) else _AMPLIFIED * tolerance_of(wanted)
            if plan.quantization or error <= allowed:
                continue
            if error > _AMPLIFIED * moved_by_rounding(plain, feeds, wanted):
                raise InternalError(
                    f"the built {compiled.name} differs from the graph it was built from by {error:.2g}"
                )
        known = worst if np.isfinite(worst) else None  # an output of another size, which only 8 bits may give
        return {"runs": True, "artefact_relative_error": known, **checked}

    def synthetic(self, number: int) -> Iterator[Feeds]:
        """Random inputs in place of calibration samples (`--calib synthetic`)."""
        sizes = {name: array.shape for name, array in self.feeds[0].items()}
        for draw in range(number):
            yield random_feeds(self.model, seed=self.options.seed + 1 + draw, sizes=sizes)

    def artefact(self, backend: Backend, compiled: Path) -> Any:
        """The compiled model, loaded once for all checks: large ones take their time."""
        if self._artefact is None or self._artefact[0] != compiled:
            path = backend.numerics_file(compiled)
            threads = self.options.threads
            loaded = (
                PartedRunner(load_ir(path), threads=threads)
                if self.by_parts
                else backend.load(path, threads=threads)
            )
            self._artefact = compiled, loaded
        return self._artefact[1]

    def close_to_dense(self, backend: Backend, compiled: Path) -> dict[str, Any]:
        """Fidelity of the compiled model on calibration samples where given, else on the random inputs."""
        if self.by_parts:
            wanted = self.narrowed.wanted(self.expected[0])
            return {**fidelity(wanted, self._found), "data": "random inputs"}
        runner = self.artefact(backend, compiled)
        feeds: Sequence[Mapping[str, np.ndarray]] = self.feeds[:1]
        data = "random inputs"
        if self.options.samples is not None:
            feeds = list(islice(feeds_from(self.options.samples, self.model), 8))
            data = "calibration samples"
        facts: dict[str, list[float]] = {}
        for one in feeds:
            for name, value in fidelity(
                self.narrowed.wanted(self.runner.run(one)), runner.run(self.narrowed.feeds(one))
            ).items():
                facts.setdefault(name, []).append(value)
        return {**{name: float(np.mean(values)) for name, values in facts.items()}, "data": data}


def _key(sizes: Mapping[str, tuple[int, ...]]) -> object:
    return tuple(sorted(sizes.items()))


def prove(job: Job, pruned: ir.Model, probes: Probes, proof: Sequence[Masked]) -> dict[str, Any]:
    """Check the pruned graph against the masked dense model. InternalError where they differ."""
    path = job.scratch / "pruned" / "model.onnx"
    runner = probes.opened(pruned, path)
    how = _parts(runner) if isinstance(runner, PartedRunner) else {"checker": check(path, probes.dense)}
    worst, floor = 0.0, None
    for feeds, wanted, moved in probes.reference(proof):
        found = runner.run(probes.narrowed.feeds(feeds))
        probes.pruned.append(found)
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
        **({"integers": probes.integers} if probes.integers else {}),
        **how,
    }


def _parts(runner: PartedRunner) -> dict[str, Any]:
    return {"by_parts": {"parts": len(runner.parts), "weight_bytes_per_part": memory.part_bytes()}}


def moved_by_rounding(runner: Runs, feeds: Feeds, wanted: Outputs) -> float:
    """The largest relative change of the outputs when the inputs move by about a rounding step."""
    moved = [worst_error(wanted, runner.run(_nudged(feeds, draw))) for draw in range(_DRAWS)]
    return max((m for m in moved if np.isfinite(m)), default=0.0)


def check(path: Path, dense: Path | None) -> str:
    """onnx's checker on a file we wrote: what it refuses is our fault, unless it refuses the dense one."""
    complaint = _complaint(path)
    if complaint is None:
        return "passed"
    if dense is None or _complaint(dense) is None:
        raise InternalError(f"the checker refuses the pruned model: {complaint}")
    return f"refuses the input as well: {complaint}"


def _complaint(path: Path) -> str | None:
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as e:
        return one_line(str(e), 300)
    return None


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
