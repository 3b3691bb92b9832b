"""Fewer tokens: which models have a site for it, that it equals attention that does not see them, and which go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc import api
from sparsecc.compilation import Compilation
from sparsecc.cost.model import macs_model
from sparsecc.errors import InputError, InternalError
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.token_sites import CannotReduceError, TokenSite, find_site
from sparsecc.graph.zero_masks import idle_masks
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.passes.drop_blocks import drop
from sparsecc.passes.reduce_tokens import ReduceTokens
from sparsecc.plan import Plan
from sparsecc.reference.hidden_tokens import unseen
from sparsecc.report.result import CompileResult
from sparsecc.runtime.numerics import worst_error
from sparsecc.runtime.session import open_session
from sparsecc.system.scratch import Scratch
from tests.rule_checks import model_of
from tests.zoo.export import Exporter, ZooUnavailable, onnx_path


def attention(number: int) -> str:
    """One layer of four heads over seven tokens: h{number} becomes h{number + 1}."""
    i = number
    return f"""q{i} = MatMul(h{i}, wq{i}) k{i} = MatMul(h{i}, wk{i}) v{i} = MatMul(h{i}, wv{i})
    qs{i} = Reshape(q{i}, split) ks{i} = Reshape(k{i}, split) vs{i} = Reshape(v{i}, split)
    qt{i} = Transpose<perm = [0, 2, 1, 3]>(qs{i}) kt{i} = Transpose<perm = [0, 2, 3, 1]>(ks{i})
    vt{i} = Transpose<perm = [0, 2, 1, 3]>(vs{i})
    l{i} = MatMul(qt{i}, kt{i}) p{i} = Softmax<axis = -1>(l{i}) o{i} = MatMul(p{i}, vt{i})
    ot{i} = Transpose<perm = [0, 2, 1, 3]>(o{i}) f{i} = Reshape(ot{i}, flat) m{i} = MatMul(f{i}, wo{i})
    h{i + 1} = Add(h{i}, m{i})
    """


HEAD = "c = Gather<axis = 1>(h2, zero) y = MatMul(c, w_head)"


def vit(tail: str = HEAD, middle: str = "", out: str = "float[2,3] y", more: str = "") -> str:
    """A class token and six patches, two layers; `middle` turns h1 into h1 again, `tail` gives the outputs."""
    weights = [f"float[8,8] w{name}{i}" for name in "qkvo" for i in (0, 1)]
    given = ["float[2,6,8] x", "float[2,1,8] w_class", "float[8,3] w_head", *weights, *filter(None, [more])]
    constants = """split = Constant<value_ints = [2, 7, 4, 2]>() flat = Constant<value_ints = [2, 7, 8]>()
    zero = Constant<value_int = 0>() h0 = Concat<axis = 1>(w_class, x) """
    second = attention(1) if not middle else attention(1).replace("h1", "g1").replace("h2 =", "h2 =")
    return f"({', '.join(given)}) => ({out}) {{ {constants} {attention(0)} {middle} {second} {tail} }}"


def analysed(text: str, opset: int = 18) -> Analysis:
    return analyse(normalise(ir.from_proto(model_of(text, opset))))


def test_the_site_is_behind_a_third_of_the_attention() -> None:
    site = find_site(analysed(vit()))
    assert (site.layer, site.layers, site.first, site.patches) == (1, 2, 1, 6)
    assert site.stream.name == "h1"
    assert site.attention.outputs[0].name == "p0"
    assert [n.outputs[0].name for n in site.later] == ["p1"]


PINNED = {
    "an average over tokens": (
        vit("axes = Constant<value_ints = [1]>() c = ReduceMean<keepdims = 0>(h2, axes) y = MatMul(c, w_head)"),
        "ReduceMean may not treat all tokens alike",
    ),
    "a product over tokens": (
        vit("t = Transpose<perm = [0, 2, 1]>(h2) y = MatMul(t, w_mix)", out="float[2,8,3] y", more="float[7,3] w_mix"),
        "MatMul goes over all tokens, and is no attention",
    ),
    "an output per token": (vit("y = MatMul(h2, w_head)", out="float[2,7,3] y"), "an output has an entry per token"),
    "positions added later": (
        vit(middle="g1 = Add(h1, w_position)", more="float[1,7,8] w_position"),
        "a constant with an entry per token is read: w_position",
    ),
    "a skip from before": (vit(middle="g1 = Add(h1, h0)"), "a value from before with an entry per token is read: h0"),
    "a patch by its place": (
        vit("three = Constant<value_int = 3>() c = Gather<axis = 1>(h2, three) y = MatMul(c, w_head)"),
        "a patch is picked by its place",
    ),
    "an order of tokens": (
        vit(middle="one = Constant<value_int = 1>() g1 = CumSum(h1, one)"),
        "CumSum may not treat all tokens alike",
    ),
    "a grid": (
        vit(
            "a = Constant<value_ints = [1]>() b = Constant<value_ints = [7]>() p = Slice(h2, a, b, a)"
            "g = Constant<value_ints = [2, 2, 3, 8]>() r = Reshape(p, g) t = Transpose<perm = [0, 2, 1, 3]>(r)"
            "f = Constant<value_ints = [2, 48]>() c = Reshape(t, f) y = MatMul(c, w_flat)",
            more="float[48,3] w_flat",
        ),
        "tokens are told apart by their place",
    ),
    "all tokens in one row": (
        vit(
            "f = Constant<value_ints = [2, 56]>() c = Reshape(h2, f) y = MatMul(c, w_flat)",
            more="float[56,3] w_flat",
        ),
        "MatMul goes over all tokens, and is no attention",
    ),
    "no class token": (
        vit().replace("Concat<axis = 1>(w_class, x)", "Add(x, w_class)").replace("[2,6,8] x", "[2,7,8] x"),
        "no attention between a class token and patches",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PINNED)
def test_why_there_is_no_site(name: str) -> None:
    text, reason = PINNED[name]
    with pytest.raises(CannotReduceError, match=reason):
        find_site(analysed(text))


def test_an_old_opset_has_no_site() -> None:
    with pytest.raises(CannotReduceError, match="it needs opset 13, the model has 12"):
        find_site(analysed(vit(), 12))


MASKS = {
    "a mask of zeros": ("g = Expand(all, big) m = Where(g, none, low) g1 = Add(h1, m)", ["Add"]),
    "one that hides nothing": ("g = Expand(no, big) m = Where(g, low, none) g1 = Add(h1, m)", ["Add"]),
    "one that hides": ("g = Expand(all, big) m = Where(g, low, none) g1 = Add(h1, m)", []),
    "one that grows the sum": ("g = Expand(all, more) m = Where(g, none, low) g1 = Add(h1, m)", []),
    "a bias of zeros": ("g1 = Add(h1, none)", []),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_add_nothing(name: str) -> None:
    nodes, found = MASKS[name]
    text = f"""(float[2,3] h1) => (float[A,B] y) {{ all = Constant<value = bool[1,1] {{1}}>()
    no = Constant<value = bool[1,1] {{0}}>()
    big = Constant<value_ints = [2, 3]>() more = Constant<value_ints = [2, 2, 3]>()
    none = Constant<value_float = 0.0>() low = Constant<value_float = -9.0>() {nodes} y = Relu(g1) }}"""
    analysis = analysed(text.replace("[A,B]", "[2,2,3]" if "more)" in nodes else "[2,3]"))
    named = {node.name: node.op_type for node in analysis.model.graph}
    assert [named[place.rpartition(":")[0]] for place in idle_masks(analysis)] == found


class Case:
    """A model with its site, its dense outputs, and what it gives with fewer tokens."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.folder, self.model = folder, normalise(load_ir(path))
        self.compilation = Compilation(path, CompileOptions(), Scratch(folder))
        drop(self.model, idle_masks(self.compilation.begin(self.model)))
        self.analysis = self.compilation.analysed(self.model)
        self.site: TokenSite = find_site(self.analysis)
        self.work = macs_model(self.analysis).total({})

    def reduced(self, keep: int) -> ir.Model:
        site, twin = self.site, self.model.clone()
        one = ReduceTokens(site.stream.name or "", site.attention.name or "", site.first, site.patches, keep)
        result = one.run(twin, Plan({}), self.compilation)
        assert result.facts == {"kept": keep, "of": site.patches, "behind": site.stream.name}
        return twin

    def masked(self, keep: int) -> ir.Model:
        later = [node.name for node in self.site.later]
        tokens = {
            "attention": self.site.attention.name,
            "later": later,
            "first": self.site.first,
            "kept": keep,
        }
        return unseen(self.model, tokens)

    def outputs(self, model: ir.Model) -> list[dict[str, np.ndarray]]:
        runner = open_session(write(model, self.folder / "one" / "model.onnx"), level="none")
        return [runner.run(feeds) for feeds in self.compilation.feeds]


