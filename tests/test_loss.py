"""What is lost, part by part: parts are found, each is judged by its own variation, answers are compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import sparsecc
from benchmarks.detector import CLOSE, rows
from sparsecc.graph.analysis import analyse
from sparsecc.loss.answers import Agreement, Question, agreement, questions
from sparsecc.loss.judge import use_of
from sparsecc.loss.measure import Reference, quality
from sparsecc.loss.parts import Part, by_scale, parts_of_outputs
from sparsecc.loss.quality import CHOSEN, told
from sparsecc.report.verdict import verdict
from tests.repair_models import analysed, normal

RNG_SEED = 3
DETECTOR = """g (float[n,6] x) => (float[n,14] y) {
    a = MatMul(x, wb) boxes = Mul(a, pixels) c = MatMul(x, ws) scores = Sigmoid(c)
    y = Concat<axis=1>(boxes, scores) }"""
LEVELS = """g (float[n,3,8] x) => (float[n,5,20] y) {
    b = MatMul(x, big) s = MatMul(x, small)
    joined = Concat<axis=2>(b, s) scaled = Mul(joined, two) t = Transpose<perm=[0,2,1]>(scaled)
    u = MatMul(t, mix) y = Transpose<perm=[0,2,1]>(u) }"""


def boxes_and_scores(number: int = 64) -> np.ndarray:
    draw = np.random.default_rng(RNG_SEED)
    return np.concatenate([200 * draw.random((number, 4)), 0.2 * draw.random((number, 10))], 1).astype(
        np.float32
    )


def detector() -> dict[str, np.ndarray]:
    return {"wb": normal(6, 4), "ws": normal(6, 10, seed=2), "pixels": np.array([200.0], np.float32)}


def test_pieces_of_a_concat_are_parts() -> None:
    parts = parts_of_outputs(analysed(DETECTOR, detector()))
    assert [part.name for part in parts] == ["y[:, 0:4]", "y[:, 4:14]"]


def test_pieces_are_found_through_views_and_scalings() -> None:
    weights = {
        "big": normal(8, 16), "small": normal(8, 4, seed=2), "two": np.array([2.0], np.float32),
        "mix": normal(3, 5, seed=4),
    }  # fmt: skip
    names = [part.name for part in parts_of_outputs(analysed(LEVELS, weights))]
    assert names == ["y[:, :, 0:16]", "y[:, :, 16:20]"]


def test_channels_of_unlike_scale_are_parts_where_nothing_is_concatenated() -> None:
    found = by_scale(Part("y"), [{"y": boxes_and_scores()}])
    assert [part.ranges for part in found] == [((1, 0, 4),), ((1, 4, 14),)]


def test_alike_or_scattered_channels_stay_whole() -> None:
    draw = np.random.default_rng(RNG_SEED)
    scattered = draw.random((64, 40)) * 10.0 ** draw.integers(-3, 1, 40)
    assert by_scale(Part("y"), [{"y": draw.random((64, 14))}]) == [Part("y")]
    assert by_scale(Part("y"), [{"y": scattered}]) == [Part("y")]


def test_large_numbers_do_not_drown_small_ones() -> None:
    dense = boxes_and_scores()
    wrong = dense.copy()
    wrong[:, 4:] = wrong[::-1, 4:]
    losses = Reference([{"y": dense}]).losses([{"y": wrong}])
    name, loss = losses.worst
    assert name == "y[:, 4:14]"
    assert loss == pytest.approx(2, rel=0.3)
    assert losses.parts["y[:, 0:4]"] == 0
    assert losses.mean == pytest.approx(losses.worst[1] / 2)


def test_energy_is_pooled_over_batches() -> None:
    """One batch of two is all wrong: 3 dB, where decibels averaged would tell 100."""
    draw = np.random.default_rng(RNG_SEED)
    one, two = draw.standard_normal((2, 500, 4))
    losses = Reference([{"y": one}, {"y": two}]).losses([{"y": one}, {"y": np.zeros_like(two)}])
    assert quality(losses.mean) == pytest.approx(3.0, abs=0.2)


def test_an_offset_does_not_make_an_output_lossless() -> None:
    dense = 1000 + np.random.default_rng(RNG_SEED).standard_normal((100, 3))
    assert Reference([{"y": dense}]).loss([{"y": np.full_like(dense, 1000)}]) == pytest.approx(1, rel=0.05)


def test_one_sample_is_not_the_same_on_all() -> None:
    """A class axis of one answer has no variation channel by channel: what counts is that between its entries."""
    dense = np.random.default_rng(RNG_SEED).standard_normal((1, 1000))
    losses = Reference([{"y": dense}]).losses([{"y": 0.9 * dense}])
    assert losses.constant == ()
    assert losses.worst[1] == pytest.approx(0.01, rel=0.05)


def test_constant_parts_are_named_and_told_by_their_size() -> None:
    dense = np.full((8, 3), 5.0)
    losses = Reference([{"y": dense}]).losses([{"y": dense * 1.1}])
    assert losses.constant == ("y",)
    assert losses.worst[1] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("dense", "found"),
    [
        ([[1.0, 2.0]], [[1.0, np.nan]]),
        ([[np.nan, np.nan]], [[np.nan, np.nan]]),
        ([[1.0, -np.inf]], [[1.0, -3.0]]),
        ([[1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]]),
    ],
)
def test_what_is_no_number_is_lost(dense: list[list[float]], found: list[list[float]]) -> None:
    assert Reference([{"y": np.array(dense)}]).loss([{"y": np.array(found)}]) == np.inf


def test_infinities_and_missing_numbers_of_the_dense_model_are_no_loss() -> None:
    dense = np.array([[1.0, -np.inf], [3.0, np.nan]])
    assert Reference([{"y": dense}]).loss([{"y": np.array([[1.0, -np.inf], [3.0, 7.0]])}]) == 0


ASKED = {
    "softmax over the last of three": (
        "g (float[n,5,6] x) => (float[n,5,8] y) { a = MatMul(x, w) y = Softmax<axis=-1>(a) }", ["classes"]),
    "log-softmax behind a view": (
        "g (float[n,6] x) => (float[n,1,8] y) { a = MatMul(x, w) b = LogSoftmax<axis=1>(a) y = Unsqueeze(b, one) }",
        ["classes"]),
    "a last linear layer": ("g (float[n,6] x) => (float[n,8] y) { y = MatMul(x, w) }", ["classes"]),
    "an embedding by its norm": (
        "g (float[n,6] x) => (float[n,8] y) { a = MatMul(x, w) y = LpNormalization<axis=1>(a) }", ["embedding"]),
    "an embedding by its name": ("g (float[n,6] x) => (float[n,8] embedding) { embedding = MatMul(x, w) }",
                                 ["embedding"]),
    "hidden states": ("g (float[n,5,6] x) => (float[n,5,8] last_hidden_state) { last_hidden_state = MatMul(x, w) }",
                      []),
    "labels": ("g (float[n,6] x) => (int64[n] y) { a = MatMul(x, w) y = ArgMax<axis=1,keepdims=0>(a) }", ["labels"]),
    "scores in steps of 8 bits": (
        "g (float[n,6] x) => (uint8[n,8] y) { a = MatMul(x, w) b = Softmax<axis=1>(a) y = QuantizeLinear(b, s, z) }",
        ["classes"]),
    "pixels in steps of 8 bits": (
        "g (float[n,3,4,6] x) => (uint8[n,3,4,6] y) { a = Tanh(x) y = QuantizeLinear(a, s, z) }", ["labels"]),
    "a picture": ("g (float[n,3,4,6] x) => (float[n,3,4,8] y) { a = MatMul(x, w) y = Tanh(a) }", []),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ASKED))
def test_what_an_output_is_asked(name: str) -> None:
    text, wanted = ASKED[name]
    weights = {"w": normal(6, 8), "one": np.array([1], np.int64), "s": np.float32(0.004), "z": np.uint8(0)}
    used = {key: np.asarray(array) for key, array in weights.items() if re.search(rf"\b{key}\b", text)}
    model = analysed(text, used).model
    asked = questions(model, [Part(value.name or "") for value in model.graph.outputs])
    assert [question.kind for question in asked] == wanted


def test_agreement_along_a_class_axis_of_any_rank() -> None:
    text, _ = ASKED["softmax over the last of three"]
    model = analysed(text, {"w": normal(6, 8)}).model
    asked = questions(model, [Part("y")])
    dense = np.eye(8)[np.arange(30).reshape(6, 5) % 8]
    other = dense.copy()
    other[:3] = np.roll(other[:3], 1, axis=-1)
    (told,) = agreement(asked, [{"y": dense}], [{"y": other}])
    assert (told.share, told.number) == (0.5, 30)
    low, high = told.interval
    assert low < 0.4 < 0.6 < high


@pytest.mark.parametrize(("opset", "axis"), [(12, 1), (13, -1)])
def test_softmax_without_an_axis_is_over_that_of_its_opset(opset: int, axis: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    (asked,) = questions(ir.from_proto(model), [Part("y")])
    assert (asked.kind, asked.axis) == ("classes", axis)


@pytest.mark.parametrize("axis", [1, -1])
def test_classes_lie_before_the_one_place_that_a_pooling_leaves(axis: int) -> None:
    """SqueezeNet's own: [batch, 1000, 1, 1], whose last axis holds no classes."""
    dense = np.eye(8)[np.arange(10) % 8].reshape(10, 8, 1, 1)
    other = np.concatenate([dense[:6], np.roll(dense[6:], 1, axis=1)])
    (told,) = agreement([Question(Part("y"), "classes", axis)], [{"y": dense}], [{"y": other}])
    assert (told.share, told.number) == (0.6, 10)
    scores = np.arange(20.0).reshape(10, 2, 1)
    assert agreement([Question(Part("y"), "classes", -1)], [{"y": scores}], [{"y": scores}]) == ()


