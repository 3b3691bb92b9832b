"""Inputs from the user's files, each checked against what the model takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sparsecc.data.sources import Sample, SampleSource
from sparsecc.errors import InputError
from sparsecc.shapes.dynamic_dims import is_fixed

Feeds = dict[str, np.ndarray]


def feeds_from(path_or_spec: str, model: ir.Model, beside: Path | None = None) -> Iterator[Feeds]:
    """The samples of a file, folder or `file.py:function`, one set of checked inputs each, in order.

    - .npz: arrays by input name (any names when there is one input; arr_0, arr_1, … are in the order of the inputs);
      .npy: the only input. What a Python call holds in memory comes in the same form.
    - a folder: its .npy, .npz, .wav or image files in the order of their names, or a folder of those for each class.
    - images: as the preprocessor_config.json in `beside` says, else resized to the input's height and width, RGB
      (or grey), scaled to [0, 1] for float inputs; channels first or last as the input's shape says.
    - .wav: mono, at the rate of that file.
    - .txt: its lines through the tokenizer.json beside it, or in `beside` (`sparsecc/data/texts.py`).
    - .jsonl: one object a line, with arrays by input name, or the path of an image or a sound, or a text.
    - a function: called without arguments; yields dicts, or tuples in the order of the inputs.

    Arrays that hold many samples along the first axis are cut to the input's batch size (1 where it is
    dynamic); for an input of one axis, or none, rows of an array with one axis more are the samples.
    InputError names the file and the fault: unknown input, shape, type, NaN, nothing to read.
    """
    for feeds, _ in labelled_from(path_or_spec, model, beside):
        yield feeds


def labelled_from(
    path_or_spec: str, model: ir.Model, beside: Path | None = None
) -> Iterator[tuple[Feeds, Sample]]:
    """The same, each with all that stands there, the label among it."""
    inputs = inputs_of(model)
    for where, sample in SampleSource(inputs, beside).samples(path_or_spec):
        yield checked(where, inputs, sample), sample


def inputs_of(model: ir.Model) -> list[ir.Value]:
    """What a model must be fed."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def checked(where: str, inputs: list[ir.Value], sample: Sample) -> Feeds:
    """The inputs that a sample holds, in their types. InputError says which it does not, or not as they are taken."""
    return {value.name or "": _checked(where, value, sample) for value in inputs}


def _checked(where: str, value: ir.Value, sample: Sample) -> np.ndarray:
    name = value.name or ""
    if name not in sample:
        have = ", ".join(sorted(sample)) or "nothing"
        raise InputError(
            f"{where}: no values for input '{name}': it holds {have}: name the arrays after the inputs"
        )
    array = np.asarray(sample[name])
    _check_shape(where, value, array)
    array = _converted(where, value, array)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{where}: input '{name}' holds NaN or infinity: clean the data")
    return array


def _check_shape(where: str, value: ir.Value, array: np.ndarray) -> None:
    if value.shape is None:
        return
    fits = array.ndim == len(value.shape) and all(
        not is_fixed(dim) or dim == size for dim, size in zip(value.shape, array.shape, strict=True)
    )
    if not fits:
        declared = "x".join(str(dim) for dim in value.shape)
        given = "x".join(map(str, array.shape)) or "a scalar"
        raise InputError(f"{where}: input '{value.name}' takes {declared}, not {given}: reshape the data")


def _converted(where: str, value: ir.Value, array: np.ndarray) -> np.ndarray:
    """To the input's type when no value changes kind: floats among themselves, integers that fit."""
    if value.dtype is None:
        return array
    if value.dtype == ir.DataType.STRING:
        if array.dtype.kind in "OUS":
            return array.astype(object)
    else:
        wanted = np.dtype(ml_dtypes.bfloat16) if value.dtype == ir.DataType.BFLOAT16 else value.dtype.numpy()
        if array.dtype == wanted:
            return array
        floats = value.dtype.is_floating_point() and array.dtype.kind in "fV"
        if floats or (array.dtype.kind in "iub" and wanted.kind in "iub" and _fits(array, wanted)):
            return array.astype(wanted)
    raise InputError(
        f"{where}: input '{value.name}' takes {value.dtype.name.lower()}, not {array.dtype}: convert the data"
    )


def _fits(array: np.ndarray, wanted: np.dtype[Any]) -> bool:
    return bool((array.astype(wanted).astype(object) == array.astype(object)).all())
