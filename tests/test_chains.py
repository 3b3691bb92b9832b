"""Packages of several files: one plan over all, and the files again, which fit each other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc import CompileResult, api
from sparsecc.errors import GoalError, InputError, SparseccError
from sparsecc.loading.chain import Chain
from sparsecc.loading.package import package_at
from sparsecc.runtime.session import open_session
from sparsecc.verify.plan_check import zeroed
from tests.chain_models import EncoderDecoder, front_and_head, vision_language

STEPS = 8
Arrays = Mapping[str, np.ndarray]


def compiled(folder: Path, output: Path, **options: Any) -> CompileResult:
    options = {"calib": "none", "next_steps": False, "measure": False, **options}
    return api.compile(folder, output=output, **options)


def generated(folder: Path) -> tuple[list[int], np.ndarray]:
    """(the likeliest tokens, the scores of all of them) of an encoder, a first step and further ones."""
    names = ("encoder_model", "decoder_model", "decoder_with_past_model")
    encoder, first, further = (open_session(folder / f"{name}.onnx") for name in names)
    hidden = encoder.run({"input_ids": np.array([[5, 9, 2, 33, 17]])})["last_hidden_state"]
    found: Arrays = first.run({"input_ids": np.array([[1]]), "encoder_hidden_states": hidden})
    kept = dict(found)
    tokens, scores = [], []
    for _ in range(STEPS):
        scores.append(found["logits"][0, -1])
        tokens.append(int(scores[-1].argmax()))
        kept |= found
        past = {
            n.replace("present", "past_key_values"): a for n, a in kept.items() if n.startswith("present")
        }
        found = further.run({"input_ids": np.array([tokens[-1:]]), **past})
    return tokens, np.stack(scores)


def dense_with_zeros(folder: Path, plan: Mapping[str, Any], output: Path) -> None:
    """The files as they came, with zeros for what the plan removes: nothing of the surgery is in them."""
    package = package_at(folder)
    assert package is not None
    chain = Chain.of(package)
    model = zeroed(chain.model, plan)
    width = {name: np.zeros([1] * len(_shape(model, name)), np.float32) for name in chain.handed}
    output.mkdir()
    for part in chain.parts:
        ir.save(chain.part(model, part, width), output / part.file)
        graph = onnx.load(output / part.file)
        for value in (*graph.graph.input, *graph.graph.output):
            value.type.tensor_type.ClearField("shape")
        onnx.save(graph, output / part.file)


def _shape(model: ir.Model, name: str) -> ir.Shape:
    shape = next(v.shape for node in model.graph for v in node.outputs if v.name == name)
    assert shape is not None
    return shape


def weights(file: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}


def test_three_files_lose_the_same_and_generate_together(tmp_path: Path) -> None:
    """As optimum writes them: what is generated is what the dense files give with zeros for what is removed."""
    folder = EncoderDecoder().folder(tmp_path / "dense")
    options: dict[str, Any] = {"ratio": 0.3, "prune": ["heads", "channels"], "keep": ["*shared.weight:1"]}
    result = compiled(folder, tmp_path / "out", **options)
    assert result.report["verification"]["status"] == "proved"
    assert result.report["removed"]["share"] >= 0.3
    assert result.report["package"]["relative_error"] <= 1e-5
    assert any(one["name"].startswith("present.") for one in result.report["package"]["handed"])
    dense_with_zeros(folder, result.plan, tmp_path / "zeros")
    wanted, found = generated(tmp_path / "zeros"), generated(tmp_path / "out")
    assert found[0] == wanted[0]
    assert np.abs(found[1] - wanted[1]).max() <= 1e-5 * np.abs(wanted[1]).max()
    assert np.abs(generated(folder)[1] - wanted[1]).max() > 1e-2  # the comparison can fail


def test_the_axis_between_files_goes_from_all(tmp_path: Path) -> None:
    """The encoder's residual stream is what the decoder reads; what both decoders hold stays one."""
    folder = EncoderDecoder().folder(tmp_path / "dense")
    result = compiled(folder, tmp_path / "out", ratio=0.3, metric="params", prune=["channels"])
    handed = {one["name"]: one["axes"] for one in result.report["package"]["handed"]}
    (before, after) = handed["last_hidden_state"]["2"]
    assert after < before == 64
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["d_model"] == after
    assert config["vocab_size"] == 128
    first, further = (weights(tmp_path / "out" / f"decoder_{n}.onnx") for n in ("model", "with_past_model"))
    shared = [n for n in first if any(np.array_equal(first[n], other) for other in further.values())]
    assert {first[n].shape for n in shared if first[n].ndim == 2} >= {(128, after)}
    generated(tmp_path / "out")
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_the_bundle_is_verified_from_its_files(tmp_path: Path) -> None:
    folder = EncoderDecoder(layers=1).folder(tmp_path / "dense")
    compiled(folder, tmp_path / "out", ratio=0.3, prune=["heads"])
    found = api.verify(tmp_path / "out", model=folder, reproduce=True)
    assert {check["check"]: check["status"] for check in found["checks"]} == dict.fromkeys(
        ("manifest", "loads", "fidelity", "original", "numerics", "reproduce"), "ok"
    )
    other = EncoderDecoder(layers=1, inner=48).folder(tmp_path / "other")
    with pytest.raises(GoalError, match="other is not the model that was compiled"):
        api.verify(tmp_path / "out", model=other)


