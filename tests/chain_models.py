"""Packages of several files, small and with random weights, in the forms that exporters write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.decoder_models import Decoder

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
Dims = list[str | int]
Tensor = tuple[str, int, Dims]


class File:
    """One file under construction; weights of one name are the same in every file of a `bank`."""

    def __init__(self, bank: dict[str, np.ndarray], random: np.random.Generator) -> None:
        self.bank, self.random = bank, random
        self.nodes: list[onnx.NodeProto] = []
        self.used: dict[str, np.ndarray] = {}

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{operator}_{len(self.nodes)}_out"
        self.nodes.append(
            helper.make_node(operator, list(inputs), [output], name=f"n{len(self.nodes)}", **attributes)
        )
        return output

    def weight(self, name: str, *shape: int, scale: float | None = None) -> str:
        if name not in self.bank:
            deviation = 1 / np.sqrt(shape[0]) if scale is None else scale
            self.bank[name] = (self.random.standard_normal(shape) * deviation).astype(np.float32)
        self.used[name] = self.bank[name]
        return name

    def constant(self, name: str, values: Any) -> str:
        self.used[name] = np.array(values)
        return name

    def save(self, path: Path, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        weights = [numpy_helper.from_array(array, name) for name, array in self.used.items()]
        sides = [[helper.make_tensor_value_info(*one) for one in side] for side in (inputs, outputs)]
        graph = helper.make_graph(self.nodes, path.stem, sides[0], sides[1], weights)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        onnx.save(made, path)


@dataclass
class EncoderDecoder:
    """An encoder, a decoder's first step and its further steps, as optimum names them; one width for all."""

    layers: int = 2
    heads: int = 4
    width: int = 16
    hidden: int = 64
    inner: int = 96
    words: int = 128
    bank: dict[str, np.ndarray] = field(default_factory=dict)

    def folder(self, path: Path) -> Path:
        self.random = np.random.default_rng(0)
        caches = [(layer, side, part) for layer in range(self.layers) for side in SIDES for part in PARTS]
        lengths = {"decoder": "past_decoder_sequence_length", "encoder": "encoder_sequence_length"}
        shape: dict[str, Dims] = {
            side: ["batch_size", self.heads, length, self.width] for side, length in lengths.items()
        }
        longer: Dims = ["batch_size", self.heads, "past_decoder_sequence_length + 1", self.width]
        ids: Dims = ["batch_size", "decoder_sequence_length"]
        encoded: Dims = ["batch_size", "encoder_sequence_length"]
        scored: Tensor = ("logits", FLOAT, [*ids, self.words])
        self._encoder().save(
            path / "encoder_model.onnx",
            [("input_ids", INT, encoded)],
            [("last_hidden_state", FLOAT, [*encoded, self.hidden])],
        )
        self._decoder(first=True).save(
            path / "decoder_model.onnx",
            [("input_ids", INT, ids), ("encoder_hidden_states", FLOAT, [*encoded, self.hidden])],
            [scored, *((f"present.{n}.{s}.{p}", FLOAT, shape[s]) for n, s, p in caches)],
        )
        self._decoder(first=False).save(
            path / "decoder_with_past_model.onnx",
            [
                ("input_ids", INT, ids),
                *((f"past_key_values.{n}.{s}.{p}", FLOAT, shape[s]) for n, s, p in caches),
            ],
            [scored, *((f"present.{n}.{s}.{p}", FLOAT, longer) for n, s, p in caches if s == "decoder")],
        )
        config = {"model_type": "t5", "d_model": self.hidden, "num_heads": self.heads, "d_kv": self.width}
        (path / "config.json").write_text(json.dumps({**config, "vocab_size": self.words}))
        return path

    def _encoder(self) -> File:
        file = File(self.bank, self.random)
        stream = file.node(
            "Gather", file.weight("shared.weight", self.words, self.hidden, scale=1.0), "input_ids"
        )
        for layer in range(self.layers):
            where = f"encoder.{layer}"
            normed = self._norm(file, f"{where}.ln0", stream)
            stream = file.node(
                "Add", stream, self._attention(file, f"{where}.self", normed, self._kept(file, where, normed))
            )
            stream = self._mlp(file, where, stream)
        self._norm(file, "encoder.norm", stream, output="last_hidden_state")
        return file

    def _decoder(self, *, first: bool) -> File:
        file = File(self.bank, self.random)
        stream = file.node(
            "Gather", file.weight("shared.weight", self.words, self.hidden, scale=1.0), "input_ids"
        )
        for layer in range(self.layers):
            where = f"decoder.{layer}"
            normed = self._norm(file, f"{where}.ln0", stream)
            past = None if first else [f"past_key_values.{layer}.decoder.{part}" for part in PARTS]
            given = [f"present.{layer}.decoder.{part}" for part in PARTS]
            kept = self._kept(file, f"{where}", normed, past, given)
            stream = file.node("Add", stream, self._attention(file, f"{where}.self", normed, kept))
            normed = self._norm(file, f"{where}.ln1", stream)
            crossed = [f"past_key_values.{layer}.encoder.{part}" for part in PARTS]
            if first:
                given = [f"present.{layer}.encoder.{part}" for part in PARTS]
                crossed = self._kept(file, f"{where}.cross", "encoder_hidden_states", None, given)
            stream = file.node("Add", stream, self._attention(file, f"{where}.cross", normed, crossed))
            stream = self._mlp(file, where, stream)
        normed = self._norm(file, "decoder.norm", stream)
        file.node("MatMul", normed, file.weight("lm_head.weight", self.hidden, self.words), name="logits")
        return file

    def _heads(self, file: File, data: str, weight: str, name: str = "") -> str:
        flat = file.node("MatMul", data, file.weight(weight, self.hidden, self.heads * self.width))
        shape = file.constant("apart", [0, 0, self.heads, self.width])
        return file.node("Transpose", file.node("Reshape", flat, shape), name=name, perm=[0, 2, 1, 3])

    def _kept(
        self, file: File, where: str, data: str, past: list[str] | None = None, given: list[str] | None = None
    ) -> list[str]:
        """Keys and values (batch, heads, length, width), behind those of earlier calls."""
        found = []
        for number, part in enumerate(PARTS):
            name = given[number] if given else ""
            new = self._heads(file, data, f"{where}.{part}.weight", "" if past else name)
            found.append(file.node("Concat", past[number], new, name=name, axis=2) if past else new)
        return found

    def _attention(self, file: File, where: str, data: str, kept: list[str]) -> str:
        query = self._heads(file, data, f"{where}.query.weight")
        scores = file.node("MatMul", query, file.node("Transpose", kept[0], perm=[0, 1, 3, 2]))
        scale = file.constant("scale", np.float32(self.width**-0.5))
        weighted = file.node(
            "MatMul", file.node("Softmax", file.node("Mul", scores, scale), axis=-1), kept[1]
        )
        turned = file.node("Transpose", weighted, perm=[0, 2, 1, 3])
        flat = file.node("Reshape", turned, file.constant("flat", [0, 0, self.heads * self.width]))
        return file.node(
            "MatMul", flat, file.weight(f"{where}.out.weight", self.heads * self.width, self.hidden)
        )

    def _norm(self, file: File, name: str, data: str, output: str = "") -> str:
        scale = file.weight(f"{name}.weight", self.hidden, scale=1.0)
        return file.node("LayerNormalization", data, scale, name=output, axis=-1)

    def _mlp(self, file: File, where: str, stream: str) -> str:
        normed = self._norm(file, f"{where}.ln2", stream)
        wide = file.node("MatMul", normed, file.weight(f"{where}.wi.weight", self.hidden, self.inner))
        back = file.weight(f"{where}.wo.weight", self.inner, self.hidden)
        return file.node("Add", stream, file.node("MatMul", file.node("Relu", wide), back))


