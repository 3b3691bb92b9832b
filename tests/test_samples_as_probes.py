"""Models that run only on inputs like the user's: a sample of `--calib` says the sizes, lengths and choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

import sparsecc
from sparsecc.data.random_inputs import random_feeds
from sparsecc.errors import InputError
from sparsecc.shapes.candidates import assignments

LENGTH = 100
RATE = 16000


def framed() -> bytes:
    """Takes any batch of frames of exactly LENGTH samples, and no other rate than RATE."""
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    agraph (float[batch, samples] x, int64 rate) => (float[batch, 2] y)
        <int64 wanted = {{{RATE}}}, float[1] gains = {{0.5}}> {{
        number = Sub(rate, wanted) gain = Gather(gains, number) scaled = Mul(x, gain)
        a = MatMul(scaled, w1) b = Relu(a) y = MatMul(b, w2) }}""")
    generator = np.random.default_rng(0)
    for name, shape in (("w1", (LENGTH, 16)), ("w2", (16, 2))):
        array = generator.normal(0, 0.5, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return bytes(model.SerializeToString())


def saved_samples(folder: Path, rate: int) -> str:
    """Four samples of one frame each, in files that give the rate as well."""
    for number in range(4):
        x = np.random.default_rng(number).normal(0, 1, (1, LENGTH)).astype(np.float32)
        np.savez(folder / f"{number}.npz", x=x, rate=np.asarray(rate))
    return str(folder)


def compiled(folder: Path, **options: Any) -> Any:
    return sparsecc.compile(framed(), ratio=0.5, measure=False, output=folder / "out", **options)


def test_a_sample_gives_the_length_and_the_rate_and_the_batch_stays_free(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    made = compiled(tmp_path, calib=saved_samples(samples, RATE))
    verification = made.report["verification"]
    assert verification["inputs"] == [{"x": [1, LENGTH], "rate": []}, {"x": [2, LENGTH], "rate": []}]
    assert verification["integers"] == {"rate": RATE}
    assert made.report["removed"]["share"] >= 0.5
    (tmp_path / "framed.onnx").write_bytes(framed())
    assert sparsecc.verify(made.bundle, model=tmp_path / "framed.onnx")["ok"]


def test_without_a_sample_the_refusal_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not run on random inputs .* samples with --calib"):
        compiled(tmp_path)


def test_a_sample_the_model_does_not_run_on_is_refused(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    with pytest.raises(InputError, match="does not run on random inputs"):
        compiled(tmp_path, calib=saved_samples(samples, 8000))


# Sizes beside those of a sample ------------------------------------------------------------------------


def tried(inputs: str, **sample: tuple[int, ...]) -> list[list[dict[str, tuple[int, ...]]]]:
    """The candidates that come of the sample alone."""
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": 17]> agraph ({inputs}) => (float[?] y) {{ y = Identity(x) }}'
    )
    for value in model.graph.inputs:
        value.shape = ir.Shape(["p + t" if d == "s" else d for d in value.shape or ()])
    ordinary = len(list(assignments(model, {})))
    return list(assignments(model, {}, sample))[: -ordinary or None]


def test_all_dimensions_vary_then_all_but_one_then_the_batch_then_none() -> None:
    found = tried("float[n, 3, h, w] x", x=(1, 3, 64, 40))
    assert [[sizes["x"] for sizes in pair] for pair in found] == [
        [(1, 3, 64, 40), (2, 3, 128, 136)],
        [(1, 3, 64, 40), (1, 3, 128, 136)],
        [(1, 3, 64, 40), (2, 3, 64, 136)],
        [(1, 3, 64, 40), (2, 3, 128, 40)],
        [(1, 3, 64, 40), (2, 3, 64, 40)],
        [(1, 3, 64, 40)],
    ]


def test_one_name_is_one_size_in_every_input_and_a_sum_follows_its_terms() -> None:
    found = tried("float[n, t] x, float[n, p] past, float[n, s] mask", x=(1, 8), past=(1, 9), mask=(1, 17))
    assert found[0][1] == {"x": (2, 24), "past": (2, 33), "mask": (2, 57)}


def test_fixed_inputs_are_tried_as_they_are() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> agraph (float[2, 3] x) => (float[2, 3] y) { y = Identity(x) }'
    )
    assert list(assignments(model, {}, {"x": (2, 3)})) == [[{"x": (2, 3)}]]


# Integers of a sample ------------------------------------------------------------------------------------

TWO = '<ir_version: 8, opset_import: ["": 17]> agraph (float[n, t] x, int32[n] length) => (float[n, t] y) '
SAMPLE: dict[str, np.ndarray] = {"x": np.zeros((1, 8), np.float32), "length": np.asarray([7], np.int64)}


def test_integers_are_the_samples_repeated_and_floats_are_random() -> None:
    model = ir.from_onnx_text(TWO + "{ y = Identity(x) }")
    feeds = random_feeds(model, seed=0, sizes={"x": (3, 9), "length": (3,)}, sample=SAMPLE)
    assert feeds["length"].tolist() == [7, 7, 7]
    assert feeds["length"].dtype == np.int32
    assert np.ptp(feeds["x"]) > 0


def test_a_smaller_input_takes_nothing_from_the_sample() -> None:
    model = ir.from_onnx_text(TWO + "{ y = Identity(x) }")
    feeds = random_feeds(model, seed=0, sizes={"x": (1, 5), "length": (1,)}, sample=SAMPLE)
    assert feeds["length"].tolist() == [5]
