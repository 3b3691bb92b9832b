"""Decoders as onnxruntime-genai's builder writes them, small and with random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
MS = "com.microsoft"


@dataclass
class Decoder:
    """Grouped attention with a rotation inside, gated MLPs, norms that add the residual stream; then a `head`."""

    layers: int = 2
    heads: int = 8
    kv_heads: int = 4
    width: int = 16
    hidden: int = 32
    inner: int = 48
    words: int = 64
    positions: int = 128
    seed: int = 0
    window: int = 0
    """Positions that the caches of every other layer, from the first on, have room for; 0 where all grow."""
    embeds: bool = False
    """Whether it takes `inputs_embeds` in place of tokens, as behind a vision model."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def model(self) -> onnx.ModelProto:
        """The model, with names for the widths of its caches."""
        cached: list[str | int | None] = ["batch_size", self.kv_heads, "past_sequence_length", "head_dim"]
        first = ("inputs_embeds", FLOAT, [self.hidden]) if self.embeds else ("input_ids", INT, [])
        inputs = [
            helper.make_tensor_value_info(*first[:2], ["batch_size", "sequence_length", *first[2]]),
            helper.make_tensor_value_info("attention_mask", INT, ["batch_size", "total_sequence_length"]),
        ]
        outputs = [
            helper.make_tensor_value_info("logits", FLOAT, ["batch_size", "sequence_length", self.words])
        ]
        self._mask()
        self._rotation()
        stream = "inputs_embeds"
        if not self.embeds:
            table = self._weight("model.embed_tokens.weight", self.words, self.hidden, scale=1.0)
            stream = self._node("Gather", [table, "input_ids"], "/model/embed_tokens/Gather")
        normed = self._norm("/model/layers.0/input_layernorm", stream)
        for layer in range(self.layers):
            for part in ("key", "value"):
                kind = "sliding" if self.slides(layer) else "sequence"
                name, shape = (
                    f"past_key_values.{layer}.{part}",
                    [*cached[:2], f"past_{kind}_length", "head_dim"],
                )
                inputs.append(helper.make_tensor_value_info(name, FLOAT, shape))
                shape = [*cached[:2], f"total_{kind}_length", "head_dim"]
                outputs.append(helper.make_tensor_value_info(f"present.{layer}.{part}", FLOAT, shape))
            where = f"/model/layers.{layer}"
            stream, normed = self._skip(
                f"{where}/post_attention_layernorm", stream, self._attention(layer, normed)
            )
            last = layer == self.layers - 1
            after = (
                f"/model/layers.{layer + 1}/final_norm_layernorm"
                if last
                else f"/model/layers.{layer + 1}/input_layernorm"
            )
            stream, normed = self._skip(after, stream, self._mlp(layer, normed), last=last)
        self._weight("lm_head.MatMul.weight", self.hidden, self.words)
        self.nodes.append(
            helper.make_node("MatMul", [normed, "lm_head.MatMul.weight"], ["logits"], name="/lm_head/MatMul")
        )
        constants = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def slides(self, layer: int) -> bool:
        """Whether a layer keeps the last positions alone."""
        return bool(self.window) and layer % 2 == 0

    def config(self) -> dict[str, Any]:
        """`genai_config.json`."""
        sliding = {
            "window_size": self.window,
            "slide_key_value_cache": False,
            "slide_inputs": False,
            "layers": [layer for layer in range(self.layers) if self.slides(layer)],
            "cache_slack": 0,
        }
        return {
            "model": {
                "bos_token_id": 1,
                "context_length": self.positions,
                "decoder": {
                    "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                    "filename": "model.onnx",
                    "head_size": self.width,
                    "hidden_size": self.hidden,
                    "inputs": {
                        "input_ids": "input_ids",
                        "attention_mask": "attention_mask",
                        "past_key_names": "past_key_values.%d.key",
                        "past_value_names": "past_key_values.%d.value",
                    },
                    "outputs": {
                        "logits": "logits",
                        "present_key_names": "present.%d.key",
                        "present_value_names": "present.%d.value",
                    },
                    "num_attention_heads": self.heads,
                    "num_hidden_layers": self.layers,
                    "num_key_value_heads": self.kv_heads,
                    **({"sliding_window": sliding} if self.window else {}),
                },
                "eos_token_id": 0,
                "pad_token_id": 0,
                "type": "llama",
                "vocab_size": self.words,
            },
            "search": {
                "do_sample": False,
                "max_length": self.positions,
                "past_present_share_buffer": bool(self.window),
            },
        }

    def folder(self, path: Path) -> Path:
        """The model with its configuration, as a runtime loads them."""
        path.mkdir(parents=True, exist_ok=True)
        onnx.save(self.model(), path / "model.onnx")
        (path / "genai_config.json").write_text(json.dumps(self.config()))
        return path

    def _node(self, operator: str, inputs: list[str], name: str, domain: str = "", **attributes: Any) -> str:
        made = helper.make_node(
            operator, inputs, [f"{name}/output_0"], name=name, domain=domain, **attributes
        )
        self.nodes.append(made)
        return f"{name}/output_0"

    def _weight(self, name: str, *shape: int, scale: float | None = None) -> str:
        deviation = 1 / np.sqrt(shape[0]) if scale is None else scale
        self.weights[name] = (self.random.standard_normal(shape) * deviation).astype(np.float32)
        return name

    def _mask(self) -> None:
        """How many positions each text has, and how many the longest."""
        self.weights["one"], self.weights["ones"] = np.array(1), np.array([1])
        summed = self._node("ReduceSum", ["attention_mask", "ones"], "/mask/ReduceSum", keepdims=0)
        self._node("Cast", [self._node("Sub", [summed, "ones"], "/mask/Sub")], "/mask/lengths", to=6)
        shape = self._node("Shape", ["attention_mask"], "/mask/Shape")
        self._node(
            "Cast",
            [self._node("Gather", [shape, "one"], "/mask/Gather", axis=0)],
            "/mask/total",
            to=TensorProto.INT32,
        )

    def _rotation(self) -> None:
        turns = 1e4 ** (-np.arange(0, self.width, 2) / self.width)
        angles = np.arange(self.positions)[:, None] * turns
        self.weights["cos_cache"] = np.cos(angles).astype(np.float32)
        self.weights["sin_cache"] = np.sin(angles).astype(np.float32)

    def _norm(self, name: str, data: str) -> str:
        self.weights[f"{name}.weight"] = (1 + 0.1 * self.random.standard_normal(self.hidden)).astype(
            np.float32
        )
        return self._node(
            "SimplifiedLayerNormalization",
            [data, f"{name}.weight"],
            name,
            epsilon=1e-5,
            axis=-1,
            stash_type=1,
        )

    def _skip(self, name: str, stream: str, added: str, *, last: bool = False) -> tuple[str, str]:
        """(residual stream, its norm)."""
        self.weights[f"{name}.weight"] = (1 + 0.1 * self.random.standard_normal(self.hidden)).astype(
            np.float32
        )
        outputs = [f"{name}/output_0"] if last else [f"{name}/output_0", "", "", f"{name}/output_3"]
        self.nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [stream, added, f"{name}.weight"],
                outputs,
                name=name,
                domain=MS,
                epsilon=1e-5,
            )
        )
        return outputs[-1], outputs[0]

    def _attention(self, layer: int, data: str) -> str:
        where, weights = f"/model/layers.{layer}/attn", f"model.layers.{layer}.attn"
        packed = (self.heads + 2 * self.kv_heads) * self.width
        self._weight(f"{weights}.qkv_proj.MatMul.weight", self.hidden, packed)
        together = self._node(
            "MatMul", [data, f"{weights}.qkv_proj.MatMul.weight"], f"{where}/qkv_proj/MatMul"
        )
        inputs = [together, "", "", f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        inputs += ["/mask/lengths/output_0", "/mask/total/output_0", "cos_cache", "sin_cache"]
        attention = f"{where}/GroupQueryAttention"
        outputs = [f"{attention}/output_0", f"present.{layer}.key", f"present.{layer}.value"]
        made = helper.make_node(
            "GroupQueryAttention",
            inputs,
            outputs,
            name=attention,
            domain=MS,
            num_heads=self.heads,
            kv_num_heads=self.kv_heads,
            do_rotary=1,
        )
        if self.slides(layer):
            made.attribute.append(helper.make_attribute("local_window_size", self.window))
            made.attribute.append(helper.make_attribute("sliding_window_cache", 1))
        self.nodes.append(made)
        self._weight(f"{weights}.o_proj.MatMul.weight", self.heads * self.width, self.hidden)
        return self._node("MatMul", [outputs[0], f"{weights}.o_proj.MatMul.weight"], f"{where}/o_proj/MatMul")

    def _mlp(self, layer: int, data: str) -> str:
        where, weights = f"/model/layers.{layer}/mlp", f"model.layers.{layer}.mlp"
        made = {}
        for part in ("gate", "up"):
            self._weight(f"{weights}.{part}_proj.MatMul.weight", self.hidden, self.inner)
            operands = [data, f"{weights}.{part}_proj.MatMul.weight"]
            made[part] = self._node("MatMul", operands, f"{where}/{part}_proj/MatMul")
        turned = self._node("Sigmoid", [made["gate"]], f"{where}/act_fn/Sigmoid")
        active = self._node("Mul", [made["gate"], turned], f"{where}/act_fn/Mul")
        product = self._node("Mul", [active, made["up"]], f"{where}/Mul")
        self._weight(f"{weights}.down_proj.MatMul.weight", self.inner, self.hidden)
        return self._node(
            "MatMul", [product, f"{weights}.down_proj.MatMul.weight"], f"{where}/down_proj/MatMul"
        )
