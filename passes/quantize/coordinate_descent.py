"""Rounding by coordinate descent: exchange levels one column at a time while the output error falls.

Starts from any rounding. The idea of choosing up or down by the layer's output is AdaRound's (Nagel et al., 2020);
cyclic descent on X^T X solves it without training (QuantEase, Behdin et al., 2023).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.graph.linear_layers import LinearLayer
from sparsecc.ir.mapped import Spool
from sparsecc.passes.quantize.rounding import Blocks, gptq, round_to_nearest
from sparsecc.passes.weights.input_moments import InputMoments, damped, walk_inputs
from sparsecc.remarks import Remark

ROUNDS = 4
_DAMPING = 1e-4


def descend(
    matrix: np.ndarray, gram: np.ndarray, start: Blocks, fixed: np.ndarray, *, bits: int, least: int = 0
) -> Blocks:
    """Levels that lose no more than those of `start`, and the same scales.

    matrix, fixed (out, k); gram (k, k) is X^T X. Levels go from `least` to 2^bits - 1; those that are `fixed` stay.
    """
    columns = matrix.shape[1]
    safe = damped(gram, _DAMPING)
    scale = np.repeat(start.scale, start.size, axis=1)[:, :columns].astype(np.float64)
    levels = start.levels.astype(np.float64)
    pull = (start.real() - matrix.astype(np.float64)) @ safe
    for _ in range(ROUNDS):
        changed = 0
        for column in range(columns):
            step = scale[:, column]
            wanted = np.rint(levels[:, column] - pull[:, column] / (safe[column, column] * step))
            change = np.clip(wanted, least, 2**bits - 1) - levels[:, column]
            rows = np.flatnonzero(change * ~fixed[:, column])
            levels[rows, column] += change[rows]
            pull[rows] += np.outer(change[rows] * step[rows], safe[column])
            changed += rows.size
        if not changed:
            break
    return replace(start, levels=levels.astype(np.uint8))


def round_by_output(
    matrix: np.ndarray, gram: np.ndarray, size: int, bits: int = 4, *, symmetric: bool = False
) -> Blocks:
    """GPTQ, then descent from there. Numbers that are zero stay exactly zero."""
    start = gptq(matrix, gram, size, bits, symmetric=symmetric)
    zeros = matrix == 0
    middle = np.repeat(start.zero, size, axis=1)[:, : matrix.shape[1]]
    start.levels[zeros] = middle[zeros]
    return descend(matrix, gram, start, zeros, bits=bits)


def round_row_by_output(matrix: np.ndarray, gram: np.ndarray, limit: int) -> np.ndarray:
    """The float32 matrix whose rows, rounded to nearest in `limit` levels either way, lose least at the output.

    Zeros, and the largest number of each row, which gives the scale, stay as they are.
    """
    columns, bits = matrix.shape[1], (limit + 1).bit_length()
    nearest = round_to_nearest(matrix, columns, bits, symmetric=True)
    largest = np.abs(matrix).argmax(axis=1)[:, None]
    fixed = matrix == 0
    np.put_along_axis(fixed, largest, True, axis=1)
    start = gptq(matrix, gram, columns, bits, symmetric=True)
    levels = np.where(fixed, nearest.levels, np.maximum(start.levels, 1)).astype(np.uint8)
    start = replace(nearest, levels=levels)
    return descend(matrix, gram, start, fixed, bits=bits, least=1).real()


def round_weights(
    model: ir.Model, layers: Iterable[LinearLayer], compilation: Compilation, limit: int
) -> tuple[dict[str, ir.TensorProtocol], list[Remark]]:
    """Let every layer's weight hold numbers of its int8 grid per output channel, chosen by the layer's output.

    Gives the weights as they were, by node name. Those that several nodes read, or whose inputs are too many for
    the memory, are left, to be rounded to nearest. Each layer is rounded for what the rounded ones before it give.
    """
    own = [layer for layer in layers if len(layer.weight.uses()) == 1]
    shared = [layer for layer in layers if len(layer.weight.uses()) > 1]
    left = [Remark(layer.name, "its weight is shared: rounded to nearest") for layer in shared]
    spool, before = Spool(compilation.scratch.folder), {}
    for inputs in walk_inputs(model, own, compilation):
        seen = inputs.moments()
        for layer in inputs.layers:
            if not seen.is_whole:
                left.append(Remark(layer.name, "too many inputs for --working-memory: rounded to nearest"))
                continue
            assert layer.weight.const_value is not None
            before[layer.name] = layer.weight.const_value
            rounded = layer.from_matrix(_rounded(layer.matrix(layer.array()), layer.group, seen, limit))
            layer.weight.const_value = spool.keep(ir.tensor(rounded, name=layer.weight.name))
    return before, left


def _rounded(matrix: np.ndarray, groups: int, seen: InputMoments, limit: int) -> np.ndarray:
    parts = zip(np.split(matrix, groups), seen.blocks[0].gram, strict=True)
    return np.concatenate([round_row_by_output(part, gram, limit) for part, gram in parts])
