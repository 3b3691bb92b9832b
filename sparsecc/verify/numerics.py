"""Comparing outputs: how far two runs differ, and how much of that is rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Outputs = Mapping[str, np.ndarray]

TOLERANCE = 1e-4
"""Largest relative error (of the output's largest value) that passes without question in float32."""

LOOSE = {"float16": 1e-2, "bfloat16": 5e-2}


def relative_error(reference: np.ndarray, found: np.ndarray) -> float:
    """max |difference| / max |reference| over finite entries; infinite where NaN or infinity differ.

    For integers and booleans: the share of entries that differ.
    """
    if reference.shape != found.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    if not _is_float(reference):
        return float(np.mean(reference != found))
    a, b = reference.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not _same_specials(a[~finite], b[~finite]):
        return float("inf")
    if not finite.any():
        return 0.0
    largest = float(np.abs(a[finite]).max())
    return float(np.abs(a[finite] - b[finite]).max()) / max(largest, 1e-12)


def worst_error(reference: Outputs, found: Outputs) -> float:
    """The largest relative error over all outputs."""
    return max((relative_error(_array(reference[n]), _array(found[n])) for n in reference), default=0.0)


def tolerance_of(outputs: Outputs) -> float:
    """The tolerance that the types of these outputs allow."""
    return max([TOLERANCE, *(LOOSE.get(_array(a).dtype.name, 0.0) for a in outputs.values())])


def fidelity(reference: Outputs, found: Outputs) -> dict[str, Any]:
    """How close a compiled model's outputs are to the dense one's, without labels.

    cosine: of all float outputs flattened; sqnr_db: signal to error in decibels; top1_agreement: share of rows
    whose largest entry is the same, where the first output looks like class scores (rank 2, more than one class).
    """
    floats = [(reference[n], found[n]) for n in reference if _is_float(_array(reference[n]))]
    floats = [(a, b) for a, b in floats if a.shape == b.shape and a.size]
    if not floats:
        return {}
    a = np.concatenate([x.astype(np.float64).ravel() for x, _ in floats])
    b = np.concatenate([y.astype(np.float64).ravel() for _, y in floats])
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    noise, signal = float(np.sum((a - b) ** 2)), float(np.sum(a**2))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    facts: dict[str, Any] = {
        "cosine": float(a @ b) / norms if norms else 1.0,
        "sqnr_db": min(10 * np.log10(signal / noise), 200.0) if noise and signal else 200.0,
    }
    first, other = floats[0]
    if first.ndim == 2 and first.shape[1] > 1:
        facts["top1_agreement"] = float(np.mean(first.argmax(1) == other.argmax(1)))
    return facts


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "float16")


def _array(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else np.asarray([], dtype=bool)


def _same_specials(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(
        np.array_equal(np.isnan(a), np.isnan(b)) and np.array_equal(np.sign(a), np.sign(b), equal_nan=True)
    )
