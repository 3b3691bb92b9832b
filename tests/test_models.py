"""The reference models: as accurate in ONNX Runtime as their README says, small, and of the project alone."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest

MODELS = Path(__file__).resolve().parent.parent / "models"
NAMES = sorted(path.stem for path in MODELS.glob("*.onnx"))
ROW = re.compile(r"^\| `(?P<name>\w+)\.onnx` \|.*\| (?P<accuracy>\d+\.\d) % \|$", re.MULTILINE)
STATED = {
    row["name"]: float(row["accuracy"]) / 100 for row in ROW.finditer((MODELS / "README.md").read_text())
}
WHAT_THEY_ARE_FOR = {
    "digits_resnet": {"Conv", "Relu", "Add", "Sigmoid", "Mul", "Gemm"},
    "digits_vit": {"Conv", "MatMul", "LayerNormalization", "Softmax", "Gelu", "Expand", "Concat"},
    "digits_lstm": {"LSTM", "MatMul", "Gemm"},
}


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits", MODELS / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_states_every_model() -> None:
    assert sorted(STATED) == NAMES == sorted(WHAT_THEY_ARE_FOR)


@pytest.mark.parametrize("name", NAMES)
def test_model_is_as_accurate_as_stated(name: str, digits: ModuleType) -> None:
    session = ort.InferenceSession(MODELS / f"{name}.onnx", providers=["CPUExecutionProvider"])

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(
            zip((output.name for output in session.get_outputs()), session.run(None, feeds), strict=True)
        )

    measured = digits.accuracy(run)
    assert measured >= 0.97
    assert abs(measured - STATED[name]) <= 0.005


def test_accuracy_counts_right_answers(digits: ModuleType) -> None:
    with np.load(MODELS / "digits.npz") as data:
        labels = data["test_labels"]
    asked = iter(np.split(np.eye(10)[labels], 10))
    assert digits.accuracy(lambda feeds: {"logits": next(asked)}) == 1.0
    zeros = digits.accuracy(lambda feeds: {"logits": np.eye(10)[[0] * len(feeds["image"])]})
    assert zeros == np.mean(labels == 0)


def test_calibration_is_the_models_input_and_not_the_test_split(digits: ModuleType) -> None:
    batches = [feeds["image"] for feeds in digits.calibration()]
    images = np.concatenate(batches)
    assert images.shape == (200, 1, 16, 16)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (-1, 1)
    with np.load(MODELS / "digits.npz") as data:
        tested = {image.tobytes() for image in data["test_images"]}
        assert not tested & {image.tobytes() for image in data["calibration_images"]}


def test_images_are_enlarged_as_onnx_resizes_them(digits: ModuleType) -> None:
    """Resize's default is half_pixel: pixels are areas."""
    text = """<ir_version: 8, opset_import: ["": 18]> resize (float[n,1,8,8] x, float[4] scales)
        => (float[n,1,a,b] y) { y = Resize <mode = "linear"> (x, , scales) }"""
    session = ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString())
    images = np.random.default_rng(0).integers(0, 17, (4, 8, 8), dtype=np.uint8)
    feeds = {"x": images[:, None].astype(np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    expected = session.run(None, feeds)[0] / 8 - 1
    np.testing.assert_allclose(digits.prepare(images), expected, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_model_has_the_operators_it_stands_for(name: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert WHAT_THEY_ARE_FOR[name] <= {node.op_type for node in model.graph.node}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if name == "digits_resnet":
        groups = {a.i for node in model.graph.node for a in node.attribute if a.name == "group"}
        assert {96, 128} <= groups, "depthwise convolutions"


@pytest.mark.parametrize("name", NAMES)
def test_model_file_is_small_and_names_no_machine(name: str) -> None:
    path = MODELS / f"{name}.onnx"
    content = path.read_bytes()
    assert len(content) < 2e6
    assert not re.search(rb"\.py\b|/home/|/root/|/work/|/tmp/|site-packages", content)
    assert all(
        tensor.data_location == onnx.TensorProto.DEFAULT for tensor in onnx.load(path).graph.initializer
    )
