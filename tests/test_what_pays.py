"""Layers that integers make no faster stay in float, by groups, and int8 never ends slower than float."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsecc
from sparsecc.errors import InputError
from sparsecc.measure.statistics import LogRatio
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.what_pays import KEPT, THIN, Group, Trial, density, groups_of
from sparsecc.plan import Plan
from tests.compilations import compilation
from tests.quantize_models import feeds_for, transformer, weighted
from tests.test_quantize import outputs, relative_error

LONE = """g (float[1,16,24,24] x, WEIGHTS) => (float[1,16,24,24] y) {
    a = Conv<group = 16, pads = [1,1,1,1]>(x, w1)
    at = Tanh(a)
    b = Conv(at, w2)
    bt = Tanh(b)
    y = Conv<group = 16, pads = [1,1,1,1]>(bt, w3)
}"""
"""Thin convolutions with float between: on integers each converts all that it reads and gives."""
SIZES: dict[str, tuple[int, ...]] = {"w1": (16, 1, 3, 3), "w2": (16, 16, 1, 1), "w3": (16, 1, 3, 3)}


class Machine:
    """Times of groups on integers relative to float, of a model of which `rest` takes the rest; readings are off by up
    to `noise`, which their intervals say."""

    def __init__(self, groups: Mapping[str, float], rest: float, noise: float, seed: int) -> None:
        self.groups, self.rest, self.noise = groups, rest, noise
        self.random = np.random.default_rng(seed)
        self.in_float = self.file(list(groups))

    def file(self, left: Collection[str]) -> float:
        return self.rest + sum(1.0 if name in left else time for name, time in self.groups.items())

    def ratio(self, before: float, after: float, *, brief: bool = True) -> LogRatio:
        noise = self.noise if brief else self.noise / 2
        middle = math.log(after / before) + self.random.uniform(-noise, noise)
        return LogRatio(middle, middle - noise, middle + noise)

    def chosen(self, thin: Collection[str] = (), extra: Collection[str] = ()) -> tuple[str, ...]:
        groups = [Group(name, (name,), THIN, name in thin, name in extra) for name in self.groups]
        nothing = compilation()
        trial = Trial("int8", groups, lambda left: left, self, nothing)  # type: ignore[arg-type,return-value]
        return trial.run().left


TIMES = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.2, 3.0), min_size=1)


@settings(max_examples=200)
@given(TIMES, st.floats(0, 3), st.floats(0, 0.1), st.integers(0, 99))
def test_the_end_is_never_slower_than_float_and_never_than_integers_everywhere(
    times: dict[str, float], rest: float, noise: float, seed: int
) -> None:
    machine = Machine(times, rest, noise, seed)
    left = machine.chosen()
    in_float, whole = machine.file(list(times)), machine.file(())
    assert in_float / machine.file(left) >= KEPT - 1e-9
    if whole < KEPT * in_float * math.exp(-2 * noise):
        assert machine.file(left) <= whole + 1e-9


@pytest.mark.parametrize("thin", [(), ("a", "b")])
def test_groups_that_lose_go_back_to_float_and_the_others_do_not(thin: tuple[str, ...]) -> None:
    """On the whole this model is faster in float: b and c gain what a and d lose, and more is lost."""
    machine = Machine({"a": 1.6, "b": 0.6, "c": 0.7, "d": 1.5}, 1.0, 0.01, 0)
    assert machine.file(()) > machine.file("abcd")
    assert set(machine.chosen(thin)) == {"a", "d"}


def test_where_much_is_gained_only_thin_groups_are_tried() -> None:
    machine = Machine({"a": 1.2, "b": 0.2, "c": 0.2, "d": 1.2}, 0.1, 0.001, 0)
    assert machine.chosen(["a"]) == ("a",)


def test_what_saves_no_bytes_is_taken_only_where_the_model_is_surely_faster() -> None:
    """a gains, b gains less than can be told; c saves bytes, and where b is not thin it stays as c does."""
    machine = Machine({"a": 0.5, "b": 0.995, "c": 0.995, "d": 0.5}, 1.0, 0.01, 0)
    assert machine.chosen(thin="ab", extra="ab") == ("b",)
    assert machine.chosen(thin="a", extra="ab") == ()


ATTENTION = """g (float[1,4,128,64] q, float[1,4,64,128] k, float[1,4,128,64] v) => (float[1,4,128,64] y) {
    scores = MatMul(q, k)
    shares = Softmax(scores)
    y = MatMul(shares, v)
}"""


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime-arm64"])
def test_products_of_activations_run_in_integers_where_they_are_large_enough(target: str) -> None:
    model = weighted(ATTENTION, {})
    for node in model.graph:
        node.name = node.outputs[0].name
    feeds = feeds_for(model)
    before = outputs(model, feeds)
    result = Quantize(type="int8").run(model, Plan({}), compilation(target, [feeds], measure=False))
    assert result.facts["nodes"] == ["scores", "y"]
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MatMulIntegerToFloat") == 2
    assert "MatMul" not in kinds
    signed = [
        node.inputs[1].dtype
        for node in model.graph
        if node.op_type == "MatMulIntegerToFloat" and node.inputs[1]
    ]
    assert signed == [ir.DataType.INT8] * 2
    assert relative_error(before, outputs(model, feeds)) < 3e-3
    small = weighted(ATTENTION.replace("128", "16"), {})
    for node in small.graph:
        node.name = node.outputs[0].name
    feeds = feeds_for(small)
    result = Quantize(type="int8").run(small, Plan({}), compilation(target, [feeds], measure=False))
    assert result.facts["nodes"] == []


def _quantized(text: str, target: str, **options: Any) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    model = weighted(text, SIZES)
    for node in model.graph:
        node.name = f"{node.op_type}_{node.outputs[0].name}"
    step = Quantize(type="int8", only_what_pays=True, **options)
    result = step.run(model, Plan({}), compilation(target, [feeds_for(model)], measure=False))
    return result.facts, {remark.where: remark.reason for remark in result.remarks}


def test_without_a_clock_a_table_leaves_thin_layers_between_float_ones_in_float() -> None:
    facts, left = _quantized(LONE, "onnxruntime-arm64")
    assert facts["nodes"] == []
    assert facts["speed"]["how"] == "table"
    assert set(left) == {"Conv_a", "Conv_b", "Conv_y"}
    assert all("between float ones" in reason for reason in left.values())
    chain = LONE.replace("Tanh", "Relu")
    assert len(_quantized(chain, "onnxruntime-arm64")[0]["nodes"]) == 3


def test_forced_layers_are_quantized_though_they_do_not_pay() -> None:
    facts, _ = _quantized(LONE, "onnxruntime-arm64", force=("w1", "*_y"))
    assert facts["nodes"] == ["Conv_a", "Conv_y"]


def test_a_model_of_which_nothing_pays_stays_the_float_one() -> None:
    """Neither its Gemm factors are folded nor its opset is raised for nothing."""
    model = weighted(
        "g (float[4,16] x, WEIGHTS) => (float[4,8] y) { y = Gemm<alpha = 2.0>(x, w) }", {"w": (16, 8)}
    )
    model.graph.node(0).name, model.opset_imports[""] = "only", 11
    before = ir.to_proto(model).SerializeToString()
    given_ = compilation("onnxruntime-arm64", [feeds_for(model)], measure=False)
    facts = Quantize(type="int8", only_what_pays=True).run(model, Plan({}), given_).facts
    assert facts["nodes"] == []
    assert ir.to_proto(model).SerializeToString() == before


def test_density_counts_what_is_multiplied_per_value_moved() -> None:
    """A depthwise 3x3 multiplies 9 times for a value read and one written; strides read more of them."""
    from sparsecc.passes.weights.linear_layers import find_layers

    strided = LONE.replace("y = Conv<group = 16,", "y = Conv<group = 16, strides = [2,2],")
    first, second, third = find_layers(weighted(strided, SIZES))[0]
    assert density(first) == pytest.approx(9 / 2)
    assert density(second) == pytest.approx(16 / 2)
    assert density(third) == pytest.approx(9 / 5)
    product = find_layers(transformer())[0][0]
    assert density(product) == pytest.approx(64 / 2)


def test_layers_of_one_kind_and_size_are_one_group() -> None:
    from sparsecc.passes.quantize.static import StaticOptions, StaticQuantizer

    model = weighted(LONE, SIZES)
    for node in model.graph:
        node.name = node.outputs[0].name
    quantizer = StaticQuantizer(model, compilation(feeds=[feeds_for(model)]), StaticOptions())
    found = {group.names: group.is_thin for group in groups_of(quantizer.decide(model, ()), ())}
    assert found == {("a", "y"): True, ("b",): True}


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of such a model, and samples for it."""
    folder = tmp_path_factory.mktemp("lone")
    model = weighted(LONE, SIZES)
    ir.save(model, folder / "model.onnx")
    np.savez(folder / "calib.npz", **feeds_for(model, batch=1))  # type: ignore[arg-type]
    return folder


