"""Comparing outputs: how far two runs differ, and how much of that is rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.rules import Trait, traits_of

Outputs = Mapping[str, np.ndarray]

TOLERANCE = 1e-4
"""Largest relative error (of the output's largest value) that passes without question in float32."""

QUANTIZED = 0.05
"""What integer kernels may differ by from the float arithmetic of the same quantized graph: they round at other
places, by a quantization step each."""

LOOSE = {"float16": 1e-2, "bfloat16": 5e-2}


BLOCK = 1 << 20
"""Entries looked at in one go, so that comparing large outputs stays in the cache."""


def relative_error(reference: np.ndarray, found: np.ndarray) -> float:
    """max |difference| / max |reference| over finite entries; infinite where NaN or infinity differ.

    For integers and booleans: the share of entries that differ.
    """
    if reference.shape != found.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    if not is_float(reference):
        return float(np.mean(reference != found))
    largest = difference = 0.0
    for a, b in _blocks(reference, found):
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)) or not same_specials(a[~finite], b[~finite]):
            return float("inf")
        if not finite.all():
            a, b = a[finite], b[finite]
        if a.size:
            largest = max(largest, float(np.abs(a).max()))
            difference = max(difference, float(np.abs(a - b).max()))
    return difference / max(largest, 1e-12)


def _blocks(*arrays: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Equally shaped arrays, flat, block by block in float64."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield [array[start : start + BLOCK].astype(np.float64) for array in flat]


def worst_error(reference: Outputs, found: Outputs) -> float:
    """The largest relative error over all outputs; infinite where sequences are not equally long."""
    return max((_error(reference[name], found[name]) for name in reference), default=0.0)


def _error(reference: Any, found: Any) -> float:
    """Of one output: a tensor, None, or a sequence of such."""
    if isinstance(reference, list) and isinstance(found, list):
        if len(reference) != len(found):
            return float("inf")
        return max((_error(a, b) for a, b in zip(reference, found, strict=True)), default=0.0)
    if reference is None or found is None:
        return 0.0 if reference is found else float("inf")
    return relative_error(np.asarray(reference), np.asarray(found))


def is_quantized(model: ir.Model) -> bool:
    """Whether a graph computes in integers, or may: then kernels round differently at different levels."""
    return any(Trait.ROUNDS in traits_of(node) for node in model.graph.all_nodes())


def tolerance_of(outputs: Outputs) -> float:
    """The tolerance that the types of these outputs allow."""
    return max([TOLERANCE, *(LOOSE.get(_array(a).dtype.name, 0.0) for a in outputs.values())])


def decibels(signal: float, noise: float) -> float:
    """Energy of a signal to that of its error in dB, from -200 to 200, so that a report can hold it: 200 where nothing
    differs, -200 where there was nothing or what differs is no number."""
    if noise == 0:
        return 200.0
    if signal == 0 or not np.isfinite(noise):
        return -200.0
    return float(np.clip(10 * np.log10(signal / noise), -200.0, 200.0))


def sqnr(signal: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantization noise ratio in dB, where the signal is finite."""
    finite = np.isfinite(signal)
    exact = np.where(finite, signal, 0.0).astype(np.float64)
    with np.errstate(invalid="ignore"):
        noise = float(np.square(exact - np.where(finite, other, 0.0)).sum())
    return decibels(float(np.square(exact).sum()), noise)


def is_float(array: np.ndarray) -> bool:
    """Whether an array holds floating-point numbers, bfloat16 among them."""
    return array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "float16")


def _array(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else np.asarray([], dtype=bool)


def same_specials(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the same entries are NaN, and infinite with the same sign."""
    return bool(
        np.array_equal(np.isnan(a), np.isnan(b)) and np.array_equal(np.sign(a), np.sign(b), equal_nan=True)
    )
