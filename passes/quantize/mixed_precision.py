"""A type for every layer under a budget: each is measured alone in each type, one dynamic program chooses.

The solver is that of "MC-MoE: Mixture Compressor for Mixture-of-Experts LLMs Gains More" (Huang et al., 2025) and
"MixDQ" (Zhao et al., 2024), over the exact bytes that a type takes; the gain is BAQ's ("Efficient Bit Allocation
Quantization for Large Language Models", 2025).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.allocators.dynamic_program import additive_allocate
from sparsecc.compilation import Compilation
from sparsecc.errors import GoalError, InputError
from sparsecc.graph.linear_layers import SINGLE_OR_HALF, LinearLayer
from sparsecc.ir.versions import raise_opset
from sparsecc.measure.statistics import LogRatio
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize.by_hand import FLOAT, forms_by_hand, written_by_hand
from sparsecc.passes.quantize.coordinate_descent import round_weights
from sparsecc.passes.quantize.float16 import convert_to_half
from sparsecc.passes.quantize.mixed_speed import Choice, choose_within_time, require_reach
from sparsecc.passes.quantize.model_error import Meter
from sparsecc.passes.quantize.sensitivity import work_of
from sparsecc.passes.quantize.spec import QuantizationPlan
from sparsecc.passes.quantize.static import StaticOptions, StaticQuantizer
from sparsecc.passes.quantize.stopwatch import Stopwatch, is_timed
from sparsecc.passes.quantize.weight_only import (
    BLOCKED_OPSET,
    WeightOnlyOptions,
    quantize_weights,
    why_not_int4,
)
from sparsecc.passes.weights.linear_layers import find_layers
from sparsecc.plan import Plan
from sparsecc.remarks import Remark

STATIC = ("int8", "fp8")
BLOCKS = (32, 128)
"""Inputs per scale that int4 layers may have."""
MIXED = (*STATIC, "int4")
PADDED = 0.1
"""A wider block that adds a larger share of columns than this to a layer saves nothing."""
ROUNDS = 8

Table = Mapping[str, Mapping[str, "Point"]]


@dataclass(frozen=True)
class Point:
    """The relative output error of a model on the calibration data, its bytes, and its time relative to float where
    that counts."""

    error: float
    bytes: int
    time: float = 0.0

    def to_json(self) -> dict[str, float]:
        return {"error": self.error, "bytes": self.bytes} | ({"time": self.time} if self.time else {})


@dataclass(frozen=True)
class MixOptions:
    """What is asked: the types to choose from, and at most so many bytes, or so many times the speed of float, or
    the fewest bytes that lose `max_drop`; or with `layers` the types by hand."""

    types: tuple[str, ...]
    static: StaticOptions
    size: float | None = None
    speedup: float | None = None
    max_drop: float | None = None
    algorithm: str = "rtn"
    exclude: tuple[str, ...] = ()
    rest: str = ""
    keep_io: bool = True
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not set(self.types) <= set(MIXED) or not self.types or set(STATIC) <= set(self.types):
            raise InputError(
                f"quantize: types {', '.join(self.types) or 'none'}: give int4 and one of {', '.join(STATIC)}"
            )
        if self.size is None and self.speedup is None and self.max_drop is None and not self.layers:
            raise InputError(
                "quantize: mixed needs a budget: give --size 40MB, or --quantize-option speedup=2 or max_drop=0.01, "
                "or the types by hand with layers=head=float,body=int8"
            )
        if self.layers and (self.size is not None or self.speedup is not None):
            raise InputError("quantize: layers says the types by hand: leave out --size and speedup")
        if self.speedup is not None and self.speedup <= 0:
            raise InputError(
                f"quantize: speedup {self.speedup:g} is none: 2 asks for twice the speed of float"
            )
        if self.size is not None and self.speedup is not None:
            raise InputError("quantize: mixed takes one budget: give --size or --quantize-option speedup")


@dataclass
class Writer:
    """Writes any choice of forms into the model or a clone of it. `forms` are those that each layer may have."""

    model: ir.Model
    compilation: Compilation
    options: MixOptions
    forms: dict[str, tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        to_onnxruntime = self.compilation.target.dialect == "onnxruntime"
        if "int4" in self.options.types and not to_onnxruntime:
            raise_opset(self.model, BLOCKED_OPSET)
        self.static = next((t for t in self.options.types if t in STATIC), "")
        self.quantizer, integer = None, set()
        if self.static:
            self.quantizer = StaticQuantizer(self.model, self.compilation, self.options.static)
            integer = {layer.name for layer in self.quantizer.decide(self.model, self.options.exclude).layers}
        layers, self.remarks = find_layers(self.model, SINGLE_OR_HALF)
        self.forms = {}
        for layer in layers:
            found = [self.static] if layer.name in integer else []
            if "int4" in self.options.types and layer.name not in self.options.exclude:
                fitting = [b for b in BLOCKS if b == BLOCKS[0] or _padding(layer, b) < PADDED]
                found += [f"int4/{b}" for b in fitting if not why_not_int4(layer, b, to_onnxruntime)]
            self.forms[layer.name] = (FLOAT, *found)

    def written(self, choice: Choice) -> ir.Model:
        """A clone in these forms, rounded to nearest."""
        clone = self.model.clone()
        self.write(clone, choice, Plan({}), "rtn")
        return clone

    def write(
        self, model: ir.Model, choice: Choice, plan: QuantizationPlan, algorithm: str
    ) -> dict[str, Any]:
        """Give the layers of `model` their forms; facts of each type."""
        facts: dict[str, Any] = {}
        others = [name for name in self.forms if not self.static or choice[name] != self.static]
        if self.quantizer is not None and len(others) < len(self.forms):
            exclude = (*self.options.exclude, *others)
            decision = self.quantizer.decide(model, exclude)
            self.quantizer.spec(decision).record(plan)
            facts |= self.quantizer.facts(decision)
            if algorithm == "gptq":
                limit = 63 if self.options.static.reduce_range else 127
                round_weights(model, decision.layers, self.compilation, limit)
            self.quantizer.lower(model, exclude)
        for block in BLOCKS:
            exclude = tuple(name for name in self.forms if choice[name] != f"int4/{block}")
            if len(exclude) < len(self.forms):
                how = WeightOnlyOptions(algorithm, block)
                quantize_weights(model, plan, self.compilation, how, exclude)
        return facts

    def complete(self, model: ir.Model) -> ir.Model:
        """What is left in float in the type of the rest."""
        if self.options.rest:
            keep_io = self.options.keep_io
            convert_to_half(model, Plan({}), self.compilation, self.options.rest, (), keep_io=keep_io)
        return model


def mix_types(
    model: ir.Model, plan: QuantizationPlan, compilation: Compilation, options: MixOptions
) -> PassResult:
    """Give every layer the type that loses least in all within the budget. GoalError where it is out of reach.

    Losses of single layers are added up to choose; the choice itself, and every type alone, are measured again,
    and where one type alone is better within the budget, that is taken.
    """
    if options.speedup is not None and not is_timed(compilation):
        raise InputError(
            "quantize: speedup is timed on this machine: use --target onnxruntime, and not --no-measure or --device"
        )
    writer = Writer(model, compilation, options)
    watch = Stopwatch(compilation, model) if options.speedup is not None else None
    judge = Judge(writer, Meter(model, compilation), watch)
    if options.layers:
        return _by_hand(judge, plan)
    whole = judge.untimed(dict.fromkeys(writer.forms, FLOAT))
    table = measured(judge, whole)
    uniform = {
        form: judge.point(_uniform(writer.forms, form))
        for form in sorted({form for forms in writer.forms.values() for form in forms} - {FLOAT})
    }
    if options.speedup is None:
        choice, found = _chosen(judge, table, whole)
    else:
        choice, found = _fast(judge, table, uniform, options.speedup)
    kind = "mixed"
    for form, point in uniform.items():
        if _fits(point, options) and _rank(point, options) < _rank(found, options):
            choice, found, kind = _uniform(writer.forms, form), point, form
    if options.max_drop is not None and found.error > options.max_drop:
        raise GoalError(
            f"quantize: within that size or time the outputs lose {found.error:.2%}, over "
            f"{options.max_drop:.2%}: allow more of either"
        )
    facts = _facts(choice, found, table, uniform)
    facts |= {"chosen": kind, "float_bytes": whole.bytes, "gain_of_widths": _gain(writer, table)}
    if judge.watch is not None:
        facts["speedup"] = judge.ratio(choice, brief=False).to_json()
        names = [node.name or "" for node in model.graph]
        asked = {key: text for key, text in compilation.options.quantize_options.items() if key != "speedup"}
        asked["layers"] = written_by_hand(choice, names)
        compilation.measured_options |= {"quantize_options": asked}
    return _written(writer, choice, plan, facts)


def _by_hand(judge: Judge, plan: QuantizationPlan) -> PassResult:
    """The types that the user named."""
    writer = judge.writer
    choice = forms_by_hand(writer.model, writer.options.layers, writer.forms)
    found = judge.untimed(choice)
    facts = {
        "type": "mixed",
        "chosen": "by hand",
        "types": choice,
        "error": found.error,
        "bytes": found.bytes,
    }
    facts["nodes"] = [name for name, form in choice.items() if form != FLOAT]
    return _written(writer, choice, plan, facts)


def _written(writer: Writer, choice: Choice, plan: QuantizationPlan, facts: dict[str, Any]) -> PassResult:
    facts |= writer.write(writer.model, choice, plan, writer.options.algorithm)
    left = [Remark(name, "left in float") for name, form in choice.items() if form == FLOAT]
    return PassResult(facts, (*writer.remarks, *left))


def _facts(choice: Choice, found: Point, table: Table, uniform: Mapping[str, Point]) -> dict[str, Any]:
    """For the report: the choice, what it gives, and what single types would have given."""
    return {
        "type": "mixed",
        "types": dict(choice),
        "error": found.error,
        "bytes": found.bytes,
        "nodes": [name for name, form in choice.items() if form != FLOAT],
        "predicted_error": sum(table[name][form].error for name, form in choice.items()),
        "uniform": {form: point.to_json() for form, point in uniform.items()},
        "losses": {name: {form: p.error for form, p in row.items()} for name, row in table.items()},
    }


@dataclass(frozen=True)
class Judge:
    """What models in any choice of forms lose and take."""

    writer: Writer
    meter: Meter
    watch: Stopwatch | None

    def point(self, choice: Choice) -> Point:
        """Everything that counts."""
        found = self.untimed(choice)
        return found if self.watch is None else replace(found, time=self.time(choice))

    def untimed(self, choice: Choice) -> Point:
        """Loss and bytes."""
        return Point(*self.meter.measure(self._written(choice)))

    def time(self, choice: Choice) -> float:
        """The time relative to float."""
        return math.exp(self.ratio(choice).median)

    def ratio(self, choice: Choice, *, brief: bool = True) -> LogRatio:
        """ln of the time relative to float, with an interval."""
        assert self.watch is not None
        return self.watch.ratio(self.watch.in_float, self.watch.file(self._written(choice)), brief=brief)

    def _written(self, choice: Choice) -> ir.Model:
        return self.writer.complete(self.writer.written(choice))


def measured(judge: Judge, whole: Point) -> Table:
    """Every layer alone in each of its forms: what it loses, and the bytes of the model then."""
    table: dict[str, dict[str, Point]] = {}
    writer = judge.writer
    floats = dict.fromkeys(writer.forms, FLOAT)
    for number, (name, forms) in enumerate(writer.forms.items()):
        table[name] = {FLOAT: Point(0.0, whole.bytes)}
        for form in forms[1:]:
            table[name][form] = judge.untimed({**floats, name: form})
        writer.compilation.progress("types", (number + 1) / len(writer.forms))
    return table


def _padding(layer: LinearLayer, block: int) -> float:
    """The share of columns that whole blocks have beyond the layer's."""
    inputs = layer.shape[layer.in_axis]
    return -(-inputs // block) * block / inputs - 1


def _uniform(forms: Mapping[str, Sequence[str]], form: str) -> dict[str, str]:
    """One form for all layers that may have it."""
    return {name: form if form in known else FLOAT for name, known in forms.items()}


def _fits(point: Point, options: MixOptions) -> bool:
    small = options.size is None or point.bytes <= options.size
    fast = options.speedup is None or point.time <= 1 / options.speedup
    return small and fast and (options.max_drop is None or point.error <= options.max_drop)


def _rank(point: Point, options: MixOptions) -> float:
    """What is to be small: the bytes where only the loss is bounded, else the loss."""
    return point.bytes if options.size is None and options.speedup is None else point.error


def _fast(
    judge: Judge, table: Table, uniform: Mapping[str, Point], speedup: float
) -> tuple[dict[str, str], Point]:
    """The choice under a speed, from the fastest single type, or from float where that is."""
    writer, times = judge.writer, {FLOAT: 1.0} | {form: point.time for form, point in uniform.items()}
    form = min(times, key=lambda one: times[one])
    base = _uniform(writer.forms, form)
    require_reach(judge.ratio(base, brief=False), speedup)
    losses = {name: {form: point.error for form, point in row.items()} for name, row in table.items()}
    layers = [layer for layer in find_layers(writer.model, SINGLE_OR_HALF)[0] if layer.name in losses]
    work = {layer.name: work_of(writer.quantizer, layer) for layer in layers}
    shares = {name: each / (sum(work.values()) or 1.0) for name, each in work.items()}
    progress = partial(writer.compilation.progress, "time types")
    choice = choose_within_time(losses, shares, times, base, judge.time, speedup, progress)
    return choice, judge.point(choice)


def _chosen(judge: Judge, table: Table, whole: Point) -> tuple[dict[str, str], Point]:
    """The solver's choice, its budget tightened until what it gives keeps the real one."""
    writer = judge.writer
    size, max_drop = writer.options.size, writer.options.max_drop
    budget = size if size is not None else max_drop or 0.0
    room = budget
    for _ in range(ROUNDS):
        choice = allocate(table, whole.bytes, room, by_size=size is not None)
        if choice is None:
            break
        found = judge.point(choice)
        spent = found.bytes if size is not None else found.error
        if spent <= budget:
            return choice, found
        room = room - 1.05 * (spent - budget) if size is not None else room * min(0.7, 0.9 * budget / spent)
    if size is None:
        return dict.fromkeys(writer.forms, FLOAT), whole
    least = {name: min(row, key=lambda form: row[form].bytes) for name, row in table.items()}
    smallest = judge.point(least)
    if smallest.bytes > size:
        raise GoalError(
            f"quantize: {size:.0f} bytes are out of reach by types alone, the smallest is {smallest.bytes}: "
            "give more, or remove some of it with --ratio"
        )
    return least, smallest


def allocate(table: Table, whole: int, room: float, *, by_size: bool) -> dict[str, str] | None:
    """The forms of least summed loss within `room` bytes, or else of least bytes within a summed loss of `room`.

    `whole` are the bytes of the model in float. None where nothing fits.
    """
    losses = [[point.error for point in row.values()] for row in table.values()]
    saved = [[point.bytes - whole for point in row.values()] for row in table.values()]
    least = [min(row) for row in saved]
    extra = [[float(change - low) for change in row] for row, low in zip(saved, least, strict=True)]
    if by_size:
        picks = additive_allocate(losses, extra, room - whole - sum(least))
    else:
        picks = additive_allocate(extra, losses, room)
    if picks is None:
        return None
    return {name: list(row)[pick] for (name, row), pick in zip(table.items(), picks, strict=True)}


def widths(losses: np.ndarray, numbers: np.ndarray, mean: float) -> np.ndarray:
    """Real-valued bits of items that lose losses * 4^-bits, `numbers` weights each, `mean` bits per weight (BAQ).

    The optimum loses equally much per weight everywhere.
    """
    each = np.log2(losses / numbers)
    return np.asarray(mean + (each - np.average(each, weights=numbers)) / 2)


def gain(losses: np.ndarray, numbers: np.ndarray) -> float:
    """The loss with those widths relative to equal widths: geometric over arithmetic mean of the losses."""
    each = losses / numbers
    return float(np.exp(np.average(np.log(each), weights=numbers)) / np.average(each, weights=numbers))


def _gain(writer: Writer, table: Table) -> float | None:
    """How much free widths could win at most, by the losses of the coarsest form; None without losses."""
    layers = {layer.name: layer for layer in find_layers(writer.model, SINGLE_OR_HALF)[0]}
    rows = [(max(p.error for p in row.values()), np.prod(layers[name].shape)) for name, row in table.items()]
    known = np.array([row for row in rows if row[0] > 0], np.float64)
    return round(gain(known[:, 0], known[:, 1]), 4) if len(known) else None