@pytest.mark.parametrize("types", ["fp16", "int8-dynamic!"])
def test_files_hand_each_other_the_types_that_they_declared(types: str, tmp_path: Path) -> None:
    folder = EncoderDecoder(layers=1).folder(tmp_path / "dense")
    result = compiled(folder, tmp_path / "out", ratio=0.2, quantize=types, calib="synthetic")
    assert result.report["package"]["relative_error"] <= 1e-2
    for name in result.report["package"]["files"]:
        sides = [onnx.load(place / name).graph for place in (folder, tmp_path / "out")]
        before, after = ({v.name: v.type.tensor_type.elem_type for v in (*g.input, *g.output)} for g in sides)
        assert before == after
    generated(tmp_path / "out")


def test_what_a_picture_gives_lies_beside_words(tmp_path: Path) -> None:
    """Vision, embedding and decoder of onnxruntime-genai: one residual stream."""
    folder = vision_language(tmp_path / "dense")
    result = compiled(folder, tmp_path / "out", ratio=0.3, metric="params", prune=["channels"])
    assert result.report["verification"]["status"] == "proved"
    assert result.report["package"]["relative_error"] <= 1e-5
    assert {one["name"] for one in result.report["package"]["handed"]} == {"image_features", "inputs_embeds"}
    left = weights(tmp_path / "out" / "embedding.onnx")["embed_tokens"].shape[1]
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]
    assert config["decoder"]["hidden_size"] == left < 32
    assert config["vision"]["filename"] == "vision.onnx"


def test_without_a_configuration_names_tell(tmp_path: Path) -> None:
    folder = front_and_head(tmp_path / "dense")
    result = compiled(folder, tmp_path / "out", ratio=0.4)
    assert result.report["package"]["files"] == ["front.onnx", "head.onnx"]
    assert result.report["model"]["name"] == "dense"
    again = compiled(tmp_path / "out", tmp_path / "again", ratio=0.2)
    assert again.report["before"]["params"] == result.report["after"]["params"]
    assert weights(tmp_path / "out" / "front.onnx")["front"].shape[1] < 64
    shutil.rmtree(folder)
    found = open_session(tmp_path / "out" / "front.onnx").run({"x": np.ones((3, 16), np.float32)})
    assert open_session(tmp_path / "out" / "head.onnx").run(found)["scores"].shape == (3, 10)


@pytest.mark.skipif("SPARSECC_SHARED" not in os.environ, reason="SPARSECC_SHARED names no folder of files")
def test_caches_between_an_encoder_and_its_decoder_have_one_size(tmp_path: Path) -> None:
    """onnxruntime-genai makes room for the cross caches of all layers by one number of its configuration."""
    folder = Path(os.environ["SPARSECC_SHARED"]) / "cases" / "language" / "whisper_tiny"
    result = compiled(folder, tmp_path / "out", ratio=0.1, metric="params", prune=["heads"])
    assert result.report["verification"]["status"] == "proved"
    crossed = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][1::2]
        for v in onnx.load(tmp_path / "out" / "encoder.onnx").graph.output
        if "cross" in v.name
    }
    decoder = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["decoder"]
    assert len({tuple(sizes) for sizes in crossed.values()}) == 1
    heads, width = next(iter(crossed.values()))[0], decoder["head_size"]
    assert decoder["num_attention_heads"] == heads < 4
    assert width == 16


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prune": ["layers"]}, "--prune layers does not take"),
        ({"emit": "ort"}, "--emit ort does not take"),
        ({"target": "tensorrt"}, "--target tensorrt does not take"),
    ],
)
def test_what_is_for_one_file_is_refused(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = front_and_head(tmp_path / "dense")
    with pytest.raises(SparseccError, match=told):
        compiled(folder, tmp_path / "out", ratio=0.3, **options)
    assert not (tmp_path / "out").exists()


def test_a_pair_is_not_torn_apart(tmp_path: Path) -> None:
    """Cutting one file where it meets another is refused, and both ends are named."""
    folder = front_and_head(tmp_path / "dense")
    told = r"output 'features' of front\.onnx is input 'features' of head\.onnx"
    for name in ("front", "head"):
        with pytest.raises(InputError, match=told):
            compiled(folder / f"{name}.onnx", tmp_path / "out", ratio=0.3, prune_io=["features"])
    compiled(folder / "head.onnx", tmp_path / "out", ratio=0.3)  # what is its own
    assert weights(tmp_path / "out" / "model.onnx")["wide"].shape[0] == 64


def renamed(inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        model = onnx.load(file)
        for node in model.graph.node:
            node.input[:] = [inputs.get(name, name) for name in node.input]
            node.output[:] = [outputs.get(name, name) for name in node.output]
        for side, names in ((model.graph.input, inputs), (model.graph.output, outputs)):
            for value in side:
                value.name = names.get(value.name, value.name)
        onnx.save(model, file)

    return change


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("head", renamed({"features": "other"}, {}), "hand each other nothing that bears one name"),
        ("front", renamed({"x": "scores"}, {}), "in a circle"),
    ],
)
def test_files_that_make_no_chain_are_refused(
    file: str, change: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    folder = front_and_head(tmp_path / "dense")
    change(folder / f"{file}.onnx")
    if file == "front":  # of one type and size with what it takes then
        model = onnx.load(folder / "front.onnx")
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
        onnx.save(model, folder / "front.onnx")
    with pytest.raises(InputError, match=told):
        compiled(folder, tmp_path / "out", ratio=0.3)
