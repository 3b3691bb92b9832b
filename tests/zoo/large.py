"""Full-size models without trained weights, for benchmarks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tests.zoo.blocks import Classify, Residual, Select, conv_norm, made
from tests.zoo.export import Exporter, cache_folder, export, fingerprint, quietly
from tests.zoo.registry import Model, image_model, token_model


def resnet50() -> Model:
    """ResNet-50 at 224: 25.6 M parameters, 4.1 G MACs per image."""
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    into = 64
    for mid, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for k in range(count):
            layers.append(_bottleneck(into, mid, stride if k == 0 else 1))
            into = 4 * mid
    return image_model(Classify(nn.Sequential(*layers), into, 1000), 224)


def _bottleneck(into: int, mid: int, stride: int) -> Residual:
    branch = nn.Sequential(
        conv_norm(into, mid, 1, act=nn.ReLU()),
        conv_norm(mid, mid, 3, stride, act=nn.ReLU()),
        conv_norm(mid, 4 * mid, 1),
    )
    return Residual(branch, conv_norm(into, 4 * mid, 1, stride) if into != 4 * mid else None, nn.ReLU())


def mobilenet_v2() -> Model:
    """MobileNetV2 at 224: 3.5 M parameters, 0.3 G MACs per image."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2, act=nn.ReLU6())]
    into = 32
    for expand, out, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for k in range(count):
            layers.append(_inverted(into, out, expand * into, stride if k == 0 else 1))
            into = out
    layers.append(conv_norm(into, 1280, 1, act=nn.ReLU6()))
    return image_model(Classify(nn.Sequential(*layers), 1280, 1000), 224)


def _inverted(into: int, out: int, wide: int, stride: int) -> nn.Module:
    branch = nn.Sequential(
        *([conv_norm(into, wide, 1, act=nn.ReLU6())] if wide != into else []),
        conv_norm(wide, wide, 3, stride, wide, nn.ReLU6()),
        conv_norm(wide, out, 1),
    )
    return Residual(branch) if stride == 1 and into == out else branch


def vit_b16() -> Model:
    """ViT-B/16 at 224: 86 M parameters."""
    model = made("ViTForImageClassification", made("ViTConfig", num_labels=1000))
    return image_model(Select(model, ("pixel_values",), ("logits",)), 224)


def bert_base() -> Model:
    """BERT-base with a head of 2 classes: 109 M parameters."""
    model = made("BertForSequenceClassification", made("BertConfig", num_labels=2))
    return token_model(Select(model, ("input_ids",), ("logits",)), 30522, 128, 64)


def gpt2_small() -> Model:
    """GPT-2 small with its tied head: 124 M parameters."""
    model = made("GPT2LMHeadModel", made("GPT2Config", use_cache=False))
    return token_model(Select(model, ("input_ids", "attention_mask"), ("logits",)), 50257, 128, 64, mask=True)


def llama_gqa() -> Model:
    """A Llama with 12 query and 4 key-value heads, 12 layers: about 100 M parameters."""
    config = made(
        "LlamaConfig", vocab_size=16000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=1024, use_cache=False,
    )  # fmt: skip
    module = Select(made("LlamaForCausalLM", config), ("input_ids", "attention_mask"), ("logits",))
    return token_model(module, 16000, 128, 64, mask=True)


LARGE: dict[str, Callable[[], Model]] = {
    f.__name__: f for f in (resnet50, mobilenet_v2, vit_b16, bert_base, gpt2_small, llama_gqa)
}


def build_large(name: str) -> Model:
    """The module in eval mode with seeded weights: Kaiming (fan in) for convolutions, else as constructed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LARGE[name]()
        for part in model.module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)
            if isinstance(part, nn.BatchNorm2d) and part.running_var is not None:
                nn.init.uniform_(part.running_var, 0.5, 2.0)
                nn.init.uniform_(part.weight, 0.5, 1.0)
    model.module.eval()
    return model


def large_path(name: str, exporter: Exporter = "dynamo") -> Path:
    """The ONNX file of a full-size model, exported now unless the cache holds it. Up to 0.5 GB each."""
    path = cache_folder() / fingerprint(Path(__file__)) / f"{name}.{exporter}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with quietly():
            proto = export(build_large(name), exporter)
        _store(path, proto.SerializeToString())
    return path


def _store(path: Path, content: bytes) -> None:
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(partial, path)
