"""Caches of decoders: found without a word, sized by their attention, and as free as any inner axis."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc import CompileResult, api
from sparsecc.axes.algebra import resolve
from sparsecc.cli.compile_view import compile_view
from sparsecc.cli.view import Line
from sparsecc.graph.analysis import analyse
from sparsecc.graph.caches import caches
from sparsecc.loading.normalise import normalise
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.runtime.session import open_session
from tests.decoder_models import Decoder
from tests.rule_checks import model_of

PLAIN = """
(int64[B,S] ids, float[B,4,P,8] past_key, float[B,4,P,8] past_value, float[64,32] w0, float[32,32] w1,
 float[32,32] w2, float[32,32] w3, float[32,32] w4, float[32,64] w5)
=> (float[B,S,64] logits, float[B,4,T,8] key, float[B,4,T,8] value)
{ shape = Constant<value_ints=[0, 0, 4, 8]>() flat = Constant<value_ints=[0, 0, -1]>()
  x = Gather(w0, ids)
  a = MatMul(x, w1) a4 = Reshape(a, shape) at = Transpose<perm=[0,2,1,3]>(a4)
  b = MatMul(x, w2) b4 = Reshape(b, shape) bt = Transpose<perm=[0,2,1,3]>(b4) key = Concat<axis=2>(past_key, bt)
  c = MatMul(x, w3) c4 = Reshape(c, shape) ct = Transpose<perm=[0,2,1,3]>(c4) value = Concat<axis=-2>(past_value, ct)
  turned = Transpose<perm=[0,1,3,2]>(key) scores = MatMul(at, turned) p = Softmax<axis=-1>(scores)
  mixed = MatMul(p, value) back = Transpose<perm=[0,2,1,3]>(mixed) joined = Reshape(back, flat)
  y = MatMul(joined, w4) z = Add(x, y) logits = MatMul(z, w5) }
"""
HANDED = (
    PLAIN.replace("key = Concat", "k = Concat").replace("value = Concat", "v = Concat")
    .replace("Transpose<perm=[0,1,3,2]>(key)", "Transpose<perm=[0,1,3,2]>(k)").replace("(p, value)", "(p, v)")
    .replace("logits = MatMul", "key = Identity(k) once = Identity(v) value = Identity(once) logits = MatMul")
)  # fmt: skip


def compiled(file: Path, folder: Path, **options: object) -> CompileResult:
    given = {"ratio": 0.4, "measure": False, "calib": "none", "next_steps": False, **options}
    return api.compile(file, output=folder / "out", **given)  # type: ignore[arg-type]


def step(run: object, ids: list[int], kept: dict[str, np.ndarray], total: int) -> dict[str, np.ndarray]:
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, total), np.int64), **kept}
    return run.run(feeds)  # type: ignore[attr-defined,no-any-return]


def test_a_decoder_with_a_cache_is_cut_without_a_size_given(tmp_path: Path) -> None:
    onnx.save(Decoder().model(), tmp_path / "m.onnx")
    result = compiled(tmp_path / "m.onnx", tmp_path, prune=["heads"], metric="params")
    assert result.report["verification"]["status"] == "proved"
    narrowed = Narrowed.from_json(result.plan["io"])
    assert narrowed.inputs.keys() == {f"past_key_values.{n}.{p}" for n in range(2) for p in ("key", "value")}
    for name, axes in narrowed.inputs.items():
        assert axes == narrowed.outputs[name.replace("past_key_values", "present")]
    shown = [block.text for block in compile_view(result.report) if isinstance(block, Line)]
    assert any(text.startswith("Caches are smaller: 'past_key_values.0.key' axis 1: 4 to") for text in shown)


def test_a_text_goes_on_from_the_smaller_cache(tmp_path: Path) -> None:
    """Token by token, from an empty cache, as all at once."""
    onnx.save(Decoder().model(), tmp_path / "m.onnx")
    compiled(tmp_path / "m.onnx", tmp_path, prune=["heads"], metric="params")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    kept = {n: np.zeros((1, s[1], 0, s[3]), np.float32) for n, s in shapes.items() if n.startswith("past")}
    run, ids = open_session(tmp_path / "out" / "model.onnx"), [5, 9, 2, 33, 17]
    whole = step(run, ids, kept, 5)["logits"]
    for number, token in enumerate(ids):
        found = step(run, [token], kept, number + 1)
        kept = {name: found[name.replace("past_key_values", "present")] for name in kept}
        np.testing.assert_allclose(found["logits"][0, 0], whole[0, number], rtol=1e-4, atol=1e-4)


def test_the_start_of_a_text_is_among_the_probes() -> None:
    analysis = analyse(normalise(ir.from_proto(Decoder().model())))
    lengths = [sizes["past_key_values.0.key"][2] for sizes in analysis.shapes.inputs]
    masks = [sizes["attention_mask"][1] - sizes["input_ids"][1] for sizes in analysis.shapes.inputs]
    assert 0 in lengths
    assert lengths == masks


def test_widths_follow_from_the_attention() -> None:
    model = normalise(ir.from_proto(Decoder(kv_heads=2, width=24).model()))
    for cache in caches(model):
        for value in (cache.past, cache.present):
            assert value.shape is not None
            assert (value.shape[1], value.shape[3]) == (2, 24)


@pytest.mark.parametrize("text", [PLAIN, HANDED], ids=["as it is", "behind Identities"])
def test_a_cache_of_plain_operators_is_one_axis_with_what_leaves(text: str) -> None:
    analysis = analyse(normalise(ir.from_proto(model_of(text))))
    assert [cache.present.name for cache in caches(analysis.model)] == ["key", "value"]
    axes = {value.name: found for value, found in analysis.record.axes.items()}
    for past, present in (("past_key", "key"), ("past_value", "value")):
        for place in (1, 3):
            assert resolve(axes[past][place]) is resolve(axes[present][place])
            assert resolve(axes[past][place]).pin is None  # type: ignore[attr-defined]


BEHIND = """
(int64[B,S] input_ids, float[B,P,4,8] past_key, float[B,P,4,8] past_value, float[64,32] w0, float[32,32] w1,
 float[32,32] w2, float[32,32] w3, float[32,32] w4, float[32,64] w5, float[32,48] w6, float[48,32] w7,
 float[32,48] w8, float[48,32] w9)
