"""Layers of decoders go from fused files too, and the caches of an attention with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc import api
from sparsecc.graph.ports import close_ports
from sparsecc.loading.normalise import normalise
from sparsecc.loading.skip_norms import join_skip_norms, split_skip_norms
from sparsecc.passes.drop_blocks import drop
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.runtime.session import open_session
from tests.decoder_models import Decoder
from tests.rule_checks import model_of

FUSED = {
    "rms, its sum read": """(float[N,S,8] a, float[N,S,8] c, float[8] w) => (float[N,S,8] y)
        { n, , , t = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=1e-5>(a, c, w) y = Add(n, t) }""",
    "rms with a bias": """(float[N,S,8] a, float[N,S,8] c, float[8] w, float[8] w2) => (float[N,S,8] y)
        { y = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=1e-5>(a, c, w, w2) }""",
    "mean and shift": """(float[N,S,8] a, float[N,S,8] c, float[8] w, float[8] w2) => (float[N,S,8] y)
        { y = com.microsoft.SkipLayerNormalization<epsilon=1e-5>(a, c, w, w2) }""",
    "mean, shift and bias": """(float[N,S,8] a, float[N,S,8] c, float[8] w, float[8] w2, float[8] w3)
        => (float[N,S,8] y, float[N,S,8] t)
        { y, , , t = com.microsoft.SkipLayerNormalization<epsilon=1e-5>(a, c, w, w2, w3) }""",
}


def outputs(model: ir.Model, folder: Path) -> dict[str, np.ndarray]:
    ir.save(model, folder / "m.onnx")
    generator = np.random.default_rng(0)
    feeds = {name: generator.standard_normal((2, 3, 8)).astype(np.float32) for name in ("a", "c")}
    return open_session(folder / "m.onnx", level="none").run(feeds)


@pytest.mark.parametrize("text", FUSED.values(), ids=FUSED)
def test_a_fused_norm_is_a_sum_and_a_norm_and_can_be_fused_again(text: str, tmp_path: Path) -> None:
    model = normalise(ir.from_proto(model_of(text)))
    operators = Counter(node.op_type for node in model.graph)
    wanted = outputs(model, tmp_path)
    assert split_skip_norms(model) == 1
    assert not any(node.op_type.startswith("Skip") for node in model.graph)
    for name, array in outputs(model, tmp_path).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-5)
    assert join_skip_norms(model) == 1
    assert Counter(node.op_type for node in model.graph) == operators
    for name, array in outputs(model, tmp_path).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-5)


def test_what_reads_the_deviation_stays_fused() -> None:
    text = """(float[N,S,8] a, float[N,S,8] c, float[8] w) => (float[N,S,8] y, float[N,S,1] d)
        { y, , d = com.microsoft.SkipSimplifiedLayerNormalization(a, c, w) }"""
    assert split_skip_norms(normalise(ir.from_proto(model_of(text)))) == 0


def test_the_caches_of_a_layer_go_with_it_and_the_others_are_numbered_anew() -> None:
    model = normalise(ir.from_proto(Decoder(layers=4).model()))
    split_skip_norms(model)
    drop(model, ["/model/layers.1/post_attention_layernorm.sum:1"])
    gone, renamed = close_ports(model)
    parts = ("past_key_values.{}.key", "past_key_values.{}.value", "present.{}.key", "present.{}.value")
    assert gone == {part.format(1) for part in parts}
    assert renamed == {part.format(n + 1): part.format(n) for part in parts for n in (1, 2)}
    names = {v.name for v in (*model.graph.inputs, *model.graph.outputs)}
    assert {part.format(n) for part in parts for n in range(3)} <= names
    assert not any("3" in (name or "") for name in names)


def test_layers_of_a_fused_decoder_go(tmp_path: Path) -> None:
    """The result is one that its runtime counts from 0 on, and is checked against the original by its plan alone."""
    folder = Decoder(layers=5).folder(tmp_path / "dense")
    result = api.compile(
        folder,
        output=tmp_path / "out",
        ratio=0.4,
        prune=["layers"],
        metric="params",
        measure=False,
        calib="none",
    )
    assert result.report["verification"]["status"] == "proved"
    ports = Narrowed.from_json({}, result.plan["ports"])
    assert ports.gone
    left = 5 - len(ports.gone) // 4
    assert result.report["package"]["sizes"] == {"num_hidden_layers": [5, left]}
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    names = {value.name for value in graph.input}
    assert names == {"input_ids", "attention_mask"} | {
        f"past_key_values.{n}.{part}" for n in range(left) for part in ("key", "value")
    }
    assert any(node.op_type == "SkipSimplifiedLayerNormalization" for node in graph.node)
    checks = {c["check"]: c["status"] for c in api.verify(tmp_path / "out", model=folder)["checks"]}
    assert set(checks.values()) == {"ok"}


def test_layers_heads_and_channels_go_together(tmp_path: Path) -> None:
    folder = Decoder(layers=5).folder(tmp_path / "dense")
    kinds = ["layers", "heads", "channels"]
    result = api.compile(
        folder, output=tmp_path / "out", ratio=0.5, prune=kinds, metric="params", measure=False, calib="none"
    )
    assert result.report["verification"]["status"] == "proved"
    assert result.report["removed"]["reached"]
    assert result.plan["ports"]["gone"]