def test_a_timed_choice_stands_in_the_recipe_and_is_made_again_without_a_clock(
    lone: Path, tmp_path: Path
) -> None:
    made = sparsecc.compile(
        lone / "model.onnx", quantize="int8", calib=lone / "calib.npz", output=tmp_path / "out"
    )
    (facts,) = [row["facts"] for row in made.report["passes"] if "speed" in row.get("facts", {})]
    assert facts["speed"]["how"] == "timed"
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["quantize"] == "int8!"
    left = recipe.get("quantize_options", {}).get("exclude", "")
    assert left.split(",") == facts["speed"]["left_in_float"] or (not left and facts["nodes"])
    checked = sparsecc.verify(
        tmp_path / "out", model=lone / "model.onnx", reproduce=True, calib=lone / "calib.npz"
    )
    assert {row["check"]: row["ok"] for row in checked["checks"]}["reproduce"]


PRODUCTS = """g (float[1,512,64] x, WEIGHTS) => (float[1,512,64] y) {
    a = MatMul(x, w1)
    b = Tanh(a)
    y = MatMul(b, w2)
}"""


@pytest.mark.parametrize("type_", ["int8-dynamic", "int4"])
def test_types_without_calibration_are_timed_and_made_again_without_a_clock(
    type_: str, tmp_path: Path
) -> None:
    ir.save(weighted(PRODUCTS, {"w1": (64, 64), "w2": (64, 64)}), tmp_path / "model.onnx")
    made = sparsecc.compile(tmp_path / "model.onnx", quantize=type_, output=tmp_path / "out")
    (facts,) = [row["facts"] for row in made.report["passes"] if "speed" in row.get("facts", {})]
    assert facts["speed"]["how"] == "timed"
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["quantize"] == f"{type_}!"
    left = recipe.get("quantize_options", {}).get("exclude", "")
    assert sorted(left.split(",") if left else []) == sorted(facts["speed"]["left_in_float"])
    assert len(facts["speed"]["left_in_float"]) + len(facts["nodes"]) == 2
    checked = sparsecc.verify(tmp_path / "out", model=tmp_path / "model.onnx", reproduce=True)
    assert {row["check"]: row["ok"] for row in checked["checks"]}["reproduce"]