def check(path: Path, folder: Path) -> Case:
    """All tokens give the dense outputs; fewer give those of attention that does not see the others."""
    case = Case(path, folder)
    whole = case.outputs(case.reduced(case.site.patches))
    for dense, found in zip(case.compilation.expected, whole, strict=True):
        assert worst_error(dense, found) <= 1e-6
    for keep in (1, case.site.patches // 2):
        smaller = case.reduced(keep)
        assert macs_model(case.compilation.analysed(smaller)).total({}) < case.work
        pairs = zip(
            case.outputs(case.masked(keep)), case.outputs(smaller), case.compilation.expected, strict=True
        )
        for wanted, found, dense in pairs:
            assert worst_error(wanted, found) <= 1e-5
            assert not case.site.later or worst_error(dense, found) > 1e-4
    return case


def test_fewer_tokens_equal_attention_that_does_not_see_the_others(models_dir: Path, tmp_path: Path) -> None:
    assert check(models_dir / "digits_vit.onnx", tmp_path).site.first == 1


def test_opset_13(tmp_path: Path) -> None:
    onnx.save(model_of(vit(), 13), tmp_path / "vit.onnx")
    check(tmp_path / "vit.onnx", tmp_path)


EXPORTERS: tuple[Exporter, ...] = ("dynamo", "torchscript")
VITS = {"vit": 1, "vit_sdpa": 1, "deit": 2, "clip": 1}
FUSED = {"vit_fused_unbind": 1, "vit_fused_chunk": 1, "vit_fused_slice": 1}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", [*VITS, *FUSED])
def test_in_the_zoo(name: str, exporter: Exporter, tmp_path: Path) -> None:
    try:
        path = onnx_path(name, exporter)
    except ZooUnavailable as e:
        pytest.skip(str(e))
    assert check(path, tmp_path).site.first == {**VITS, **FUSED}[name]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ["beit", "swin", "convnext"])