=> (float[B,S,64] logits, float[B,T,4,8] key, float[B,T,4,8] value)
{ shape = Constant<value_ints=[0, 0, 4, 8]>() flat = Constant<value_ints=[0, 0, -1]>()
  e = Gather(w0, input_ids) f = MatMul(e, w8) g = Relu(f) i = MatMul(g, w9) x = Add(e, i)
  a = MatMul(x, w1) a4 = Reshape(a, shape) at = Transpose<perm=[0,2,1,3]>(a4)
  b = MatMul(x, w2) b4 = Reshape(b, shape) key = Concat<axis=1>(past_key, b4)
  c = MatMul(x, w3) c4 = Reshape(c, shape) value = Concat<axis=-3>(past_value, c4)
  turned = Transpose<perm=[0,2,3,1]>(key) scores = MatMul(at, turned) p = Softmax<axis=-1>(scores)
  values = Transpose<perm=[0,2,1,3]>(value) mixed = MatMul(p, values) back = Transpose<perm=[0,2,1,3]>(mixed)
  joined = Reshape(back, flat) y = MatMul(joined, w4) z = Add(x, y)
  u = MatMul(z, w6) r = Relu(u) d = MatMul(r, w7) t = Add(z, d) logits = MatMul(t, w5) }
"""


@pytest.mark.parametrize(
    ("options", "left"),
    [({"prune": ["heads"], "metric": "kv"}, 2), ({"prune": ["layers"], "metric": "kv"}, 0)],
    ids=["heads", "layers"],
)
def test_heads_may_stand_behind_the_positions(options: dict[str, object], left: int, tmp_path: Path) -> None:
    """(batch, positions, heads, width): counted by `--metric kv`, fed with text, and gone with its attention."""
    onnx.save(model_of(BEHIND), tmp_path / "m.onnx")
    result = compiled(tmp_path / "m.onnx", tmp_path, calib="self", **options)
    assert result.report["verification"]["status"] == "proved"
    assert result.report["before"]["kv"] == 2 * 4 * 4 * 8
    assert result.report["after"]["kv"] == 2 * 4 * left * 8
    assert result.report["text"]["tokens"] > 0
    inputs = onnx.load(tmp_path / "out" / "model.onnx").graph.input
    kept = [v for v in inputs if v.name.startswith("past")]
    assert [v.type.tensor_type.shape.dim[2].dim_value for v in kept] == [left, left][: 2 * bool(left)]


def test_a_concat_of_channels_is_no_cache() -> None:
    text = "(float[N,3,8,8] x, float[N,4,8,8] more) => (float[N,7,8,8] y) { y = Concat<axis=1>(x, more) }"
    assert not caches(normalise(ir.from_proto(model_of(text))))


def test_an_output_that_is_no_cache_stays() -> None:
    """The same Concat, along channels: nobody hands its result back."""
    text = "(float[N,4,H,8] a, float[N,4,H,8] b) => (float[N,8,H,8] y) { y = Concat<axis=1>(a, b) }"
    assert not caches(ir.from_proto(model_of(text)))


def test_the_vocabulary_goes_only_where_it_is_named(tmp_path: Path) -> None:
    onnx.save(Decoder().model(), tmp_path / "m.onnx")
    shown = api.inspect(tmp_path / "m.onnx")
    pinned = {g["members"][0][0] for g in shown["groups"] if g["pinned"] == "graph output 'logits'"}
    assert pinned == {"lm_head.MatMul.weight"}
    result = compiled(tmp_path / "m.onnx", tmp_path, prune_io=["logits"], only=["lm_head.MatMul.weight:1"])
    shown_lines = [block.text for block in compile_view(result.report) if isinstance(block, Line)]
    assert any(text.startswith("Callers must change: 'logits' axis 2: 64 to") for text in shown_lines)


@pytest.mark.skipif("SPARSECC_SHARED" not in os.environ, reason="needs the shared cases (SPARSECC_SHARED)")
@pytest.mark.parametrize(
    "name",
    [
        "stories_fp32/model",
        "stories_int4/model",
        "plain_decoder_with_cache",
        "whisper_tiny/decoder",
        "whisper_tiny/encoder",
    ],
)
def test_decoders_as_they_are_handed_on_compile(name: str, tmp_path: Path) -> None:
    file = Path(os.environ["SPARSECC_SHARED"], "cases", "language", f"{name}.onnx")
    result = api.compile(file, output=tmp_path / "out", ratio=0.2, measure=False, calib="none")
    assert result.report["verification"]["status"] == "proved"
    assert result.report["removed"]["reached"]


def test_a_fused_attention_without_a_bias_runs(tmp_path: Path) -> None:
    """ONNX Runtime's own kernel dies of it."""
    text = """(float[N,5,32] x, float[32,96] w1, float[32,8] w2) => (float[N,5,8] y)
    { a = com.microsoft.Attention<num_heads = 4>(x, w1) y = MatMul(a, w2) }"""
    onnx.save(model_of(text), tmp_path / "m.onnx")
    result = compiled(tmp_path / "m.onnx", tmp_path, prune=["heads"])
    assert result.report["verification"]["status"] == "proved"
    assert any("without a bias" in warning for warning in result.report["warnings"])
