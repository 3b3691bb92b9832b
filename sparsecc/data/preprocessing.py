"""How a model's own preprocessor makes its inputs: `preprocessor_config.json`, as Hugging Face models carry it.

Without one pictures are resized to the input and scaled to [0, 1], and sound is taken as it is.
"""

from __future__ import annotations

import json
import math
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from sparsecc.errors import InputError, MissingPackageError
from sparsecc.shapes.dynamic_dims import is_fixed

if TYPE_CHECKING:
    from PIL.Image import Image

CONFIG = "preprocessor_config.json"
LONGEST = 1 << 20
"""Bytes of such a file."""
_SPELLED = {1: "L", 3: "RGB", 4: "RGBA"}
_LARGEST, _FASTEST = 16384, 1_000_000
"""Pixels of a side, and samples a second."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a picture or a sound. Sizes are (height, width)."""

    shortest_edge: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    resample: int | None = None
    factor: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    rate: int | None = None
    is_sound_normalized: bool = False

    @staticmethod
    def beside(folder: Path | None) -> Preprocessing:
        """That of the model in a folder. InputError where the file is none."""
        file = None if folder is None else folder / CONFIG
        if file is None or not file.is_file():
            return Preprocessing()
        try:
            with file.open("rb") as opened:
                told = json.loads(opened.read(LONGEST))
            return _read(told).checked()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as e:
            raise InputError(
                f"{file}: no preprocessor's configuration: {type(e).__name__}: {e}: remove it"
            ) from e

    def checked(self) -> Preprocessing:
        """Itself. ValueError where a size, rate, filter or scale is one that nothing has."""
        sizes = [n for n in (self.shortest_edge, *(self.size or ()), *(self.crop or ())) if n is not None]
        if any(not 0 < n <= _LARGEST for n in sizes):
            raise ValueError(f"sizes of 1 to {_LARGEST} are wanted, not {sizes}")
        if self.resample not in (None, *range(6)):
            raise ValueError(f"resample is a number of 0 to 5, not {self.resample}")
        if self.rate is not None and not 0 < self.rate <= _FASTEST:
            raise ValueError(f"sampling_rate {self.rate}")
        if len(self.std) != len(self.mean) or not all(
            map(math.isfinite, (*self.mean, *self.std, self.factor))
        ):
            raise ValueError("image_mean and image_std are not lists of as many numbers")
        return self

    def picture(self, where: str, image: Image, value: ir.Value) -> np.ndarray:
        """One picture as a batch of one, channels where the input has them."""
        channels_last, channels, height, width = image_layout(where, value)
        image = self._resized(image.convert(_SPELLED[channels]), height, width)
        pixels = np.asarray(image).reshape(image.height, image.width, channels)
        if value.dtype is not None and value.dtype.is_floating_point():
            pixels = pixels.astype(np.float32) * np.float32(self.factor)
            if self.mean and len(self.mean) in (1, channels):
                pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return (pixels if channels_last else pixels.transpose(2, 0, 1))[np.newaxis]

    def _resized(self, image: Image, height: int | None, width: int | None) -> Image:
        """To the sizes of the configuration; the model's own, where it has them, stand above those."""
        if self.shortest_edge is not None:
            share = self.shortest_edge / min(image.size)
            image = self._to(image, (round(image.height * share), round(image.width * share)))
        elif self.size is not None:
            image = self._to(image, self.size)
        if self.crop is not None:
            tall, wide = self.crop
            left, top = (image.width - wide) // 2, (image.height - tall) // 2
            image = image.crop((left, top, left + wide, top + tall))
        return self._to(image, (height or image.height, width or image.width))

    def _to(self, image: Image, size: tuple[int, int]) -> Image:
        wanted = (max(size[1], 1), max(size[0], 1))
        return image if image.size == wanted else image.resize(wanted, self.resample)

    def sound(self, file: Path, value: ir.Value) -> np.ndarray:
        """One sound file as a batch of one: mono, at the configured rate, cut or filled with silence to the input's
        length where it has one."""
        samples, rate = read_wave(file)
        if self.rate is not None and rate != self.rate:
            from scipy.signal import resample_poly

            samples = resample_poly(samples, self.rate, rate).astype(np.float32)
        if self.is_sound_normalized:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + np.float32(1e-7))
        shape = list(value.shape or ())
        if len(shape) not in (1, 2, 3) or any(is_fixed(dim) and dim != 1 for dim in shape[:-1]):
            raise InputError(
                f"{file.name}: input '{value.name}' of shape {value.shape} takes no sound: give .npz files"
            )
        length = shape[-1]
        if is_fixed(length):
            samples = np.pad(samples[: int(length)], (0, max(0, int(length) - len(samples))))
        return samples.reshape([1] * (len(shape) - 1) + [-1])


