"""Inputs from the user's files: .npz, .npy, folders of those or of images, and functions in Python files."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sparsecc.data.array_files import read_arrays
from sparsecc.data.in_memory import MEMORY, files_of
from sparsecc.data.texts import from_text
from sparsecc.errors import InputError, MissingPackageError
from sparsecc.shapes.dynamic_dims import is_fixed
from sparsecc.system.user_code import function_in

if TYPE_CHECKING:
    from PIL.Image import Image

Feeds = dict[str, np.ndarray]
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
ARRAYS = frozenset({".npy", ".npz"})
_CHANNELS = (1, 3, 4)
_IN_ORDER = re.compile(r"arr_\d+", re.ASCII)
"""What numpy.savez calls arrays that were given without a name."""
_SPELLED = {1: "L", 3: "RGB", 4: "RGBA"}


def feeds_from(path_or_spec: str, model: ir.Model) -> Iterator[Feeds]:
    """The samples of a file, folder or `file.py:function`, one set of checked inputs each, in order.

    - .npz: arrays by input name (any names when there is one input; arr_0, arr_1, … are in the order of the inputs);
      .npy: the only input. What a Python call holds in memory comes in the same form.
    - a folder: its .npy, .npz or image files in the order of their names.
    - images: resized to the input's height and width, RGB (or grey), scaled to [0, 1] for float inputs;
      channels first or last as the input's shape says.
    - .txt: its lines through the tokenizer.json beside it (`sparsecc/data/texts.py`).
    - a function: called without arguments; yields dicts, or tuples in the order of the inputs.

    Arrays that hold many samples along the first axis are cut to the input's batch size (1 where it is
    dynamic); for an input of one axis, or none, rows of an array with one axis more are the samples.
    InputError names the file and the fault: unknown input, shape, type, NaN, nothing to read.
    """
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    for where, sample in _samples(path_or_spec, inputs):
        yield {value.name or "": _checked(where, value, sample) for value in inputs}


def _samples(spec: str, inputs: list[ir.Value]) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    path = Path(spec)
    file, colon, function = spec.rpartition(":")
    if spec.startswith(MEMORY):
        for held in files_of(spec):
            yield from _from_arrays(held, read_arrays(held), inputs)
    elif colon and file.endswith(".py") and not path.exists():
        yield from _from_function(Path(file), function, inputs)
    elif path.is_dir():
        yield from _from_folder(path, inputs)
    elif not path.exists():
        raise InputError(f"{spec}: no such file or folder: give .npz, .npy, a folder, or file.py:function")
    elif path.suffix.lower() in ARRAYS | IMAGES:
        yield from _from_file(path, inputs)
    elif path.suffix.lower() == ".txt":
        yield from ((path.name, sample) for sample in from_text(path, inputs))
    else:
        raise InputError(
            f"{spec}: cannot read '{path.suffix}' files: give .npz, .npy, images, .txt, or file.py:function"
        )


def _from_folder(folder: Path, inputs: list[ir.Value]) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in ARRAYS | IMAGES and f.is_file())
    if not files:
        raise InputError(f"{folder}: no .npy, .npz or image files in it: give a folder with samples")
    for file in files:
        yield from _from_file(file, inputs)


def _from_file(file: Path, inputs: list[ir.Value]) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    if file.suffix.lower() in IMAGES:
        value = _only(inputs, file)
        yield file.name, {value.name or "": _image(file, value)}
        return
    yield from _from_arrays(file, _arrays(file), inputs)


def _from_arrays(
    file: Path, arrays: Mapping[str, np.ndarray], inputs: list[ir.Value]
) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    for sample in _split(file, _by_name(file, arrays, inputs), inputs):
        yield file.name, sample


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        reason = " ".join(str(e).split()) or "it ends too early"
        raise InputError(f"{file}: not readable as a numpy file: {reason}: save it with numpy.savez") from e


def _by_name(file: Path, arrays: Mapping[str, np.ndarray], inputs: list[ir.Value]) -> dict[str, np.ndarray]:
    if len(arrays) == 1 and len(inputs) == 1:
        return {inputs[0].name or "": next(iter(arrays.values()))}
    if "" in arrays:
        _only(inputs, file)
    if arrays and all(_IN_ORDER.fullmatch(name) for name in arrays) and len(arrays) >= len(inputs):
        return {v.name or "": a for v, a in zip(inputs, arrays.values(), strict=False)}
    return dict(arrays)


def _only(inputs: list[ir.Value], file: Path) -> ir.Value:
    if len(inputs) != 1:
        names = ", ".join(str(value.name) for value in inputs)
        raise InputError(
            f"{file}: the model has {len(inputs)} inputs ({names}): give an .npz with an array for each"
        )
    return inputs[0]


def _split(
    file: Path, arrays: Mapping[str, np.ndarray], inputs: list[ir.Value]
) -> Iterator[dict[str, np.ndarray]]:
    """Cut arrays into samples; an array that holds one sample is used for all of them."""
    known = {value.name: value for value in inputs}
    batches = {name: _batches(array, known[name]) for name, array in arrays.items() if name in known}
    counts = {name: len(parts) for name, parts in batches.items()}
    total = max(counts.values(), default=1)
    uneven = next((name for name, count in counts.items() if count not in (1, total)), None)
    if uneven is not None:
        raise InputError(
            f"{file}: '{uneven}' holds {counts[uneven]} samples, another input {total}: give as many of each"
        )
    unknown = {name: array for name, array in arrays.items() if name not in known}
    for index in range(total):
        yield {**unknown, **{name: parts[index % len(parts)] for name, parts in batches.items()}}


def _batches(array: np.ndarray, value: ir.Value) -> list[np.ndarray]:
    shape = value.shape
    if shape is not None and len(shape) < 2 and array.ndim == len(shape) + 1:
        return [array[index, ...] for index in range(len(array))]  # each sample is a row, or a number
    if shape is None or not len(shape):
        return [array]
    first = shape[0]
    size = first if is_fixed(first) else 1
    if array.ndim == len(shape) - 1 and size == 1:
        return [array[np.newaxis]]
    if array.ndim != len(shape) or size == 0 or array.shape[0] < size or array.shape[0] % size:
        return [array]
    return [array[start : start + size] for start in range(0, array.shape[0], size)]


def _checked(where: str, value: ir.Value, sample: Mapping[str, np.ndarray]) -> np.ndarray:
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


def _image(file: Path, value: ir.Value) -> np.ndarray:
    """One image as a batch of one, channels where the input has them."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as e:
        raise MissingPackageError(
            f"{file}: reading images needs Pillow: pip install 'sparsecc[images]', or give .npy files"
        ) from e
    channels_last, channels, height, width = _image_layout(file, value)
    try:
        with Image.open(file) as opened:
            image = opened.convert(_SPELLED[channels])
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as e:
        raise InputError(f"{file}: not readable as an image: remove it or convert it") from e
    array = _resized(image, height, width, channels)
    if not channels_last:
        array = array.transpose(2, 0, 1)
    if value.dtype is not None and value.dtype.is_floating_point():
        array = array.astype(np.float32) / np.float32(255)
    return array[np.newaxis]


