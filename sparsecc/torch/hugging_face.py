"""Folders of Hugging Face (a configuration and safetensors) as ONNX files, exported by the task that they name."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsecc.errors import InputError, MissingPackageError
from sparsecc.escaping import one_line, quoted
from sparsecc.torch.export import exported

BESIDE = (
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
"""What is read beside a model: how its inputs are made."""
TOKENS, SECONDS_OF_SOUND, RATE, BATCH = 16, 1, 16_000, 2
"""Sizes of the example that a model is exported with; batch and length stay free."""
GENERATES = "CausalLM"


def export_folder(request: dict[str, Any]) -> dict[str, Any]:
    """Write an ONNX file named `request["name"]` into `request["output"]` from `request["folder"]`, in which
    nothing is run, by transformers' class `request["architecture"]`.

    A model that writes text becomes a folder of onnxruntime-genai, with its caches. InputError where transformers
    has no such class, and where torch cannot export it.
    """
    folder, output = Path(request["folder"]), Path(request["output"])
    shown = one_line(str(folder), 120)
    architecture = request["architecture"]
    if GENERATES in architecture:
        _with_caches(folder, output, shown)
        return {"path": str(output)}
    model = _model(folder, architecture, shown)
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(
            f"{shown}: {architecture} has an encoder and a decoder: export each to an ONNX file and compile these"
        )
    made = output / f"{request.get('name') or 'model'}.onnx"
    _export(model, folder, made)
    for name in BESIDE:
        if (folder / name).is_file():
            shutil.copy(folder / name, output / name)
    return {"path": str(made)}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise MissingPackageError(
            "a folder of Hugging Face needs transformers: run pip install 'sparsecc[huggingface]'"
        ) from e
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _model(folder: Path, architecture: str, shown: str) -> Any:
    """The model in evaluation mode, from safetensors alone and by transformers' own code alone."""
    found = getattr(_transformers(), architecture, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        told = f"names {quoted(architecture)}, which transformers has no class for"
        raise InputError(f"{shown}: its config.json {told}: export it to ONNX")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = found.from_pretrained(  # type: ignore[attr-defined]
                str(folder), local_files_only=True, use_safetensors=True, attn_implementation="eager"
            )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError) as e:
        raise InputError(f"{shown}: transformers does not load it: {one_line(str(e), 200)}") from e
    return model.eval().float()


class _Named(nn.Module):
    """The model with one tuple of tensors for outputs."""

    def __init__(self, model: Any, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self.inputs, arrays, strict=True)), return_dict=True)
        return tuple(value for value in found.values() if isinstance(value, torch.Tensor))


def _export(model: Any, folder: Path, path: Path) -> None:
    feeds, free = _example(model, folder)
    with torch.no_grad():
        outputs = model(**feeds, return_dict=True)
    names = [name for name, value in outputs.items() if isinstance(value, torch.Tensor)]
    exported(
        _Named(model, tuple(feeds)),
        tuple(feeds.values()),
        path,
        input_names=list(feeds),
        output_names=names,
        dynamic_shapes=(tuple(free[name] for name in feeds),),
    )


def _example(model: Any, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, Any]]]:
    """The inputs of a call by name, and their free axes."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    main, config = str(model.main_input_name), model.config
    taken = inspect.signature(model.forward).parameters
    if main == "input_ids":
        feeds = {"input_ids": torch.arange(BATCH * TOKENS).reshape(BATCH, TOKENS) % int(config.vocab_size)}
        if "attention_mask" in taken:
            feeds["attention_mask"] = torch.ones(BATCH, TOKENS, dtype=torch.int64)
        if "token_type_ids" in taken and getattr(config, "type_vocab_size", 0) > 1:
            feeds["token_type_ids"] = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
        return feeds, {name: {0: batch, 1: length} for name in feeds}
    if main == "pixel_values":
        height, width = _image_size(config, folder)
        shape = (BATCH, int(getattr(config, "num_channels", 3)), height, width)
        return {main: torch.randn(shape)}, {main: {0: batch}}
    if main == "input_values":
        return {main: torch.randn(BATCH, RATE * SECONDS_OF_SOUND)}, {main: {0: batch}}
    raise InputError(
        f"{type(model).__name__} reads {quoted(main)}, of which no example is known: export it to ONNX"
    )


def _image_size(config: Any, folder: Path) -> tuple[int, int]:
    """Of the configuration, else of what prepares images, else 224."""
    found = getattr(config, "image_size", None)
    if found is None and (folder / "preprocessor_config.json").is_file():
        told = json.loads((folder / "preprocessor_config.json").read_bytes())
        found = told.get("crop_size") or told.get("size")
    if isinstance(found, dict):
        sides = (
            found.get("height", found.get("shortest_edge")),
            found.get("width", found.get("shortest_edge")),
        )
        found = sides if all(type(side) is int for side in sides) else None
    sizes = found if isinstance(found, tuple | list) else (found or 224,) * 2
    return int(sizes[0]), int(sizes[1])


def _with_caches(folder: Path, output: Path, shown: str) -> None:
    """A decoder, by onnxruntime-genai's own builder, in float32."""
    _transformers()
    try:
        from onnxruntime_genai.models.builder import create_model, parse_extra_options
    except ImportError as e:
        raise MissingPackageError(
            f"{shown} writes text: exporting it with its caches needs pip install 'sparsecc[huggingface,language]'"
        ) from e
    try:
        places = ("", str(folder), str(output), "fp32", "cpu", str(output / ".cache"))
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            create_model(*places, **parse_extra_options(*places, ["hf_remote=false"]))
    except (NotImplementedError, ValueError, KeyError, AttributeError, OSError, RuntimeError) as e:
        raise InputError(
            f"{shown}: onnxruntime-genai's builder does not take it: {one_line(str(e), 200)}"
        ) from e
    shutil.rmtree(output / ".cache", ignore_errors=True)
