"""Options of the passes as text, and what the first screen says when a type did not come to pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc import api
from sparsecc.backends.nvidia.engine import TensorrtEngine
from sparsecc.compilation import Compilation
from sparsecc.decide.passes import passes_for
from sparsecc.errors import GoalError, InputError
from sparsecc.options import CompileOptions
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.quantize import KINDS
from sparsecc.passes.sparsity import Sparsify
from sparsecc.remarks import Remark
from sparsecc.report import assemble
from sparsecc.report.types_used import larger_than, slower_than, type_warnings
from sparsecc.runtime.kernel_census import census
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.ablation import quantized_part
from sparsecc.tasks.stages import begin
from tests.quantize_models import convolutions, feeds_for, transformer
from tests.test_quantize import apply


def options(**given: Any) -> CompileOptions:
    return CompileOptions.of(given)


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({"quantize": "int8", "quantize_options": {"method": "mse", "smooth": "0.5", "max-drop": "1e-3"}},
         [Quantize(type="int8", method="mse", smooth=0.5, max_drop=1e-3, only_what_pays=True)]),
        ({"quantize": "int4", "quantize_options": {"algorithm": "gptq", "block": "64"}},
         [Quantize(type="int4", algorithm="gptq", block=64, only_what_pays=True)]),
        ({"quantize": "int8!", "quantize_options": {"exclude": "a,b", "equalize": "true", "per_channel": "0"}},
         [Quantize(type="int8", exclude=("a", "b"), equalize=True, per_channel=False)]),
        ({"target": "tensorrt", "sparsity": "2:4", "sparsity_options": {"method": "wanda", "permute": "on"},
          "quantize": "fp8"},
         [Sparsify(pattern="2:4", method="wanda", permute=True), Quantize(type="fp8")]),
    ],
)  # fmt: skip
def test_texts_become_fields(given: dict[str, Any], passes: list[Any]) -> None:
    assert passes_for(options(**given)) == passes
    recipe = options(**given).to_recipe()
    assert passes_for(CompileOptions.of(recipe)) == passes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quantize": "int8", "quantize_options": {"metod": "mse"}}, "no key 'metod': did you mean 'method'"),
        ({"quantize": "int8", "quantize_options": {"type": "int4"}}, "no key 'type'"),
        ({"quantize": "int4", "quantize_options": {"block": "many"}}, "block=many: write a whole number"),
        ({"quantize": "int8", "quantize_options": {"smooth": "x"}}, "smooth=x: write a number"),
        ({"quantize": "int8", "quantize_options": {"equalize": "perhaps"}}, "write true or false"),
        ({"quantize_options": {"method": "mse"}}, "does nothing without --quantize"),
        ({"sparsity_options": {"method": "wanda"}}, "does nothing without --sparsity"),
    ],
)
def test_what_no_pass_takes_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        passes_for(options(**given))
    assert "\n" not in str(caught.value)


def test_refused_before_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="no key 'metod'"):
        api.compile(tmp_path / "model.onnx", quantize="int8", quantize_options={"metod": "mse"}, dry_run=True)


def test_builder_options_have_their_types() -> None:
    given = {"tf32": "false", "workspace": "2GiB", "optimization_level": "4"}
    told = TensorrtEngine().build_options(options(target="tensorrt", build=given, inputs={"x": [1, 3, 8, 8]}))
    assert told == {
        "tf32": False, "workspace": "2GiB", "optimization_level": "4", "profiles": {"x": "1x3x8x8"}
    }  # fmt: skip


def _census(model: ir.Model, folder: Path) -> Mapping[str, Any]:
    ir.save(model, folder / "model.onnx")
    return census(folder / "model.onnx")


def _warnings(type_: str, model: ir.Model, folder: Path, *, target: str = "onnxruntime") -> list[str]:
    result, _ = apply(Quantize(type=type_), model, target, [feeds_for(model)])
    row = {"name": "quantize", "facts": result.facts}
    remarks = [("quantize", skip) for skip in result.remarks]
    return type_warnings(type_, [row], _census(model, folder), remarks)


def test_a_model_wholly_in_int8_gives_no_warning(tmp_path: Path) -> None:
    assert _warnings("int8", convolutions(), tmp_path) == []


def test_kernels_left_in_float_are_named_with_the_reason(tmp_path: Path) -> None:
    (warning,) = _warnings("int8", transformer(), tmp_path)
    assert "2 of 8 kernels that multiply stay in float" in warning
    assert "both operands are activations (for example '" in warning


def test_a_type_that_is_not_used_at_all_says_so(tmp_path: Path) -> None:
    model = convolutions()
    found = _census(model, tmp_path)
    plain = {**found, "in_float": [{"node": "conv1", "reason": "not quantized"}]}
    (warning,) = type_warnings("int8", [], plain, [])
    assert "no kernel runs on integers" in warning
    row = {"name": "quantize", "facts": {"type": "int4", "nodes": []}}
    (warning,) = type_warnings("int4", [row], found, [("quantize", Remark("conv1", "convolution"))])
    assert warning == "--quantize int4 changed no layer (convolution): the model runs in the type it had"
    assert type_warnings(None, [row], found, []) == []


@pytest.mark.parametrize(
    ("interval", "warns"), [((0.80, 0.95), True), ((0.80, 1.01), False), ((1.2, 1.5), False)]
)
def test_slower_than_a_part_is_said_only_when_the_interval_shows_it(
    interval: tuple[float, float], warns: bool
) -> None:
    found = slower_than("the pruned model alone", {"estimate": 0.875, "ci95": list(interval)}, "do less")
    assert found == ["1.14x slower than the pruned model alone (95 % interval 1.05 to 1.25): do less"] * warns


@pytest.mark.parametrize(
    ("quantize", "advice"),
    [
        ("int8!", "--quantize int8 leaves in float what is slower in integers"),
        ("int4!", "--quantize int4 leaves in float what is slower in integers"),
        ("int8", "leave --quantize out where latency is what counts"),
        ("fp16", "fp16 makes it smaller here, not faster"),
        (None, "--speedup TIMES instead of --ratio"),
    ],
)
def test_a_result_slower_than_the_original_says_what_to_do(
    quantize: str | None, advice: str, tmp_path: Path
) -> None:
    compilation = Compilation(tmp_path, CompileOptions(quantize=quantize), Scratch(tmp_path))
    latency = {"speedup": {"estimate": 0.5, "ci95": [0.4, 0.6]}}
    (doubt,) = assemble.doubts(compilation, {"latency": latency})
    assert doubt.startswith("2.00x slower than the original (95 % interval 1.67 to 2.50): ")
    assert advice in doubt
    latency["speedup"]["ci95"] = [0.4, 1.1]
    assert assemble.doubts(compilation, {"latency": latency}) == []


def test_a_combination_is_timed_against_its_parts(models_dir: Path, tmp_path: Path) -> None:
    made = api.compile(
        models_dir / "digits_resnet.onnx",
        ratio=0.3,
        quantize="fp16",
        recover="none",
        output=tmp_path / "out",
    )
    assert set(made.report["parts"]) == {"pruned", "quantized"}
    for part, ratio in made.report["parts"].items():
        low, high = ratio["ci95"]
        assert 0 < low <= high
        slower = [w for w in made.report["warnings"] if f"slower than the {part} model alone" in w]
        assert bool(slower) == (high < 1)


def test_the_quantized_part_is_the_dense_model_on_integers(models_dir: Path, tmp_path: Path) -> None:
    dense = models_dir / "digits_resnet.onnx"
    asked = options(quantize="int8", quantize_options={"max_drop": "0.5"}, ratio=0.3)
    compilation = Compilation(dense, asked, Scratch(tmp_path))
    begin(compilation)
    part = quantized_part(compilation)
    assert part is not None
    assert sum(census(part)["integer"].values()) >= sum(census(dense)["float"].values()) - 1
    compilation.feeds[0]["image"][:] = np.nan
    assert quantized_part(compilation) is None
    assert "not timed against the quantized model" in compilation.remarks[0][1].reason


@pytest.mark.parametrize("type_", ["int4", "int8-dynamic"])
def test_too_much_loss_is_refused_only_when_a_limit_is_given(type_: str) -> None:
    model = transformer()
    feeds = [feeds_for(model)]
    lost = apply(Quantize(type=type_), model, "onnxruntime", feeds)[0].facts["output_quality_db"]
    share = max(10 ** (-ratio / 10) for ratio in lost.values())
    apply(Quantize(type=type_, max_drop=share * 1.5), transformer(), "onnxruntime", feeds)
    with pytest.raises(GoalError, match=f"to {type_}, over"):
        apply(Quantize(type=type_, max_drop=share / 2), transformer(), "onnxruntime", feeds)
    with pytest.raises(InputError, match="max_drop needs calibration data"):
        apply(Quantize(type=type_, max_drop=0.5), transformer(), "onnxruntime", [])


def test_arm64_is_symmetric_where_values_are_negative_too() -> None:
    model = convolutions()
    apply(Quantize(type="int8"), model, "onnxruntime-arm64", [feeds_for(model)])
    points = {}
    for node in model.graph:
        zero = node.inputs[2] if node.op_type == "QuantizeLinear" else None
        if zero is not None and zero.const_value is not None:
            points[node.inputs[0].name if node.inputs[0] else ""] = int(zero.const_value.numpy())
    assert set(points.values()) == {0, -128}
    assert points[model.graph.inputs[0].name] == 0


def test_biases_behind_identities_are_constants(tmp_path: Path) -> None:
    """Exporters write an Identity for every bias that equals another; half of ResNet-50 hid behind them."""
    model = convolutions()
    weighted = [node for node in model.graph if node.op_type == "Conv"]
    for node in weighted:
        bias = node.inputs[2]
        same = ir.node("Identity", [bias])
        same.outputs[0].name = f"{bias.name}_same" if bias is not None else ""
        model.graph.insert_before(node, same)
        node.replace_input_with(2, same.outputs[0])
    apply(Quantize(type="int8"), model, "onnxruntime", [feeds_for(model)])
    found = _census(model, tmp_path)
    assert sum(found["integer"].values()) == len(weighted) + 1
    assert found["in_float"] == []


def test_fills_that_are_integers_stay_integers_in_fp16() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (int64[2] s, float[2,3] x) => (float[2,3] y, int64[N,M] z) {
          z = ConstantOfShape<value: tensor = int64[1] {7}>(s)
          w = ConstantOfShape(s)
          a = Add(x, w)
          y = Relu(a)
        }"""
    )
    apply(Quantize(type="fp16"), model, "onnxruntime", [])
    proto = ir.to_proto(model)
    import onnxruntime as ort

    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    y, z = session.run(None, {"s": np.array([2, 3]), "x": np.ones((2, 3), np.float32)})
    assert y.dtype == np.float32
    assert z.dtype == np.int64
    assert (z == 7).all()


