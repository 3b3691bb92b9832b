"""NVFP4 and MXFP8 in numpy: small floats in blocks with a scale each, as NVIDIA's GPUs round to them.

NVFP4: blocks of 16 in E2M1, scales in E4M3, which a float32 number per tensor scales again (TensorRT's "double
quantization"). MXFP8: blocks of 32 in E4M3, scales in E8M0, a power of two (OCP Microscaling Formats (MX) v1.0); it is
the least that clips nothing, as cuDNN's and TensorRT's, where the specification's own example clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

E4M3_MAX = 448.0
LEAST_EXPONENT = -126
"""Of scales in E8M0, which has -127 too: no normal number of float32."""
E8M0_BIAS = 127


@dataclass(frozen=True)
class BlockFormat:
    """A type: the numbers of a block, the largest magnitude of an element, and the types of both."""

    name: str
    size: int
    largest: float
    element: type
    scale: type

    @property
    def has_tensor_scale(self) -> bool:
        """Whether the scales of blocks are scaled again, by one number for the tensor."""
        return self.scale is ml_dtypes.float8_e4m3fn

    def tensor_scale(self, largest: float) -> float:
        """The scale of the blocks' scales for a tensor whose largest magnitude this is: a normal number of float32, 1
        for zeros."""
        if not self.has_tensor_scale or largest <= 0:
            return 1.0
        return max(largest / self.largest / E4M3_MAX, float(np.finfo(np.float32).tiny))

    def encode(self, array: np.ndarray, axis: int, tensor_scale: float = 1.0) -> Encoded:
        """The nearest elements, ties to even, of a float array whose `axis` whole blocks divide."""
        axis %= array.ndim
        shape = (*array.shape[:axis], -1, self.size, *array.shape[axis + 1 :])
        blocks = np.asarray(array, np.float32).reshape(shape)
        largest = np.abs(blocks).max(axis=axis + 1, initial=0.0).astype(np.float32)
        scale, real = self._scales(largest / np.float32(self.largest), np.float32(tensor_scale))
        steps = np.expand_dims(np.where(real == 0, np.float32(1.0), real), axis + 1)
        levels = np.clip(blocks / steps, -self.largest, self.largest).astype(self.element)
        return Encoded(levels.reshape(array.shape), scale, axis, self, np.float32(tensor_scale))

    def _scales(self, wanted: np.ndarray, tensor_scale: np.float32) -> tuple[np.ndarray, np.ndarray]:
        """(as they are stored, the numbers that they stand for) of the scales that would fit exactly."""
        if self.has_tensor_scale:
            stored = np.minimum(wanted / tensor_scale, np.float32(E4M3_MAX)).astype(self.scale)
            return stored, stored.astype(np.float32) * tensor_scale
        fraction, exponent = np.frexp(np.maximum(wanted, np.float32(2.0**LEAST_EXPONENT)))
        power = np.where(fraction == 0.5, exponent - 1, exponent)  # the least power of two that is not below
        return (power + E8M0_BIAS).astype(np.uint8), np.ldexp(np.float32(1.0), power)

    def rounded(self, array: np.ndarray, axis: int, tensor_scale: float | None = None) -> np.ndarray:
        """The float32 numbers that an array becomes; its own scale where none is given."""
        if tensor_scale is None:
            tensor_scale = self.tensor_scale(float(np.abs(array).max(initial=0.0)))
        return self.encode(array, axis, tensor_scale).decode()


@dataclass(frozen=True)
class Encoded:
    """Elements in the layout of the array; scales have one slot for each block on `axis`: E4M3, or E8M0 as uint8."""

    levels: np.ndarray
    scales: np.ndarray
    axis: int
    form: BlockFormat
    tensor_scale: np.float32

    def decode(self) -> np.ndarray:
        """The float32 numbers that it stands for."""
        if self.form.has_tensor_scale:
            real = self.scales.astype(np.float32) * self.tensor_scale
        else:
            real = np.ldexp(np.float32(1.0), self.scales.astype(np.int32) - E8M0_BIAS)
        return np.asarray(
            self.levels.astype(np.float32) * np.repeat(real, self.form.size, self.axis), np.float32
        )


NVFP4 = BlockFormat("nvfp4", 16, 6.0, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn)
MXFP8 = BlockFormat("mxfp8", 32, E4M3_MAX, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu)
FORMATS: Mapping[str, BlockFormat] = {form.name: form for form in (NVFP4, MXFP8)}