def test_embeddings_agree_by_their_neighbours() -> None:
    text, _ = ASKED["an embedding by its norm"]
    asked = questions(analysed(text, {"w": normal(6, 8)}).model, [Part("y")])
    dense = np.random.default_rng(RNG_SEED).standard_normal((40, 8))
    (same,) = agreement(asked, [{"y": dense}], [{"y": 3 * dense}])
    (lost,) = agreement(asked, [{"y": dense}], [{"y": dense[::-1]}])
    assert same.share == 1
    assert lost.share < 0.3


def detections() -> tuple[tuple[Question, ...], np.ndarray]:
    """Of a detector: what is asked of its parts, and outputs of 64 samples, every second of which finds something."""
    analysis = analyse(analysed(DETECTOR, detector()).model)
    asked = questions(analysis.model, parts_of_outputs(analysis))
    dense = boxes_and_scores()
    dense[::2, 4] = 0.9
    return asked, dense


def test_detectors_are_asked_by_part_and_only_where_they_are_sure() -> None:
    asked, dense = detections()
    assert [(question.part.name, question.kind) for question in asked] == [("y[:, 4:14]", "detections")]
    unsure = dense.copy()
    unsure[1::2, 4:] = unsure[1::2, :3:-1]
    (told,) = agreement(asked, [{"y": dense}], [{"y": unsure}])
    assert (told.share, told.number) == (1, 32)