def lstm_model(form: str, directions: int = 2) -> ir.Model:
    """Two LSTM directions over (5, n, 12); `form` is how the weights are stored."""
    rng = np.random.default_rng(3)
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[5,n,12] x) => (float[5,{directions},n,16] y, float[{directions},n,16] h) {{
          y, h, c = LSTM<hidden_size: int = 16, direction: string = "bidirectional">(x, w, r, b)
        }}"""
    )
    (node,) = model.graph
    node.name = "lstm"
    for index, shape in ((1, (directions, 64, 12)), (2, (directions, 64, 16)), (3, (directions, 128))):
        operand = node.inputs[index]
        assert operand is not None
        tensor = ir.tensor(rng.uniform(-0.5, 0.5, shape).astype(np.float32), name=operand.name)
        if form == "joined" and index < 3:
            _join(model, node, index, tensor.numpy())
            continue
        operand.const_value = tensor
        model.graph.register_initializer(operand)
    return model


def _join(model: ir.Model, node: ir.Node, index: int, weight: np.ndarray) -> None:
    """The weight as torch's exporter writes it: gates in another order, sliced and joined."""
    parts = []
    for number, gate in enumerate(np.split(weight, 4, axis=1)):
        value = ir.Value(name=f"gate{index}{number}", const_value=ir.tensor(np.ascontiguousarray(gate)))
        model.graph.register_initializer(value)
        parts.append(value)
    joined = ir.node("Concat", parts, {"axis": 1}, name=f"join{index}")
    model.graph.insert_before(node, joined)
    node.replace_input_with(index, joined.outputs[0])
    joined.outputs[0].name = f"joined{index}"