def test_zoo_models_without_a_site(name: str, exporter: Exporter) -> None:
    try:
        analysis = analyse(normalise(load_ir(onnx_path(name, exporter))))
    except ZooUnavailable as e:
        pytest.skip(str(e))
    with pytest.raises(CannotReduceError, match="an entry per token" if name == "beit" else "no attention"):
        find_site(analysis)


def test_those_that_the_class_token_attends_to_most_go_on_in_their_order(
    models_dir: Path, tmp_path: Path
) -> None:
    case, keep = Case(models_dir / "digits_vit.onnx", tmp_path), 5
    model = case.reduced(keep)
    chosen = next(node for node in model.graph if node.op_type == "GatherND").inputs[1]
    scores = next(n for n in model.graph if n.name == case.site.attention.name).outputs[0]
    assert chosen is not None
    chosen.dtype, scores.dtype = ir.DataType.INT64, ir.DataType.FLOAT
    model.graph.outputs.extend([chosen, scores])
    for found in case.outputs(model):
        class_row = found[scores.name or ""][:, :, 0, 1:].mean(axis=1)
        best = np.sort(np.argsort(-class_row, axis=1, kind="stable")[:, :keep], axis=1)
        assert np.array_equal(found[chosen.name or ""][:, :, 0], best)
        assert (np.diff(best, axis=1) > 0).all()


def test_equal_scores_go_by_place(tmp_path: Path) -> None:
    """Where the class token attends to all alike, the first patches stay: in the pass and in the proof."""
    zeros = {f"wq{i}": np.zeros((8, 8), dtype=np.float32) for i in (0, 1)}
    onnx.save(model_of(vit(), 18, zeros), tmp_path / "vit.onnx")
    check(tmp_path / "vit.onnx", tmp_path)