@pytest.mark.parametrize("factor", [0.9, 0.1])
def test_what_is_no_longer_found_is_another_answer(factor: float) -> None:
    asked, dense = detections()
    fainter = dense.copy()
    fainter[:, 4:] *= factor
    (told,) = agreement(asked, [{"y": dense}], [{"y": fainter}])
    assert told.share == (factor > 0.5)


def test_a_map_of_scores_is_asked_what_it_finds() -> None:
    model = analysed("g (float[n,3,6] x) => (float[n,3,8] y) { a = MatMul(x, w) y = Sigmoid(a) }",
                     {"w": normal(6, 8)}).model  # fmt: skip
    (question,) = questions(model, [Part("y")])
    found = np.full((4, 3, 8), 0.1)
    found[:, 0] = 0.9
    (told,) = agreement([question], [{"y": found}], [{"y": np.full_like(found, 0.1)}])
    assert (question.kind, told.share, told.number) == ("detections", 0, 32)


MAP = """m (float[1,3,h,w] image) => (float[hh,ww] y) {
    x = Conv<pads=[1,1,1,1]>(image, weights) s = Sigmoid(x) y = Squeeze(s, axes) }"""


def test_a_map_without_a_batch_is_one_part_and_names_no_class() -> None:
    weights = {"weights": np.ones((1, 3, 3, 3), np.float32), "axes": np.array([0, 1])}
    analysis = analysed(MAP, weights)
    parts = parts_of_outputs(analysis)
    assert [(part.name, part.places) for part in parts] == [("y", (1,))]
    assert questions(analysis.model, parts) == ()
    columns = np.random.default_rng(0).random((24, 6)) * [1, 1, 1, 1e-4, 1e-4, 1e-4]
    assert by_scale(parts[0], [{"y": columns}]) == [Part("y")]
    assert len(by_scale(Part("y"), [{"y": columns}])) == 2


