"""Mixtures inside one operator: what com.microsoft.MoE and QMoE choose and make, from their inputs and weights.

The operators show neither their choice nor what their experts gave, so both are computed again as they do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Axis
from sparsecc.calibrate.mixtures import Inner, Read, Seen
from sparsecc.graph.analysis import Analysis
from sparsecc.rules.experts import Experts


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


_ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "identity": lambda x: x,
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: x * _sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
}


_LAYERS = {"MoE": (2, 3, 4, 5), "QMoE": (2, 4, 5, 7)}
"""The operands of both layers: weight and bias, weight and bias. Behind a packed weight are its scales."""
_ZEROS = {2: 11, 5: 12}
"""The zero points of packed weights."""


@dataclass(frozen=True)
class Fused:
    """A mixture that is one operator: inputs are data (…, hidden), scores (tokens, experts), and stacked weights,
    which may be packed."""

    node: ir.Node
    experts: Axis
    inner: tuple[Inner, ...]
    outputs: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The values to hold until `node` runs."""
        return tuple(v.name or "" for v in self.node.inputs[:2] if v is not None)

    def read(self, value: Read) -> Seen:
        """The mixture's values on a batch."""
        data, scores = (value(name) for name in self.names)
        data = data.reshape(-1, data.shape[-1])
        chosen, gates = self._choice(scores)
        inner = outputs = None
        for expert in np.unique(chosen):
            pairs = np.flatnonzero(chosen.ravel() == expert)
            middle, found = self._expert(int(expert), data[pairs // chosen.shape[1]])
            if inner is None or outputs is None:
                inner = np.zeros((chosen.size, middle.shape[1]), dtype=np.float32)
                outputs = np.zeros((chosen.size, found.shape[1]), dtype=np.float32)
            inner[pairs], outputs[pairs] = middle, found
        return Seen(scores, chosen, gates, outputs, (inner,) if self.inner and inner is not None else ())

    def _choice(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the largest scores, and their probabilities: each (tokens, k)."""
        number = self.node.attributes.get_int("k", 1)
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, :number]
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        gates = np.take_along_axis(powers / powers.sum(axis=1, keepdims=True), chosen, axis=1)
        if self.node.attributes.get_int("normalize_routing_weights", 0):
            gates = gates / gates.sum(axis=1, keepdims=True)
        return chosen, gates

    def _expert(self, number: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What one expert makes of rows: between its layers, and at its end."""
        weight, shift, other, last = _LAYERS[self.node.op_type]
        first, second = self._weight(weight, number), self._weight(other, number)
        bias, end = self._slot(shift, number), self._slot(last, number)
        middle = rows.astype(np.float32) @ first.T + (bias if bias is not None else 0)
        kind = self.node.attributes.get_string("activation_type", "relu")
        middle = self._swiglu(middle) if kind == "swiglu" else _ACTIVATIONS[kind](middle)
        return middle, middle @ second.T + (end if end is not None else 0)

    def _swiglu(self, pairs: np.ndarray) -> np.ndarray:
        """Gate and value alternate along the rows."""
        attributes = self.node.attributes
        limit = attributes.get_float("swiglu_limit", float("inf"))
        gate, value = np.minimum(pairs[:, ::2], limit), np.clip(pairs[:, 1::2], -limit, limit)
        alpha, beta = (
            attributes.get_float("activation_alpha", 1.0),
            attributes.get_float("activation_beta", 0.0),
        )
        return np.asarray(gate * _sigmoid(alpha * gate) * (value + beta))

    def _weight(self, operand: int, number: int) -> np.ndarray:
        found = self._slot(operand, number)
        assert found is not None
        if self.node.op_type == "MoE":
            return found.astype(np.float32)
        attributes, layer = self.node.attributes, 1 if operand == 2 else 2
        bits = attributes.get_int(f"fc{layer}_expert_weight_bits", 0) or attributes.get_int(
            "expert_weight_bits", 4
        )
        scales = self._slot(operand + 1, number)
        assert scales is not None
        return unpacked(found, scales, self._slot(_ZEROS[operand], number), bits)

    def _slot(self, operand: int, number: int) -> np.ndarray | None:
        value = self.node.inputs[operand] if operand < len(self.node.inputs) else None
        if value is None:
            return None
        assert value.const_value is not None
        return np.asarray(value.const_value.numpy()[number])


def unpacked(packed: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, bits: int) -> np.ndarray:
    """The numbers of a matrix (rows, slots) that lies as bytes (rows, slots * bits / 8), the lowest bits first.

    `scales` (rows,) or (rows, blocks of slots); `zeros` as bytes of such numbers, one after the other, None for the
    middle of what they can be.
    """
    numbers, steps = _apart(packed, bits), scales.astype(np.float32).reshape(len(packed), -1)
    zero = np.full((1, 1), 1 << (bits - 1))
    if zeros is not None:
        zero = _apart(zeros, bits)
        zero = zero[:, : steps.shape[1]] if zeros.ndim == 2 else zero[: len(packed), None]
    blocks = numbers.reshape(*steps.shape, -1).astype(np.float32) - zero[..., None]
    return np.asarray((blocks * steps[..., None]).reshape(len(packed), -1), dtype=np.float32)


def _apart(packed: np.ndarray, bits: int) -> np.ndarray:
    """Bytes (…, n) as numbers of so many bits, (…, n * 8 / bits)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return (
        ((packed[..., None] >> shifts) & ((1 << bits) - 1)).reshape(*packed.shape[:-1], -1).astype(np.int32)
    )


def fused_mixtures(analysis: Analysis) -> list[Fused]:
    """The operators that are mixtures, in the graph's order; those in a form the CPU does not run are left out."""
    found = []
    for node in analysis.model.graph:
        memo = analysis.record.memos.get(node)
        if node.op_type in _LAYERS and isinstance(memo, Experts) and _is_known(node):
            second = node.inputs[4]
            is_packed = node.op_type == "QMoE"  # its last layer takes no new numbers
            inner = () if is_packed or second is None else (Inner(memo.inner, second, 0, 2),)
            found.append(Fused(node, memo.experts, inner))
    return found


def _is_known(node: ir.Node) -> bool:
    """Whether weights are constants, and activation and choice are those of `Fused`."""
    inputs, is_packed = [*node.inputs, *[None] * 15], node.op_type == "QMoE"
    weights = [v for v in (inputs[2:8] + inputs[11:13] if is_packed else inputs[2:6]) if v is not None]
    third = any(inputs[operand] is not None for operand in ((8, 14) if is_packed else (6,)))
    kind = node.attributes.get_string("activation_type", "relu")
    gated = kind == "swiglu" and node.attributes.get_int("swiglu_fusion", 0) == 1
    plain = not third and not node.attributes.get_int("use_sparse_mixer", 0)
    return plain and (gated or kind in _ACTIVATIONS) and all(v.const_value is not None for v in weights)