def read_wave(file: Path) -> tuple[np.ndarray, int]:
    """(float32 samples of -1 to 1, the mean of all channels; samples a second). InputError for another file."""
    try:
        with wave.open(str(file), "rb") as opened:
            width, channels, rate = opened.getsampwidth(), opened.getnchannels(), opened.getframerate()
            raw = opened.readframes(opened.getnframes())
    except (OSError, EOFError, wave.Error) as e:
        raise InputError(f"{file}: not readable as a wave file: {e}: convert it to PCM") from e
    if width not in (1, 2, 3, 4):
        raise InputError(f"{file}: waves of {8 * width} bits are not read: convert it to PCM of 16")
    if width == 1:  # unsigned, as the format has it
        numbers = np.frombuffer(raw, np.uint8).astype(np.float32) - 128
    elif width == 3:
        bytes_ = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        numbers = np.pad(bytes_, ((0, 0), (1, 0))).copy().view("<i4").reshape(-1).astype(np.float32) / 256
    else:
        numbers = np.frombuffer(raw, f"<i{width}").astype(np.float32)
    return (numbers / 2.0 ** (8 * width - 1)).reshape(-1, channels).mean(1).astype(np.float32), rate


def image_layout(where: str, value: ir.Value) -> tuple[bool, int, int | None, int | None]:
    """(channels last, channels, height, width); None for a dynamic side."""
    shape = [dim if is_fixed(dim) else None for dim in value.shape or ()]
    if len(shape) == 4 and shape[1] in _SPELLED:
        return False, int(shape[1] or 0), shape[2], shape[3]
    if len(shape) == 4 and shape[3] in _SPELLED:
        return True, int(shape[3] or 0), shape[1], shape[2]
    raise InputError(f"{where}: input '{value.name}' of shape {value.shape} takes no images: give .npy files")


def opened_image(file: Path) -> Image:
    """InputError where it is none; MissingPackageError without Pillow."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as e:
        raise MissingPackageError(
            f"{file}: reading images needs Pillow: pip install 'sparsecc[images]', or give .npy files"
        ) from e
    try:
        with Image.open(file) as opened:
            image: Image.Image = opened.copy()
            return image
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as e:
        raise InputError(f"{file}: not readable as an image: remove it or convert it") from e


def _read(told: Mapping[str, Any]) -> Preprocessing:
    """The keys of transformers' image processors and feature extractors; what is switched off is left out."""
    crops = bool(told.get("do_center_crop", False))
    edge, size = None, None
    if told.get("do_resize", True) and (asked := told.get("size")) is not None:
        edge, size = _size(asked, is_edge=crops)
    crop = _size(told["crop_size"], is_edge=False)[1] if crops and "crop_size" in told else None
    normalizes = bool(told.get("do_normalize", "image_mean" in told)) and "image_mean" in told
    is_sound = "sampling_rate" in told
    return Preprocessing(
        shortest_edge=edge,
        size=size,
        crop=crop,
        resample=int(told["resample"]) if told.get("resample") is not None else None,
        factor=float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 1.0,
        mean=tuple(map(float, told["image_mean"])) if normalizes else (),
        std=tuple(map(float, told["image_std"])) if normalizes else (),
        rate=int(told["sampling_rate"]) if is_sound else None,
        is_sound_normalized=is_sound and bool(told.get("do_normalize", False)),
    )


def _size(asked: Any, *, is_edge: bool) -> tuple[int | None, tuple[int, int] | None]:
    """(the shortest edge, (height, width)), of which one is None. A plain number is an edge where a crop follows."""
    if isinstance(asked, int):
        return (asked, None) if is_edge else (None, (asked, asked))
    if "shortest_edge" in asked:
        return int(asked["shortest_edge"]), None
    return None, (int(asked["height"]), int(asked["width"]))
