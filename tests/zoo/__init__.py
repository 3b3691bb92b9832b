"""The zoo: tiny versions of many architectures, as torch modules and, on demand, as ONNX files."""

from tests.zoo import (  # noqa: F401  (importing a family fills the table)
    convnets,
    detection,
    generative,
    hybrids,
    matching,
    mixers,
    mobile,
    oriented,
    other,
    points,
    recurrent,
    segmentation,
    speech,
    synthesis,
    transformers_decoder,
    transformers_text,
    transformers_vision,
    video,
)
from tests.zoo.registry import ZOO, Entry, Input, Model

FAST: tuple[str, ...] = (
    "resnet_basic",
    "resnet_cifar_pad",
    "nhwc_flatten",
    "densenet",
    "resnext",
    "mobilenet_v3",
    "shufflenet_v2",
    "unet",
    "ssd",
    "vit_fused_unbind",
    "vit_fused_chunk",
    "mlp_mixer",
    "bert",
    "gpt2",
    "llama_gqa",
    "lstm_classifier",
)
"""Entries that export fast and together cover the families; for tests that cannot afford all."""

__all__ = ["FAST", "ZOO", "Entry", "Input", "Model"]