def _resized(image: Image, height: int | None, width: int | None, channels: int) -> np.ndarray:
    size = (width or image.width, height or image.height)
    pixels = np.asarray(image.resize(size) if size != image.size else image)
    return pixels.reshape(size[1], size[0], channels)


def _image_layout(file: Path, value: ir.Value) -> tuple[bool, int, int | None, int | None]:
    """(channels last, channels, height, width); None for a dynamic side."""
    shape = [dim if is_fixed(dim) else None for dim in value.shape or ()]
    if len(shape) == 4 and shape[1] in _CHANNELS:
        return False, int(shape[1] or 0), shape[2], shape[3]
    if len(shape) == 4 and shape[3] in _CHANNELS:
        return True, int(shape[3] or 0), shape[1], shape[2]
    raise InputError(f"{file}: input '{value.name}' of shape {value.shape} takes no images: give .npy files")


def _from_function(
    file: Path, name: str, inputs: list[ir.Value]
) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    where = f"{file.name}:{name}"
    function = function_in(file, name, "samples of")
    produced = function()
    if not isinstance(produced, Iterable) or isinstance(produced, (str, bytes, Mapping, np.ndarray)):
        raise InputError(
            f"{where}: yields nothing to iterate over: yield a dict or a tuple of arrays per sample"
        )
    for index, item in enumerate(produced):
        yield f"{where} sample {index}", _named(where, item, inputs)


def _named(where: str, item: object, inputs: list[ir.Value]) -> dict[str, np.ndarray]:
    if isinstance(item, Mapping):
        return {str(key): np.asarray(array) for key, array in item.items()}
    parts = list(item) if isinstance(item, (tuple, list)) else [item]
    if len(parts) < len(inputs):
        raise InputError(
            f"{where}: yields {len(parts)} arrays, the model has {len(inputs)} inputs: yield one for each"
        )
    return {value.name or "": np.asarray(part) for value, part in zip(inputs, parts, strict=False)}
