"""Where fuzzing starts: a few sound inputs of every target."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from onnx import parser

from tests.fuzz.targets import small_bytes

ROOT = Path(__file__).resolve().parents[2]

BRANCHES = """<ir_version: 10, opset_import: ["": 21, "f": 1]> g (bool c, float[N,4,8,8] x) => (float[N,4,8,8] y)
    <int64[4] s = {0,4,8,8}> {
        z = f.Gate (x)
        h = If (c) <then_branch = t () => (float[N,4,8,8] a) { a = Relu (z) },
                    else_branch = e () => (float[N,4,8,8] b) { b = Neg (z) }>
        p = Conv <group = 4> (h, w)
        y = Reshape <allowzero = 1> (p, s)
    }
    <domain: "f", opset_import: ["": 21]> Gate (i) => (o) { t = Sigmoid (i)  o = Mul (i, t) }"""


def _models() -> list[bytes]:
    found: list[bytes] = [small_bytes()]
    model = parser.parse_model(BRANCHES)
    model.graph.initializer.add(name="w", data_type=1, dims=[4, 1, 3, 3], raw_data=bytes(4 * 9 * 4))
    found.append(model.SerializeToString())
    sparse = model.graph.sparse_initializer.add(dims=[8])
    sparse.values.name, sparse.values.data_type, sparse.values.dims[:] = "q", 1, [2]
    sparse.values.float_data[:] = [1.0, 2.0]
    sparse.indices.data_type, sparse.indices.dims[:], sparse.indices.int64_data[:] = 7, [2], [1, 5]
    outside = model.graph.initializer.add(name="v", data_type=16, dims=[2], data_location=1)
    outside.external_data.add(key="location", value="v.bin")
    found.append(model.SerializeToString())
    return [*found, (ROOT / "models" / "digits_lstm.onnx").read_bytes()[:4000], b"PK\x03\x04", b"\x80\x04."]


def _recipes() -> list[bytes]:
    return [
        b"target: onnxruntime\nratio: 0.5\ninputs:\n  x: [1, 3, 8, 8]\nkeep: ['conv*']\nseed: 0\n",
        b"schema: sparsecc.recipe/1\ninputs: {x: [[1, 3], [2, 3], [4, 3]]}\nbuild: {workspace: 4GiB}\n",
        b"quantize: int8\nquantize_options: {method: mse}\nmax_drop: 0.01\nevaluate: 'py:f'\nalign: 8\n",
    ]


def _plans() -> list[bytes]:
    axes = {"1": {"size": 4, "keep": [0, 2], "summed": True}}
    group = {"id": 0, "kind": "channel", "size": 4, "kept": 2, "members": [["w", 1]], "mixes": False}
    layer = {**group, "kind": "layer", "kept": 0, "branches": ["Add_3:0"]}
    plan = {
        "schema": "sparsecc.plan/1",
        "model": {"sha256": "00"},
        "tensors": {"w": axes},
        "groups": [group, layer],
        "dropped_nodes": [],
        "patterns": {},
        "quantization": {},
        "io": {"outputs": {"y": {"1": [0, 2]}}},
    }
    used = {**plan, "tensors": {"w": {"uses": {"MatMul_0:1": axes}}}, "io": {}}
    return [json.dumps(one).encode() for one in (plan, used)]


def _bundles() -> list[bytes]:
    return [b'{"schema": "sparsecc.manifest/1", "files": {"plan.json": {"sha256": "00", "bytes": 3}}}']


def _programs() -> list[bytes]:
    return [bytes([0, 6, 0, 5, 2, 0, 1, 0, 5, 0, 2, 4, 1, 2, 1, 1, 0, 3, 0, 1]), bytes(range(64))]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "loader": _models,
    "recipe": _recipes,
    "bundle": _bundles,
    "plan": _plans,
    "axes": _programs,
}