def test_parts_name_the_layers_that_make_them() -> None:
    model = analysed(DETECTOR, detector()).model
    for node in model.graph:
        node.name = f"layer.{node.outputs[0].name}"
    assert [part.layer for part in parts_of_outputs(analyse(model))] == ["layer.a", "layer.c"]


def facts(agreement: Sequence[tuple[str, float, int]] = (), **parts: float) -> dict[str, Any]:
    answers = [Agreement(part, "classes", share, number) for part, share, number in agreement]
    return {"parts": parts, "agreement": [answer.to_json() for answer in answers]}


@pytest.mark.parametrize(
    ("told", "use"),
    [
        (facts(y=30.0), "usable"),
        (facts(boxes=30.0, scores=12.0), "doubtful"),
        (facts(boxes=30.0, scores=6.0), "useless"),
        (facts([("y", 0.99, 100)], y=4.0), "usable"),
        (facts([("y", 0.85, 100)], y=30.0), "doubtful"),
        (facts([("y", 0.99, 100)], y=30.0, z=6.0), "useless"),
        (facts([("labels", 0.5, 100)]), "useless"),
        (facts([("labels", 0.75, 100)]), "useless"),
        (facts([("labels", 0.75, 8)]), "doubtful"),
        (facts([("y", 1.0, 15)], y=13.0), "doubtful"),
        (facts([("y", 1.0, 15)], y=4.0), "doubtful"),
        (facts([("y", 1.0, 15)], y=20.0), "usable"),
        (facts([("y", 1.0, 100)], y=13.0), "usable"),
        ({}, "usable"),
    ],
)
def test_the_worst_part_decides_by_its_answers_where_they_are_known(told: dict[str, Any], use: str) -> None:
    assert use_of(told) == use


BRANCHES = """g (float[n,6] x) => (float[n,14] y) {
    a = MatMul(x, w1) h = Relu(a)
    b = MatMul(h, w2) c = Relu(b) d = MatMul(c, wb) boxes = Mul(d, pixels)
    e = MatMul(h, w3) f = Relu(e) s = MatMul(f, ws) scores = Sigmoid(s)
    y = Concat<axis=1>(boxes, scores) }"""
APART = BRANCHES.replace("(float[n,14] y)", "(float[n,4] boxes, float[n,10] scores)").replace(
    "y = Concat<axis=1>(boxes, scores) }", "}"
)