@pytest.mark.parametrize("form", ["stored", "joined"])
def test_an_lstm_runs_on_integers_when_asked_for_dynamic_int8(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((5, 3, 12)).astype(np.float32)}
    model = lstm_model(form)
    before = _run_all(model, feeds)
    result, _ = apply(Quantize(type="int8-dynamic"), model, "onnxruntime", [])
    after = _run_all(model, feeds)
    for exact, rough in zip(before, after, strict=True):
        error = float(np.square(exact - rough).sum() / np.square(exact).sum())
        assert 0 < error < 2e-4
    assert result.facts["nodes"] == ["lstm"]
    assert min(result.facts["weight_sqnr_db"].values()) > 38
    assert _census(model, tmp_path)["integer"] == {"DynamicQuantizeLSTM": 1}


def _run_all(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def test_an_lstm_whose_weights_are_inputs_stays_float_and_says_why() -> None:
    model = lstm_model("stored")
    weight = model.graph.initializers.pop("w")
    weight.const_value = None
    weight.type, weight.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 64, 12])
    model.graph.inputs.append(weight)
    result, _ = apply(Quantize(type="int8-dynamic"), model, "onnxruntime", [])
    assert [skip.reason for skip in result.remarks] == ["its weights are not fixed float32 numbers"]


@pytest.mark.parametrize("type_", ["int8", "int8-dynamic"])
def test_weighted_operators_without_integer_kernel_are_named(type_: str) -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1,4,8,8] x) => (float[1,4,9,9] y)
        { y = ConvTranspose(x, w) }"""
    )
    weight = next(iter(model.graph)).inputs[1]
    assert weight is not None
    weight.const_value = ir.tensor(np.ones((4, 4, 2, 2), np.float32), name="w")
    model.graph.register_initializer(weight)
    feeds = [{"x": np.ones((1, 4, 8, 8), np.float32)}]
    result, _ = apply(Quantize(type=type_), model, "onnxruntime", feeds)
    (skip,) = result.remarks
    assert "transposed convolution: ONNX Runtime has no integer kernel" in skip.reason
    result, _ = apply(Quantize(type="int8"), lstm_model("stored"), "onnxruntime", [_some_x()])
    assert "int8-dynamic" in result.remarks[0].reason


def _some_x() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((5, 3, 12)).astype(np.float32)}


def finder() -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Rows that begin above zero: how many, follows from values, which change a little in 8 bits."""
    rng = np.random.default_rng(0)
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 18]> net (float[4096, 64] x) => (float[found, 32] y) '
        "<int64 first = {0}, float zero = {0}> { h = MatMul(x, w) begin = Gather<axis = 1>(h, first) "
        "above = Greater(begin, zero) y = Compress<axis = 0>(h, above) }",
        initializers=[ir.tensor(rng.normal(0, 1, (64, 32)).astype(np.float32), name="w")],
    )
    return model, {"x": rng.normal(0, 1, (4096, 64)).astype(np.float32)}