def _left(type_: str, text: str, sizes: dict[str, tuple[int, ...]]) -> set[str]:
    model = weighted(text, sizes)
    for node in model.graph:
        node.name = f"{node.op_type}_{node.outputs[0].name}"
    step = Quantize(type=type_, only_what_pays=True)
    facts = step.run(model, Plan({}), compilation("onnxruntime-arm64", measure=False)).facts
    return set(facts["speed"]["left_in_float"])


def test_by_table_thin_products_stay_in_float_with_int8_dynamic_and_none_with_int4() -> None:
    """A product of 48 x 48 multiplies 24 times per value, one of 96 x 96 48 times; int4 converts nothing."""
    text = "g (float[4,48] x, WEIGHTS) => (float[4,96] y) { a = MatMul(x, w1) b = MatMul(a, w2) y = MatMul(b, w3) }"
    sizes: dict[str, tuple[int, ...]] = {"w1": (48, 48), "w2": (48, 96), "w3": (96, 96)}
    assert _left("int8-dynamic", text, sizes) == {"MatMul_a"}
    assert _left("int4", text, sizes) == set()


def test_int8_insists_with_an_exclamation_mark(lone: Path, tmp_path: Path) -> None:
    made = sparsecc.compile(
        lone / "model.onnx",
        quantize="int8!",
        calib=lone / "calib.npz",
        output=tmp_path / "out",
        measure=False,
    )
    (facts,) = [row["facts"] for row in made.report["passes"] if row["name"].startswith("quantize")]
    assert len(facts["nodes"]) == 3
    assert "speed" not in facts


def test_patterns_that_match_nothing_are_refused_with_the_nearest_names(lone: Path) -> None:
    for key, pattern, words in (
        ("exclude", "wl", "nearest names are 'w3', 'w2', 'w1'"),
        ("force", "type:Convs", "nearest names are 'type:Conv'"),
    ):
        with pytest.raises(
            InputError, match=f"--quantize-option {key} '{pattern}' matches nothing: the {words}"
        ):
            sparsecc.compile(
                lone / "model.onnx",
                quantize="int8",
                quantize_options={key: pattern},
                calib="synthetic",
                dry_run=True,
            )


def test_layers_are_excluded_by_glob_by_operator_and_by_module() -> None:
    sizes: dict[str, tuple[int, ...]] = {"w1": (64, 64), "w2": (64, 64), "w3": (64, 64)}
    text = "g (float[4,64] x, WEIGHTS) => (float[4,64] y) { a = Gemm(x, w1) b = MatMul(a, w2) y = MatMul(b, w3) }"
    for patterns, kept in (
        (("type:MatMul",), ["/head/fc/Gemm"]),
        (("/head/*",), ["/body/up/MatMul", "/body/down/MatMul"]),
        (("body",), ["/head/fc/Gemm"]),
        (("body.up",), ["/head/fc/Gemm", "/body/down/MatMul"]),
        (("w[13]",), ["/body/up/MatMul"]),
    ):
        model = weighted(text, sizes)
        names = iter(["/head/fc/Gemm", "/body/up/MatMul", "/body/down/MatMul"])
        for node in model.graph:
            node.name = next(names)
        step = Quantize(type="int8", exclude=patterns)
        found = step.run(model, Plan({}), compilation(feeds=[feeds_for(model)])).facts["nodes"]
        assert found == kept, patterns
