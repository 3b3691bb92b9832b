"""Torch modules and exported programs as ONNX files, for the compiler of ONNX files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparsecc.errors import InputError, MissingPackageError


def is_torch(model: object) -> bool:
    """Whether torch made it."""
    return isinstance(model, torch.nn.Module | torch.export.ExportedProgram)


def to_onnx(model: Any, example_inputs: Any, path: Path) -> None:
    """Write a module, in evaluation mode, or an exported program as an ONNX file of the sizes that the example has.

    `example_inputs` are the arguments of a call: a tuple, a mapping of keywords, or one tensor; an exported program
    has its own. InputError for TorchScript, which runs code of its own, and for what torch cannot export.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a TorchScript module cannot be exported: give the module that it was made from")
    if isinstance(model, torch.export.ExportedProgram):
        exported(model, (), path)
        return
    if example_inputs is None:
        raise InputError(f"{type(model).__name__}: give example_inputs=, which the module is exported with")
    keywords = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
    one = not keywords and not isinstance(example_inputs, tuple | list)
    places = () if keywords else (example_inputs,) if one else tuple(example_inputs)
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        exported(model, places, path, kwargs=keywords or None)
    finally:
        for module, training in was_training.items():
            module.training = training


def exported(model: Any, places: tuple[Any, ...], path: Path, **settings: Any) -> None:
    """Write it as torch's exporter does with these settings, its failures told in a line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own parts
            torch.onnx.export(model, places, str(path), dynamo=True, verbose=False, **settings)
    except ImportError as e:
        raise MissingPackageError(
            f"torch exports with a package that lacks ({e.name}): pip install onnxscript"
        ) from e
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError) as e:
        cause = e.__cause__ or e
        line = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise InputError(f"{type(model).__name__}: torch cannot export it: {line}") from e
