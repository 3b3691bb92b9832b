"""Mixtures inside one operator: what com.microsoft.MoE chooses and makes, from its inputs and weights.

The operator shows neither its choice nor what its experts gave, so both are computed again as it does.
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


@dataclass(frozen=True)
class Fused:
    """A mixture that is one operator: inputs are data (…, hidden), scores (tokens, experts), and stacked weights."""

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
        return Seen(scores, chosen, gates, outputs, (inner,) if inner is not None else ())

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
        first, bias, second, end = (self._slot(operand, number) for operand in (2, 3, 4, 5))
        assert first is not None
        assert second is not None
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

    def _slot(self, operand: int, number: int) -> np.ndarray | None:
        value = self.node.inputs[operand] if operand < len(self.node.inputs) else None
        if value is None:
            return None
        assert value.const_value is not None
        return np.asarray(value.const_value.numpy()[number], dtype=np.float32)


def fused_mixtures(analysis: Analysis) -> list[Fused]:
    """The operators that are mixtures, in the graph's order; those in a form the CPU does not run are left out."""
    found = []
    for node in analysis.model.graph:
        memo = analysis.record.memos.get(node)
        if node.op_type == "MoE" and isinstance(memo, Experts) and _is_known(node):
            second = node.inputs[4]
            assert second is not None
            found.append(Fused(node, memo.experts, (Inner(memo.inner, second, 0, 2),)))
    return found


def _is_known(node: ir.Node) -> bool:
    """Whether weights are constants, and activation and choice are those of `Fused`."""
    weights = [v for v in node.inputs[2:6] if v is not None]
    third = len(node.inputs) > 6 and node.inputs[6] is not None
    kind = node.attributes.get_string("activation_type", "relu")
    gated = kind == "swiglu" and node.attributes.get_int("swiglu_fusion", 0) == 1
    plain = not third and not node.attributes.get_int("use_sparse_mixer", 0)
    return plain and (gated or kind in _ACTIVATIONS) and all(v.const_value is not None for v in weights)