def compiled(path: Path, folder: Path, **options: Any) -> CompileResult:
    return api.compile(path, output=folder / "out", measure=False, **options)


def test_a_compile_leaves_tokens_out(models_dir: Path, tmp_path: Path) -> None:
    path = models_dir / "digits_vit.onnx"
    result = compiled(path, tmp_path, tokens=0.75)
    report = result.report
    assert result.plan["tokens"] == report["tokens"]
    assert (report["tokens"]["kept"], report["tokens"]["patches"]) == (12, 16)
    assert report["tokens"]["stream"] == "add_74"
    assert report["after"]["macs"] < 0.8 * report["before"]["macs"]
    assert report["removed"]["share"] == pytest.approx(1 - report["after"]["macs"] / report["before"]["macs"])
    assert report["after"]["params"] == report["before"]["params"] == result.plan["model"]["params"]
    assert result.plan["model"]["nodes"] == len(normalise(load_ir(path)).graph)
    rows = {row["name"]: (row["macs_before"], row["macs_after"]) for row in report["layers"]}
    assert sum(b for b, _ in rows.values()) == report["before"]["macs"]
    assert sum(a for _, a in rows.values()) == report["after"]["macs"]
    (made,) = (p for p in report["passes"] if p["name"].startswith("reduce_tokens"))
    assert (made["facts"]["layer"], made["facts"]["layers"]) == (1, 3)
    assert 0 < made["facts"]["fidelity"]["quality_db"] < 100
    checks = api.verify(tmp_path / "out", model=path)["checks"]
    assert {c["check"]: c["ok"] for c in checks}["numerics"]


def test_what_tokens_save_counts_towards_the_ratio(models_dir: Path, tmp_path: Path) -> None:
    path, calib = models_dir / "digits_vit.onnx", f"{models_dir / 'digits.py'}:calibration"
    report = compiled(path, tmp_path, tokens=0.75, ratio=0.4, calib=calib).report
    assert report["removed"]["reached"]
    assert report["removed"]["share"] == pytest.approx(0.4, abs=0.05)
    assert report["tokens"]["kept"] == 12
    assert 0 < 1 - report["after"]["params"] / report["before"]["params"] < 0.4
    assert report["fidelity"]["quality_db"] > 5


def test_where_there_is_no_site_the_report_says_why(models_dir: Path, tmp_path: Path) -> None:
    report = compiled(models_dir / "digits_resnet.onnx", tmp_path, tokens=0.5).report
    (skip,) = (s for s in report["skipped"] if s["pass"] == "reduce_tokens")
    assert skip["reason"].startswith("no attention between a class token and patches")
    assert any(w.startswith("--tokens 0.5 left out none") for w in report["warnings"])
    assert "tokens" not in report
    assert report["before"]["macs"] == report["after"]["macs"]


def test_a_wrong_choice_is_noticed(models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsecc.decide.layers import Depth
    from sparsecc.decide.tokens import thin
    from sparsecc.tasks.stages import begin

    file = models_dir / "digits_vit.onnx"
    compilation = Compilation(file, CompileOptions(tokens=0.5), Scratch(tmp_path))
    analysis = begin(compilation)
    monkeypatch.setattr("sparsecc.decide.tokens.unseen", lambda m, t: unseen(m, {**t, "kept": t["kept"] + 1}))
    with pytest.raises(InternalError, match="the model of 8 tokens differs"):
        thin(compilation, analysis, Depth())


@pytest.mark.parametrize("share", [0.0, 1.5, -0.5])
def test_a_share_out_of_bounds_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="--tokens: "):
        CompileOptions(tokens=share)


def test_a_plan_that_names_no_attention_is_refused(models_dir: Path) -> None:
    from sparsecc.data.plan_file import read_plan, require_fits

    tokens = {"attention": "node_conv2d", "later": [], "first": 1, "patches": 16, "kept": 8}
    plan = {**Plan({"sha256": ""}).to_json(), "tokens": tokens}
    with pytest.raises(InputError, match="names the attention 'node_conv2d'"):
        require_fits(read_plan(plan), normalise(load_ir(models_dir / "digits_vit.onnx")))
    with pytest.raises(InputError, match="'tokens' is not as schema"):
        read_plan({**plan, "tokens": {"attention": 3}})
