"""The target-neutral quantization spec: which values get which integers, decided once, lowered per target."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import ml_dtypes
import numpy as np

FP8_MAX = 448.0
SMALLEST = float(np.finfo(np.float32).tiny)


class QuantizationPlan(Protocol):
    """What quantization and patterns write of a Plan."""

    patterns: dict[str, dict[str, Any]]
    quantization: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ValueSpec:
    """How one value is represented.

    `granularity` is tensor, channel (a scale per slot of `axis`) or block (one per `block` slots of it).
    `low` and `high` are the real range per tensor; weights take theirs from their numbers.
    """

    type: str
    role: str
    granularity: str = "tensor"
    axis: int | None = None
    block: int | None = None
    symmetric: bool = True
    source: str = "weights"
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for the plan: fields that say nothing are left out."""
        data = {key: value for key, value in asdict(self).items() if value is not None}
        data["scheme"] = f"{'symmetric' if self.symmetric else 'asymmetric'} per {self.granularity}"
        return data


@dataclass
class QuantizationSpec:
    """What is quantized: nodes by name, values by name."""

    nodes: list[str] = field(default_factory=list)
    values: dict[str, ValueSpec] = field(default_factory=dict)

    def record(self, plan: QuantizationPlan) -> None:
        """Write every value's entry into the plan."""
        for name, value in self.values.items():
            plan.quantization[name] = value.to_json()


@dataclass(frozen=True)
class Scale:
    """Real value = (integer - zero_point) * scale. Both are arrays: () per tensor, (n,) per channel."""

    scale: np.ndarray
    zero_point: np.ndarray


def scale_of_range(low: float, high: float, type_: str, *, symmetric: bool) -> Scale:
    """The scale that covers [low, high], widened to hold zero, which is always represented exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if type_ == "fp8":
        scale = _usable(max(-low, high) / FP8_MAX)
        return Scale(np.array(scale, np.float32), np.zeros((), ml_dtypes.float8_e4m3fn))
    dtype = np.uint8 if type_ == "uint8" else np.int8
    if symmetric:
        scale = _usable(max(-low, high) / 127)
        middle = 128 if type_ == "uint8" else 0
        return Scale(np.array(scale, np.float32), np.array(middle, dtype))
    step = _usable((high - low) / 255)
    bottom = 0 if type_ == "uint8" else -128
    zero = int(np.clip(round(bottom - low / step), bottom, bottom + 255))
    return Scale(np.array(step, np.float32), np.array(zero, dtype))


def _usable(scale: float) -> float:
    """A range of next to nothing gets the scale 1: its numbers all become zero."""
    return scale if scale > SMALLEST else 1.0


def weight_scale(
    weight: np.ndarray, axis: int | None, type_: str = "int8", *, limit: float | None = None
) -> np.ndarray:
    """Symmetric scales of a weight: (n,) along `axis`, or () for the whole tensor. Never zero.

    A channel of zeros has the smallest scale of the others: its bias is rounded in steps of it.
    """
    top = limit or (FP8_MAX if type_ == "fp8" else 127.0)
    axes = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=axes) if weight.size else np.zeros(())
    scale = np.asarray(largest, np.float32) / np.float32(top)
    usable = scale > SMALLEST
    least = scale[usable].min() if usable.any() else 1.0
    return np.asarray(np.where(usable, scale, least), np.float32)


def along(scale: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    """Reshape scales so that they broadcast along `axis` of a tensor of that rank."""
    if scale.ndim == 0 or axis is None:
        return scale
    shape = [1] * rank
    shape[axis] = -1
    return scale.reshape(shape)


def quantize_weight(
    weight: np.ndarray, scale: np.ndarray, axis: int | None, *, limit: int = 127
) -> np.ndarray:
    """Symmetric int8 numbers of a weight; zero stays zero."""
    levels = np.rint(weight / along(scale, axis, weight.ndim))
    return np.asarray(np.clip(levels, -limit, limit), np.int8)


def fake_quantize(x: np.ndarray, scale: Scale) -> np.ndarray:
    """A tensor as it looks after being quantized and dequantized per tensor."""
    if scale.zero_point.dtype == ml_dtypes.float8_e4m3fn:
        levels = np.clip(x / scale.scale, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
        return np.asarray(levels.astype(np.float32) * scale.scale)
    info = np.iinfo(scale.zero_point.dtype)
    zero = scale.zero_point.astype(np.float32)
    levels = np.clip(np.rint(x / scale.scale) + zero, info.min, info.max)
    return np.asarray((levels - zero) * scale.scale, np.float32)