def test_one_output_of_two_answers_is_cut_as_two_outputs_are(tmp_path: Path) -> None:
    """Boxes in pixels beside scores in 0..1: the plan must not be the one that only boxes ask for."""
    weights = {
        "w1": normal(6, 32), "w2": normal(32, 32, seed=2), "wb": normal(32, 4, seed=3),
        "w3": normal(32, 32, seed=4), "ws": 0.1 * normal(32, 10, seed=5), "pixels": np.array([200.0], np.float32),
    }  # fmt: skip
    np.savez(tmp_path / "calib.npz", x=normal(96, 6, seed=6))
    plans = []
    for name, text in (("one", BRANCHES), ("two", APART)):
        ir.save(analysed(text, weights).model, tmp_path / f"{name}.onnx")
        made = sparsecc.compile(
            tmp_path / f"{name}.onnx", output=tmp_path / name, ratio=0.3, align=1, measure=False,
            calib=str(tmp_path / "calib.npz"),
        )  # fmt: skip
        plans.append(made.plan["tensors"])
        told = made.report["fidelity"]
        assert min(told["parts"].values()) == told["worst"]["quality_db"] > 5
    assert plans[0] == plans[1]


def test_scores_beside_boxes_are_kept_as_if_protected_by_hand(tmp_path: Path) -> None:
    """Of a detector: within 3 dB of a plan of equal work that keeps the class branch whole, on unseen pictures."""
    (found,) = rows([0.3], tmp_path, hand=("auto",))
    assert found["default"]["scores"] > found["by_hand"]["auto"]["scores"] - CLOSE
    assert min(found["default"].values()) > 15


@pytest.mark.parametrize(("number", "least", "most"), [(3, 12, 18), (8, 4, 8), (64, 0.1, 2.5)])
def test_intervals_are_as_wide_as_the_samples_are_few(number: int, least: float, most: float) -> None:
    draw = np.random.default_rng(RNG_SEED)
    dense = draw.standard_normal((number, 50))
    low, high = told([{"y": dense}], [{"y": dense + 0.1 * draw.standard_normal(dense.shape)}])["interval_db"]
    assert low < 20 < high
    assert least < high - low < most


def test_samples_that_plans_were_chosen_on_say_that_others_may_be_worse() -> None:
    draw = np.random.default_rng(RNG_SEED)
    dense, error = draw.standard_normal((40, 50)), draw.standard_normal((40, 50))
    error *= draw.uniform(0.02, 0.2, (40, 1))  # samples are unlike
    fresh, chosen = (told([{"y": dense}], [{"y": dense + error}], chosen=one) for one in (False, True))
    (low, high), (lower, same) = fresh["interval_db"], chosen["interval_db"]
    assert same == high
    assert fresh["quality_db"] == chosen["quality_db"]
    assert chosen["quality_db"] - lower == pytest.approx(CHOSEN * (fresh["quality_db"] - low), abs=0.02)
    assert lower < low


def test_where_one_sample_decides_the_next_may_be_as_much_worse() -> None:
    draw = np.random.default_rng(RNG_SEED)
    dense, error = draw.standard_normal((16, 50)), 0.01 * draw.standard_normal((16, 50))
    low, high = told([{"y": dense}], [{"y": dense + error}])["interval_db"]
    assert 38 < low < 39 < 41 < high < 42
    error[5] *= 30
    found = told([{"y": dense}], [{"y": dense + error}])
    low, high = found["interval_db"]
    assert high > 35
    assert found["quality_db"] - low == pytest.approx(high - found["quality_db"], abs=0.1)


def test_without_samples_a_ruined_result_is_said_to_look_like_one() -> None:
    ruined = {"quality_db": -200.0, "parts": {"y": -200.0}, "data": "random inputs"}
    said = verdict({"removed": {"share": 0.5}, "fidelity": ruined})
    assert said.judgement == "not judged"
    assert not said.is_good
    assert said.lost == "outputs beyond comparison on random inputs"
    assert said.advice.startswith("far from the original")
    fine = {**ruined, "quality_db": 40.0, "parts": {"y": 40.0}}
    assert verdict({"removed": {"share": 0.5}, "fidelity": fine}).advice.startswith("give samples")
