"""What passes did is proved too: scales at wrong channels, clipped constants, merged outputs are never "proved"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from benchmarks.large import Decoder
from sparsecc.errors import GoalError
from sparsecc.ir import graph_editor
from sparsecc.ir.graph_editor import GraphEditor
from sparsecc.passes.quantize.quantize import Quantize
from sparsecc.runtime import partitioned
from sparsecc.runtime.session import open_session
from sparsecc.system import memory
from sparsecc.tasks.compile import compile_model

NET = """<ir_version: 8, opset_import: ["": 17]> g (float[32,3,8,8] x) => (float[32,10] y) {
    a = Conv<pads = [1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    h = MatMul(f, w2)
    y = MatMul(h, w3)
}"""

SCAN = """<ir_version: 8, opset_import: ["": 17]> g (float[2,16] h0, float[5,2,16] x)
    => (float[2,16] hn, float[5,2,16] ys) {
    xs = MatMul(x, w)
    hn, ys = Scan<num_scan_inputs = 1, body = step (float[2,16] h, float[2,16] xt)
        => (float[2,16] next, float[2,16] out) { s = Add(h, xt) next = Tanh(s) out = Identity(next) }>(h0, xs)
}"""


def with_weights(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """Weights whose channels have unlike scales."""
    model = parser.parse_model(text)
    generator = np.random.default_rng(5)
    for name, shape in shapes.items():
        weights = generator.normal(0, 0.3, shape) * generator.uniform(
            0.3, 3, (shape[0], *[1] * (len(shape) - 1))
        )
        model.graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), name))
    return model


def net() -> onnx.ModelProto:
    return with_weights(NET, w1=(32, 3, 3, 3), b1=(32,), w2=(32, 64), w3=(64, 10))


def proof_of(model: onnx.ModelProto, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What a compile with these options says of its proof."""
    onnx.save(model, folder / "model.onnx")
    request = {
        "model": str(folder / "model.onnx"),
        "options": options,
        "output": str(folder / "out"),
        "force": True,
    }
    found: dict[str, Any] = compile_model(request, lambda event: None)["report"]["verification"]
    return found


def verification(
    model: onnx.ModelProto, folder: Path, quantize: str, calib: str | None = "synthetic", **more: str
) -> dict[str, Any]:
    """What a compile that changes types alone says of its proof; `more` are options of the pass."""
    all_layers = {"force": "*"} if quantize == "int8" else {}
    options = {
        "ratio": 0,
        "quantize": quantize,
        "calib": calib,
        "measure": False,
        "quantize_options": all_layers | more,
    }
    return proof_of(model, folder, options)


def afterwards(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    """From here on every constant that quantization leaves goes through `spoil(name, array)`."""
    right = Quantize.run

    def run(self: Quantize, model: ir.Model, plan: Any, context: Any) -> Any:
        result = right(self, model, plan, context)
        for name, value in model.graph.initializers.items():
            assert value.const_value is not None
            wrong = spoil(name, value.const_value.numpy())
            value.const_value = ir.Tensor(wrong, dtype=value.const_value.dtype, name=name)
        return result

    monkeypatch.setattr(Quantize, "run", run)


@pytest.mark.parametrize(
    ("quantize", "layers"), [("int8!", 3), ("int8-dynamic!", 2), ("int4!", 2), ("fp16", 3)]
)
def test_layers_are_within_what_their_type_explains(quantize: str, layers: int, tmp_path: Path) -> None:
    found = verification(net(), tmp_path, quantize)
    assert found["status"] == "proved"
    assert found["layers_in_type"] == layers


def test_what_lies_beyond_the_ranges_of_the_samples_is_no_fault(tmp_path: Path) -> None:
    """Random inputs are some twenty times as large as these samples: 8-bit activations clip them."""
    samples = np.random.default_rng(0).uniform(0, 0.1, (64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    found = verification(net(), tmp_path, "int8!", str(tmp_path / "samples.npz"))
    assert found["status"] == "proved", found["reason"]


LOOP = """<ir_version: 8, opset_import: ["": 17]> g (float[32,64] x) => (float[32,64] y) {
    times = Constant<value = int64 {3}>()
    y = Loop<body = step (int64 i, bool c, float[32,64] s) => (bool go, float[32,64] t) {
        go = Identity(c) t = MatMul(s, w) }>(times, , x)
}"""


PRODUCTS = """<ir_version: 8, opset_import: ["": 17]> g (float[32,64] x) => (float[32,64] y) {
    h = MatMul(x, w) y = MatMul(h, w)
}"""


@pytest.mark.parametrize("factor", [1, 64])
@pytest.mark.parametrize("text", [PRODUCTS, LOOP], ids=["products", "loop"])
def test_a_range_that_other_samples_need_is_loss_and_a_scale_of_no_range_a_fault(
    text: str, factor: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quiet samples are lost in the steps of the range that they share with loud ones."""
    loud = np.random.default_rng(0).standard_normal((32 * 8, 64)).astype(np.float32)
    loud[:32] *= 1e-3 if factor == 1 else 1
    np.savez(tmp_path / "samples.npz", x=loud)
    levels = {"x_scale", "s_scale"}
    afterwards(monkeypatch, lambda name, a: a * np.float32(factor) if name in levels else a)
    found = verification(with_weights(text, w=(64, 64)), tmp_path, "int8!", str(tmp_path / "samples.npz"))
    assert found["status"] == ("proved" if factor == 1 else "not proved"), found.get("reason")


def test_a_batch_norm_that_is_folded_is_part_of_its_layer(tmp_path: Path) -> None:
    text = NET.replace("r = Relu(a)", "n = BatchNormalization(a, s, b1, m, v) r = Relu(n)")
    model = with_weights(text, w1=(32, 3, 3, 3), b1=(32,), w2=(32, 64), w3=(64, 10), s=(32,), m=(32,))
    model.graph.initializer.append(
        numpy_helper.from_array(np.linspace(0.5, 2, 32, dtype=np.float32) ** 2, "v")
    )
    found = verification(model, tmp_path, "int8!")
    assert found["status"] == "proved"
    assert found["layers_in_type"] == 3


def test_a_dead_channel_keeps_its_bias_in_8_bits(tmp_path: Path) -> None:
    """Its bias is rounded in steps of the channel's scale, which no weight asks for."""
    model = net()
    weight, bias = (numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer[:2])
    weight[3], bias[3] = 0, 0.05
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(bias, "b1"))
    found = verification(model, tmp_path, "int8!")
    assert found["status"] == "proved", found["reason"]


TWICE = NET.replace(
    "p = GlobalAveragePool(r)", "c = Conv<pads = [1,1,1,1]>(r, w4) t = Relu(c) p = GlobalAveragePool(t)"
)
TWICE = TWICE.replace("h = MatMul(f, w2)", "l = LayerNormalization(f, s, b1) h = MatMul(l, w2)")
MOVED = [
    ("int8", {"smooth": "0.5"}, 4),
    ("int8", {"equalize": "true"}, 4),
    ("int8", {"smooth": "0.5", "equalize": "true"}, 4),
    ("int4", {"algorithm": "awq"}, 2),
    ("int4", {"eora": "0.5"}, 2),
]
"""Types whose passes move numbers between layers first, or add paths beside them, and how many layers are held."""


def twice() -> onnx.ModelProto:
    """As `net`, of two convolutions and a norm."""
    return with_weights(
        TWICE, w1=(32, 3, 3, 3), b1=(32,), w2=(32, 64), w3=(64, 10), w4=(32, 32, 3, 3), s=(32,)
    )


@pytest.mark.parametrize(("quantize", "options", "layers"), MOVED)
def test_layers_are_held_against_the_form_with_numbers_moved(
    quantize: str, options: dict[str, str], layers: int, tmp_path: Path
) -> None:
    found = verification(twice(), tmp_path, quantize, **options)
    assert found["status"] == "proved", found["reason"]
    assert found["layers_in_type"] == layers


@pytest.mark.parametrize(("quantize", "options", "layers"), MOVED)
def test_scales_at_the_next_channel_are_named_there_too(
    quantize: str, options: dict[str, str], layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    afterwards(monkeypatch, lambda name, a: np.roll(a, 1) if name.endswith("_scale") and a.size > 1 else a)
    found = verification(twice(), tmp_path, quantize, **options)
    assert found["status"] == "not proved"
    assert "where the type explains" in found["reason"]


def test_numbers_that_were_moved_wrongly_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = GraphEditor.constant
    monkeypatch.setattr(
        GraphEditor,
        "constant",
        lambda self, name, array: right(self, name, 2 * array if name.endswith("_divided") else array),
    )
    found = verification(twice(), tmp_path, "int8", smooth="0.5")
    assert found["status"] == "not proved"
    assert "scales that were moved between layers changed output 'y'" in found["reason"]


@pytest.mark.parametrize("quantize", ["int8", "int8-dynamic!", "int4"])
def test_scales_at_the_next_channel_are_named(
    quantize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    afterwards(monkeypatch, lambda name, a: np.roll(a, 1) if name.endswith("_scale") and a.size > 1 else a)
    found = verification(net(), tmp_path, quantize)
    assert found["status"] == "not proved"
    assert "where the type explains" in found["reason"]


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model fits, constants of all sizes count as large, and parts are of a layer or two."""
    monkeypatch.setattr(memory, "fits", lambda weights: False)
    monkeypatch.setattr(partitioned, "HELD", 0)
    monkeypatch.setattr(partitioned, "part_bytes", lambda: 1 << 12)


def forced(quantize: str) -> dict[str, str]:
    """What a type that leaves alone what it makes no faster is told."""
    return {} if quantize == "fp16" else {"force": "*"}


@pytest.mark.parametrize(("quantize", "layers"), [("int8-dynamic", 2), ("int4", 2), ("fp16", 3)])
def test_layers_of_models_that_are_run_by_parts_are_held_too(
    quantize: str, layers: int, tmp_path: Path, no_room: None
) -> None:
    found = verification(net(), tmp_path, quantize, None, **forced(quantize))
    assert found["by_parts"]["parts"] > 1
    assert found["status"] == "proved", found["reason"]
    assert found["layers_in_type"] == layers


@pytest.mark.parametrize("quantize", ["int8-dynamic", "int4"])
def test_scales_at_the_next_channel_are_named_by_parts(
    quantize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_room: None
) -> None:
    afterwards(monkeypatch, lambda name, a: np.roll(a, 1) if name.endswith("_scale") and a.size > 1 else a)
    found = verification(net(), tmp_path, quantize, None, **forced(quantize))
    assert found["status"] == "not proved"
    assert "where the type explains" in found["reason"]


def test_outputs_and_constants_are_named_by_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_room: None
) -> None:
    afterwards(monkeypatch, lambda name, a: a.clip(-0.5, 0.5) if name.startswith("w2") else a)
    found = verification(net(), tmp_path, "fp16", None)
    assert "constant 'w2' holds numbers that float16 does not" in found["reason"]
    assert "output 'y' is off by" in found["reason"]


@pytest.mark.parametrize("quantize", ["int8-dynamic", "int4"])
def test_layers_whose_weights_were_halves_are_held(quantize: str, tmp_path: Path) -> None:
    path = Decoder(tmp_path, width=128, layers=1, words=256).write()
    found = verification(onnx.load(path), tmp_path, quantize, None)
    assert found["status"] == "proved", found["reason"]
    assert found["layers_in_type"] == 8


def test_a_clipped_constant_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    afterwards(monkeypatch, lambda name, a: a.clip(-0.5, 0.5) if name.startswith("w2") else a)
    found = verification(net(), tmp_path, "fp16")
    assert found["status"] == "not proved"
    assert "constant 'w2' holds numbers that float16 does not" in found["reason"]


def test_what_is_no_number_any_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    afterwards(monkeypatch, lambda name, a: a * np.float16("inf") if name.startswith("w2") else a)
    with pytest.raises(GoalError, match=r"output 'y' is finite before and not after.*samples with --calib$"):
        verification(net(), tmp_path, "fp16")
    assert not (tmp_path / "out").exists()


def test_samples_are_not_asked_for_where_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    afterwards(monkeypatch, lambda name, a: a * np.float16("inf") if name.startswith("w2") else a)
    model = net()
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    samples = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples)
    with pytest.raises(GoalError, match=r"exclude=NODE or take another type$"):
        verification(model, tmp_path, "fp16", str(tmp_path / "samples.npz"))


@pytest.mark.parametrize("quantize", ["fp16", "int8-dynamic!", "int4"])
def test_a_body_that_gives_a_value_twice_keeps_both(quantize: str, tmp_path: Path) -> None:
    model = with_weights(SCAN, w=(16, 16))
    found = verification(model, tmp_path, quantize)
    assert found["status"] == "proved"
    generator = np.random.default_rng(0)
    feeds = {"h0": generator.normal(size=(2, 16)), "x": generator.normal(size=(5, 2, 16))}
    small = {name: array.astype(np.float32) for name, array in feeds.items()}
    dense, made = (
        open_session(path, threads=1, level="none").run(small)
        for path in (tmp_path / "model.onnx", tmp_path / "out" / "model.onnx")
    )
    for name in ("hn", "ys"):
        assert np.abs(dense[name] - made[name]).max() < 0.1


def test_outputs_that_a_pass_confused_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def confused(model: ir.Model) -> None:
        """A body gives what its Tanh reads in place of what it gives."""
        for node in list(model.graph.all_nodes()):
            if node.op_type == "Identity":
                producer = node.inputs[0].producer() if node.inputs[0] is not None else None
                assert producer is not None
                node.replace_input_with(0, producer.inputs[0])

    monkeypatch.setattr(graph_editor, "drop_identities", confused)
    found = verification(with_weights(SCAN, w=(16, 16)), tmp_path, "fp16")
    assert found["status"] == "not proved"
    assert "where rounding to the types explains" in found["reason"]
