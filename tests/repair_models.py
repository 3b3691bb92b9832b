"""Small models with random weights for tests of calibration and repair."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import parser

from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.loading.normalise import normalise


def model_of(text: str, weights: Mapping[str, np.ndarray], opset: int = 20) -> ir.Model:
    """A normalised model from the text of its graph and its initializers."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    return normalise(ir.from_proto(proto))


def analysed(text: str, weights: Mapping[str, np.ndarray]) -> Analysis:
    return analyse(model_of(text, weights))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    drawn: np.ndarray = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return drawn


MLP = "mlp (float[n, 6] x) => (float[n, 3] y) { a = Gemm(x, w1, b1) h = Relu(a) y = Gemm(h, w2, b2) }"
"""6 -> 8 -> 3: one free group of 8."""


def mlp(duplicate: bool = False) -> Analysis:
    """With `duplicate`, slots 0 and 1 of the hidden layer do the same."""
    w1, b1 = normal(6, 8, seed=1), normal(8, seed=2)
    if duplicate:
        w1[:, 1], b1[1] = w1[:, 0], b1[0]
    return analysed(MLP, {"w1": w1, "b1": b1, "w2": normal(8, 3, seed=3), "b2": normal(3, seed=4)})
