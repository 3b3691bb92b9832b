"""Where samples come from: .npz, .npy, .jsonl, .wav, text, pictures, folders of them, functions, memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.data.array_files import BROKEN, arrays_in, read_arrays
from sparsecc.data.in_memory import files_of
from sparsecc.data.named import MEMORY, require_samples
from sparsecc.data.preprocessing import Preprocessing, opened_image
from sparsecc.data.texts import Texts
from sparsecc.errors import InputError
from sparsecc.escaping import one_line
from sparsecc.shapes.dynamic_dims import is_fixed
from sparsecc.system.user_code import function_in

Sample = Mapping[str, Any]
"""Arrays by input name, and what a file says besides, such as "label"."""
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
ARRAYS = frozenset({".npy", ".npz"})
SOUNDS = frozenset({".wav"})
LABEL = "label"
_IN_ORDER = re.compile(r"arr_\d+", re.ASCII)
"""What numpy.savez calls arrays that were given without a name."""
_LABELS = ("label", "labels", "target", "targets", "y")
_PICTURES = ("image", "img", "image_path", "file_name")
_SOUND_KEYS = ("audio", "audio_filepath", "wav", "path")


class SampleSource:
    """Samples for the inputs of a model, whose preprocessor's configuration and tokenizer may lie in `beside`."""

    def __init__(self, inputs: list[ir.Value], beside: Path | None = None) -> None:
        self._inputs, self._beside = inputs, beside

    @cached_property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.beside(self._beside)

    def samples(self, spec: str) -> Iterator[tuple[str, Sample]]:
        """(where it comes from, the sample), in order. InputError names what cannot be read."""
        path = Path(spec)
        file, colon, function = spec.rpartition(":")
        if spec.startswith(MEMORY):
            for held in files_of(spec):
                yield from self._of_arrays(held, read_arrays(held))
            return
        require_samples(spec, spec)
        if colon and file.endswith(".py") and not path.exists():
            yield from _from_function(Path(file), function, self._inputs)
        elif path.is_dir():
            yield from self._of_folder(path)
        elif path.suffix.lower() == ".txt":
            yield from ((path.name, sample) for sample in self._texts(path).samples(path))
        elif path.suffix.lower() == ".jsonl":
            yield from self._of_records(path)
        elif path.suffix.lower() in ARRAYS | IMAGES | SOUNDS:
            yield from self._of_file(path)
        else:
            raise InputError(
                f"{spec}: cannot read '{path.suffix}' files: give .npz, .npy, images, .wav, .jsonl, .txt, or "
                "file.py:function"
            )

    def picture(self, file: Path) -> dict[str, np.ndarray]:
        """One picture as the model's only input."""
        value = only(self._inputs, file)
        return {value.name or "": self.preprocessing.picture(str(file), opened_image(file), value)}

    def _texts(self, file: Path) -> Texts:
        return Texts(file, self._inputs, [file.parent, *([self._beside] if self._beside else [])])

    def _of_folder(self, folder: Path) -> Iterator[tuple[str, Sample]]:
        """Files in the order of their names; of a folder for each class, one of each class in turn, labelled by the
        order of the classes' names."""
        files = _readable(folder)
        if files:
            yield from chain.from_iterable(map(self._of_file, files))
            return
        classes = [_readable(one) for one in sorted(folder.iterdir()) if one.is_dir()]
        if not any(classes):
            raise InputError(
                f"{folder}: no .npy, .npz, .wav or image files in it: give a folder with samples, or with a folder "
                "for each class"
            )
        for turn in zip_longest(*classes):
            for label, file in enumerate(turn):
                if file is not None:
                    yield from ((where, {LABEL: label, **sample}) for where, sample in self._of_file(file))

    def _of_file(self, file: Path) -> Iterator[tuple[str, Sample]]:
        if file.suffix.lower() in IMAGES:
            yield file.name, self.picture(file)
        elif file.suffix.lower() in SOUNDS:
            value = only(self._inputs, file)
            yield file.name, {value.name or "": self.preprocessing.sound(file, value)}
        else:
            yield from self._of_arrays(file, _arrays(file))

    def _of_records(self, file: Path) -> Iterator[tuple[str, Sample]]:
        """A line of .jsonl is a sample: arrays by input name, or a picture, a sound (paths from the file's folder) or
        text. What else stands there, the label too, goes with it."""
        texts: Texts | None = None
        with file.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                where = f"{file.name}:{number}"
                if not line.strip():
                    continue
                record = _record(where, line)
                path = next(
                    (record[k] for k in (*_PICTURES, *_SOUND_KEYS) if isinstance(record.get(k), str)), None
                )
                if path is not None:
                    yield where, {**record, **self._only_one(where, file.parent, file.parent / path)}
                elif isinstance(record.get("text"), str):
                    texts = texts or self._texts(file)
                    if (tokens := texts.sample(record["text"])) is not None:
                        yield where, {**record, **tokens}
                else:
                    try:
                        yield where, {**record, **self._of_lists(record)}
                    except (TypeError, ValueError, OverflowError) as e:
                        raise InputError(
                            f"{where}: no arrays: {one_line(str(e), 80)}: write even lists"
                        ) from e

    def _only_one(self, where: str, folder: Path, file: Path) -> Sample:
        """The sample of a file that a line names; InputError where it lies outside of the folder: the lines may be
        someone else's."""
        if not file.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{where}: {one_line(str(file), 120)} lies outside its folder: put the .jsonl into a folder above "
                "its samples"
            )
        if not file.is_file():
            raise InputError(
                f"{where}: {one_line(str(file), 120)} is no file: name one from the folder of {where}"
            )
        found = list(islice(self._of_file(file), 2))
        if len(found) != 1:
            raise InputError(
                f"{where}: {one_line(file.name, 80)} does not hold one sample: give it to --calib itself"
            )
        return found[0][1]

    def _of_lists(self, record: Sample) -> dict[str, np.ndarray]:
        """The arrays that a record spells out, in the types of the inputs."""
        found = {}
        for value in self._inputs:
            if (name := value.name or "") in record:
                array = np.asarray(record[name])
                is_float = value.dtype is not None and value.dtype.is_floating_point()
                array = array.astype(np.float32) if is_float else array
                lacks_batch = value.shape is not None and array.ndim == len(value.shape) - 1
                found[name] = array[np.newaxis] if lacks_batch else array
        return found

    def _of_arrays(self, file: Path, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Sample]]:
        for sample in _split(file, self._pictured(_by_name(file, arrays, self._inputs)), self._inputs):
            yield file.name, sample

    def _pictured(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pictures among the arrays (bytes of height x width, or with colours last) as the input takes them; the only
        picture is the only input, whatever it is called."""
        names = [name for name, array in arrays.items() if array.dtype == np.uint8 and array.ndim in (2, 3)]
        if len(self._inputs) != 1 or len(names) != 1:
            return arrays
        value = self._inputs[0]
        takes_pictures = (
            value.dtype is not None and value.dtype.is_floating_point() and len(value.shape or ()) == 4
        )
        if not takes_pictures or (value.name in arrays and value.name != names[0]):
            return arrays
        from PIL import Image

        made = self.preprocessing.picture(names[0], Image.fromarray(arrays[names[0]]), value)
        return {**{n: a for n, a in arrays.items() if n != names[0]}, value.name or "": made}


def _readable(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in ARRAYS | IMAGES | SOUNDS and f.is_file())


def _record(where: str, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{where}: no JSON: {e}: write one object a line") from e
    if not isinstance(record, dict):
        raise InputError(f"{where}: no object: write one object a line")
    label = next((record[name] for name in _LABELS if name in record), None)
    return record if label is None else {**record, LABEL: label}


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        return arrays_in(file)
    except BROKEN as e:
        reason = " ".join(str(e).split()) or "it ends too early"
        raise InputError(f"{file}: not readable as a numpy file: {reason}: save it with numpy.savez") from e


def _by_name(file: Path, arrays: Mapping[str, np.ndarray], inputs: list[ir.Value]) -> dict[str, np.ndarray]:
    """Arrays by input name, whatever a single one is called; what follows on those in order is the label."""
    if len(arrays) == 1 and len(inputs) == 1:
        return {inputs[0].name or "": next(iter(arrays.values()))}
    if "" in arrays:
        only(inputs, file)
    names = [name for name in arrays if _IN_ORDER.fullmatch(name)]
    if len(names) >= len(inputs):
        wanted = [*(value.name or "" for value in inputs), LABEL]
        found = dict(zip(wanted, (arrays[name] for name in names), strict=False))
    else:
        found = dict(arrays)
    taken = {value.name for value in inputs}
    label = next((arrays[name] for name in _LABELS if name in arrays and name not in taken), None)
    return found if label is None or LABEL in found else {**found, LABEL: label}


def only(inputs: list[ir.Value], file: Path) -> ir.Value:
    """The only input. InputError where there are several."""
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
    others = {n: _shared(a, total) for n, a in arrays.items() if n not in known}
    for index in range(total):
        yield {n: parts[index % len(parts)] for n, parts in {**others, **batches}.items()}


def _shared(array: np.ndarray, total: int) -> list[np.ndarray]:
    """What is no input, label by label where there are as many as samples."""
    even = array.ndim > 0 and total > 1 and len(array) % total == 0 and len(array) > 0
    return np.split(array, total) if even else [array]


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
    names = [*(value.name or "" for value in inputs), LABEL]
    return {name: np.asarray(part) for name, part in zip(names, parts, strict=False)}
