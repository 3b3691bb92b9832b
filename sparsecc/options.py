"""What a compile was asked for, resolved: every option with its value, as the recipe records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeGuard

from sparsecc.errors import InputError
from sparsecc.graph.kinds import KINDS
from sparsecc.names import unknown
from sparsecc.targets import target_named

Dims = tuple[int, ...] | tuple[tuple[int, ...], ...]

RECOVERIES = ("auto", "none", "bias", "bn", "reconstruct", "distill")
KEYED = ("build", "quantize_options", "sparsity_options")
"""Options that hold KEY=VALUE pairs."""

METRICS = ("macs", "params", "channels", "latency")


@dataclass(frozen=True)
class CompileOptions:
    """Options of `compile`.

    `inputs` maps input names to shapes, or to (least, usual, largest) shapes for targets with profiles;
    `keep` and `only` are name patterns; `build` holds options of the target's own builder, `quantize_options`
    and `sparsity_options` those of the passes behind `quantize` and `sparsity`.
    """

    target: str = "onnxruntime"
    ratio: float | None = None
    metric: str = "macs"
    speedup: float | None = None
    latency: float | None = None
    fps: float | None = None
    max_drop: float | None = None
    size: float | None = None
    calibration: str | None = None
    evaluate: str | None = None
    inputs: tuple[tuple[str, Dims], ...] = ()
    criterion: str = "auto"
    allocator: str = "auto"
    align: str | int = "auto"
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    prune: tuple[str, ...] = ("channels", "heads", "head_dims")
    prune_io: bool = False
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
        if self.metric not in METRICS:
            raise unknown("metric", "metrics", self.metric, METRICS)
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
        for name in ("keep", "only", "prune"):
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
    def dims(self) -> dict[str, tuple[int, ...]]:
        """The inputs whose shape is fixed."""
        return {name: shape for name, shape in self.inputs if _is_shape(shape)}

    @property
    def profiles(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """The inputs with a range: (least, usual, largest) shape."""
        return {name: shape for name, shape in self.inputs if _is_range(shape)}


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
