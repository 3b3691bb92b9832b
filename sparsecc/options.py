"""What a compile was asked for, resolved: every option with its value, as the recipe records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeGuard, get_type_hints

from sparsecc.data.files import SYNTHETIC
from sparsecc.errors import InputError, unknown
from sparsecc.escaping import one_line
from sparsecc.graph.kinds import KINDS
from sparsecc.targets import target_named

Dims = tuple[int, ...] | tuple[tuple[int, ...], ...]

RECOVERIES = ("auto", "none", "bias", "bn", "reconstruct", "distill")
KEYED = ("build", "quantize_options", "sparsity_options")
"""Options that hold KEY=VALUE pairs."""

LISTED = ("keep", "only", "prune")
"""Options that hold several names."""

LAYER_CRITERIA = ("output", "divergence", "angular", "span")
"""How layers to leave out are chosen: by a distance of the outputs, or as a span of the residual stream."""

METRICS = ("macs", "params", "channels", "latency")


SMALLEST_MEMORY = 16 << 20
"""Bytes that calibration needs at least."""


SWITCHES = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
"""How an option that is on or off may be written."""


@dataclass(frozen=True)
class CompileOptions:
    """Options of `compile`.

    `inputs` maps input names to shapes, or to (least, usual, largest) shapes for targets with profiles;
    `keep` and `only` are name patterns; `tokens` is the share of patches that is kept; `build` holds options of the
    target's own builder, `quantize_options` and `sparsity_options` those of the passes behind `quantize` and
    `sparsity`.
    """

    target: str = "onnxruntime"
    ratio: float | None = None
    metric: str = "macs"
    speedup: float | None = None
    latency: float | None = None
    fps: float | None = None
    max_drop: float | None = None
    size: float | None = None
    working_memory: float | None = None
    calibration: str | None = None
    calibration_general: str | None = None
    calib_memory: int = 2 << 30
    evaluate: str | None = None
    inputs: tuple[tuple[str, Dims], ...] = ()
    criterion: str = "auto"
    allocator: str = "auto"
    align: str | int = "auto"
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    prune: tuple[str, ...] = ("channels", "heads", "head_dims")
    prune_io: bool = False
    layer_criterion: str = "output"
    tokens: float | None = None
    sparsity: str | None = None
    quantize: str | None = None
    recover: str = "auto"
    recover_budget: str = "2m"
    device: str = "local"
    seed: int = 0
    threads: int = 1
    measure: bool = True
    emit: str | None = None
    build: tuple[tuple[str, str], ...] = ()
    quantize_options: tuple[tuple[str, str], ...] = ()
    sparsity_options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        target_named(self.target)
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise InputError(f"ratio {self.ratio} is outside [0, 1): 0.5 removes half of the {self.metric}")
        if self.tokens is not None and not 0 < self.tokens <= 1:
            raise InputError(f"tokens {self.tokens} is outside (0, 1]: 0.5 keeps half of an image's patches")
        if self.calib_memory < SMALLEST_MEMORY:
            least = f"{SMALLEST_MEMORY >> 20}MiB"
            raise InputError(f"--calib-memory {self.calib_memory} bytes is too little: give {least} or more")
        if self.metric not in METRICS:
            raise unknown("metric", "metrics", self.metric, METRICS)
        if self.layer_criterion not in LAYER_CRITERIA:
            raise unknown("layer criterion", "layer criteria", self.layer_criterion, LAYER_CRITERIA)
        if self.recover not in RECOVERIES:
            raise unknown("recovery", "recoveries", self.recover, RECOVERIES)
        for kind in self.prune:
            if kind not in KINDS:
                raise unknown("kind in --prune", "kinds", kind, KINDS)

    @staticmethod
    def of(given: Mapping[str, Any]) -> CompileOptions:
        """From plain data (a recipe, a request). InputError names an unknown option and the closest one."""
        known = tuple(f.name for f in fields(CompileOptions))
        values = dict(given)
        for name in values:
            if name not in known:
                raise unknown("option", "options", name, known)
        _require_types(values)
        for name in LISTED:
            if name in values:
                values[name] = tuple(values[name])
        if "inputs" in values:
            values["inputs"] = _shapes(values["inputs"])
        for name in KEYED:
            if name in values:
                values[name] = tuple(sorted((str(k), str(v)) for k, v in dict(values[name]).items()))
        return CompileOptions(**values)

    def to_recipe(self) -> dict[str, Any]:
        """Plain data that `of` reads back."""
        recipe = {k: v for k, v in asdict(self).items() if v is not None}
        recipe["inputs"] = {name: _listed(shape) for name, shape in self.inputs}
        recipe |= {name: dict(getattr(self, name)) for name in KEYED}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in recipe.items()}

    @property
    def samples(self) -> str | None:
        """Where real samples come from; None where there are none, or random inputs were asked for."""
        return None if self.calibration == SYNTHETIC else self.calibration

    @property
    def mixes_types(self) -> bool:
        """Whether layers have different types, for which `size` is then the budget."""
        return self.quantize == "mixed"

    @property
    def dims(self) -> dict[str, tuple[int, ...]]:
        """The inputs whose shape is fixed."""
        return {name: shape for name, shape in self.inputs if _is_shape(shape)}

    @property
    def profiles(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """The inputs with a range: (least, usual, largest) shape."""
        return {name: shape for name, shape in self.inputs if _is_range(shape)}


def _require_types(values: Mapping[str, Any]) -> None:
    """InputError for a value of another type than its option has: plain data may come from a stranger."""
    hints = get_type_hints(CompileOptions)
    for name, value in values.items():
        if name in LISTED:
            sound = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
        elif name == "inputs":
            sound = _are_shapes(value)
        elif name in KEYED:
            sound = _are_pairs(value)
        else:
            sound = _is_of(value, hints[name])
        if not sound:
            raise InputError(
                f"option {name} cannot be {one_line(repr(value), 60)}: see `sparsecc compile --help`"
            )


def _is_of(value: Any, hint: Any) -> bool:
    """Whole numbers are numbers; flags are not."""
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint) or (isinstance(value, int) and isinstance(0.0, hint))


def _are_shapes(given: Any) -> bool:
    if not _are_pairs(given):
        return False
    shapes = given.values() if isinstance(given, Mapping) else [shape for _, shape in given]
    return all(are_sizes(s) or (isinstance(s, list | tuple) and all(map(are_sizes, s))) for s in shapes)


def are_sizes(shape: Any) -> bool:
    """Whether it is a shape: a list of whole numbers, none negative."""
    return isinstance(shape, list | tuple) and all(type(d) is int and d >= 0 for d in shape)


def _are_pairs(given: Any) -> bool:
    """A mapping of names, or a list of (name, value)."""
    if isinstance(given, Mapping):
        return all(isinstance(name, str) for name in given)
    return isinstance(given, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in given
    )


def _is_shape(shape: Dims) -> TypeGuard[tuple[int, ...]]:
    return all(isinstance(d, int) for d in shape)


def _is_range(shape: Dims) -> TypeGuard[tuple[tuple[int, ...], ...]]:
    return not _is_shape(shape)


def _listed(shape: Dims) -> list[Any]:
    return [d if isinstance(d, int) else list(d) for d in shape]


def _shapes(given: Any) -> tuple[tuple[str, Dims], ...]:
    pairs = given.items() if isinstance(given, Mapping) else given
    return tuple((str(name), _shape(shape)) for name, shape in pairs)


def _shape(shape: Any) -> Dims:
    if all(isinstance(d, int) for d in shape):
        return tuple(int(d) for d in shape)
    return tuple(tuple(int(d) for d in part) for part in shape)