@pytest.mark.parametrize("max_drop", [None, 0.5])
def test_a_list_of_what_was_found_may_have_another_length_in_eight_bits(max_drop: float | None) -> None:
    model, feeds = finder()
    facts = apply(Quantize(type="int8", max_drop=max_drop), model, "onnxruntime", [feeds])[0].facts
    if max_drop is None:
        assert any("what it keeps is not known" in warning for warning in facts["warnings"])
    else:
        assert facts["mixed_precision"]["error_of_all"] == pytest.approx(1)


def test_a_list_of_another_length_is_compiled_with_a_warning(tmp_path: Path) -> None:
    model, feeds = finder()
    ir.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=feeds["x"])
    result = api.compile(
        tmp_path / "m.onnx",
        quantize="int8!",
        calib=str(tmp_path / "x.npz"),
        measure=False,
        output=tmp_path / "o",
    )
    assert any("what it keeps is not known" in warning for warning in result.report["warnings"])


def test_a_result_larger_than_the_model_says_why(tmp_path: Path) -> None:
    """A model of a few numbers: casts and names take more than halves of weights save."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,4] y)
        <float[4] w = {1, 2, 3, 4}> { a = Mul(x, w) y = Add(a, w) }"""
    ir.save(ir.from_onnx_text(text), tmp_path / "m.onnx")
    made = api.compile(tmp_path / "m.onnx", quantize="fp16", output=tmp_path / "o", measure=False)
    (told,) = [line for line in made.report["warnings"] if "larger than the model" in line]
    assert "weights take" in told
    assert "nodes and their names take" in told
    weights = {"before": 80_000, "after": 80_000}
    assert larger_than({"before": 87_400, "after": 87_440}, weights) == []
    assert larger_than({"before": 87_400, "after": 88_400}, weights)


def test_advice_names_options_that_exist() -> None:
    known = {field.name for field in fields(Quantize)}
    for kind in KINDS.values():
        for name in re.findall(r"--quantize-option (\w+)=", kind.advice):
            assert name in known
        assert "--max-drop" not in kind.advice