SIDES, PARTS = ("decoder", "encoder"), ("key", "value")


def vision_language(path: Path, hidden: int = 32, words: int = 64) -> Path:
    """Vision, embedding and decoder, as onnxruntime-genai names them."""
    bank: dict[str, np.ndarray] = {}
    random = np.random.default_rng(0)
    vision = File(bank, random)
    patches = vision.node(
        "Conv", "pixel_values", vision.weight("patch", 24, 3, 4, 4, scale=0.2), strides=[4, 4]
    )
    turned = vision.node("Transpose", patches, perm=[0, 2, 3, 1])
    flat = vision.node("Reshape", turned, vision.constant("rows", [-1, 24]))
    wide = vision.node("Relu", vision.node("MatMul", flat, vision.weight("up", 24, 48)))
    vision.node("MatMul", wide, vision.weight("down", 48, hidden), name="image_features")
    features: Tensor = ("image_features", FLOAT, ["num_image_tokens", hidden])
    pixels: Tensor = ("pixel_values", FLOAT, ["num_images", 3, 8, 8])
    vision.save(path / "vision.onnx", [pixels], [features])
    words_of = File(bank, random)
    text = words_of.node("Gather", words_of.weight("embed_tokens", words, hidden, scale=1.0), "input_ids")
    is_image = words_of.node("Equal", "input_ids", words_of.constant("image_token", [3]))
    ones = words_of.node("Cast", is_image, to=INT)
    place = words_of.node("CumSum", ones, words_of.constant("along", 1))
    place = words_of.node("Sub", place, words_of.constant("one", [1]))
    row = words_of.node("Max", place, words_of.constant("zero", [0]))
    row = words_of.node("Min", row, words_of.constant("three", [3]))
    picture = words_of.node("Gather", "image_features", row)
    where = words_of.node("Unsqueeze", is_image, words_of.constant("last", [-1]))
    words_of.node("Where", where, picture, text, name="inputs_embeds")
    ids: Dims = ["batch_size", "sequence_length"]
    words_of.save(
        path / "embedding.onnx",
        [("input_ids", INT, ids), features],
        [("inputs_embeds", FLOAT, [*ids, hidden])],
    )
    decoder = Decoder(hidden=hidden, words=words, embeds=True)
    config = decoder.config()
    onnx.save(decoder.model(), path / "model.onnx")
    names = config["model"]["decoder"]["inputs"]
    names["inputs_embeds"] = names.pop("input_ids")
    config["model"] |= {
        "vision": {"filename": "vision.onnx", "outputs": {"image_features": "image_features"}},
        "embedding": {
            "filename": "embedding.onnx",
            "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
            "outputs": {"inputs_embeds": "inputs_embeds"},
        },
    }
    (path / "genai_config.json").write_text(json.dumps(config))
    return path


def front_and_head(path: Path) -> Path:
    """Two files without a configuration: what one gives the other takes by the same name."""
    bank: dict[str, np.ndarray] = {}
    random = np.random.default_rng(0)
    front = File(bank, random)
    front.node("Relu", front.node("MatMul", "x", front.weight("front", 16, 64)), name="features")
    shape: Dims = ["n", 64]
    front.save(path / "front.onnx", [("x", FLOAT, ["n", 16])], [("features", FLOAT, shape)])
    head = File(bank, random)
    wide = head.node("Relu", head.node("MatMul", "features", head.weight("wide", 64, 48)))
    head.node("MatMul", wide, head.weight("head", 48, 10), name="scores")
    head.save(path / "head.onnx", [("features", FLOAT, shape)], [("scores", FLOAT, ["n", 10])])
    return path
