"""Models with the data that measures them, for `benchmarks/quantization.py`.

Trained models and their data are the shared materials in SPARSECC_SHARED or ../shared; resnet50 and bert_base come
from the zoo without trained weights and run on random inputs.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

ROOT = Path(__file__).resolve().parents[1]
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
UNTRAINED = frozenset({"resnet50", "bert_base"})
IGNORED = -1
"""The label of a place that is not scored."""
TOKENS = 384
"""Tokens per story; shorter ones are repeated."""
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A model with calibration feeds and test feeds.

    `labels` are the right classes of all test samples, in the shape of the first output without its last axis;
    `measure` is what is made of them: top-1, or nats for the mean negative log likelihood of text.
    """

    path: Path
    calibration: list[Feeds]
    test: list[Feeds]
    labels: np.ndarray | None = None
    measure: str = "top-1"

    def score(self, result: np.ndarray) -> float | None:
        """The accuracy or the nats of the first output; None without labels."""
        if self.labels is None:
            return None
        counted = self.labels != IGNORED
        logits, right = result[counted].astype(np.float64), self.labels[counted]
        if self.measure == "top-1":
            return float((logits.argmax(-1) == right).mean())
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, right[:, None], axis=-1)[:, 0]
        return float((np.log(np.exp(logits).sum(axis=-1)) - chosen).mean())


def shared() -> Path:
    """The folder of shared materials."""
    return Path(os.environ.get("SPARSECC_SHARED") or ROOT.parent / "shared") / "materials"


def cifar(name: str) -> Case:
    """1,000 test images; 200 training images to calibrate with."""
    folder = shared() / "cifar10"
    found = re.search(r"\[.*\]", (folder / "cifar10_labels.js").read_text(), re.DOTALL)
    assert found is not None
    labels = np.array(json.loads(found.group(0)))[50_000:51_000]
    train, test = _cifar_batch(folder, 0), _cifar_batch(folder, 50)
    return Case(
        folder / f"{name}_cifar10.onnx",
        [{"image": train[i : i + 50]} for i in range(0, 200, 50)],
        [{"image": test[i : i + 250]} for i in range(0, 1000, 250)],
        labels,
    )


def _cifar_batch(folder: Path, number: int) -> np.ndarray:
    from PIL import Image

    pixels = np.array(Image.open(folder / f"cifar10_batch_{number}.png").convert("RGB"))
    images = (pixels.reshape(1000, 32, 32, 3) / 255 - MEAN) / DEVIATION
    return np.asarray(images.transpose(0, 3, 1, 2), np.float32)


def imagenet(file: str, *, signed: bool, offset: int) -> Case:
    """500 images of as many classes; every tenth calibrates, the others test.

    The images are 224 x 224 already: resized and cropped when the sample was taken, and not once more here.
    """
    from PIL import Image

    folder = shared() / "imagenet1000"
    synsets = [line.split()[0] for line in (folder / "synsets.txt").read_text().splitlines() if line]
    images, labels = [], []
    for path in sorted(folder.glob("*.jpg")):
        pixels = np.array(Image.open(path).convert("RGB")) / 255
        images.append((pixels * 2 - 1 if signed else (pixels - MEAN) / DEVIATION).transpose(2, 0, 1))
        labels.append(synsets.index(path.stem.split("_")[0]) + offset)
    every = np.stack(images).astype(np.float32)
    tenth = np.arange(len(every)) % 10 == 0
    test = every[~tenth]
    return Case(
        folder / file,
        [{"image": every[tenth][i : i + 10]} for i in range(0, int(tenth.sum()), 10)],
        [{"image": test[i : i + 25]} for i in range(0, len(test), 25)],
        np.array(labels)[~tenth],
    )


def stories() -> Case:
    """A small Llama on a sample of its stories: half of them calibrate, the others are scored."""
    folder = shared() / "lm"
    text = (folder / "tinystories_sample.txt").read_text()
    vocabulary = _vocabulary(folder / "tok512.bin")
    told = [_tokens(story.strip(), vocabulary) for story in text.split("<|endoftext|>") if story.strip()]
    windows = np.stack([np.resize(ids, TOKENS) for ids in told])
    known = np.arange(TOKENS) < np.array([len(ids) for ids in told])[:, None] - 1
    labels = np.where(known, np.roll(windows, -1, axis=1), IGNORED)
    labels[:, -1] = IGNORED
    half = len(told) // 2
    return Case(
        folder / "export" / "stories260K_dy18.onnx",
        [{"ids": windows[i : i + 1]} for i in range(half)],
        [{"ids": windows[half:]}],
        labels[half:],
        "nats",
    )


def _vocabulary(path: Path) -> dict[bytes, tuple[int, float]]:
    """Pieces of a llama2.c vocabulary with their numbers and scores."""
    pieces: dict[bytes, tuple[int, float]] = {}
    data, at = path.read_bytes(), 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.setdefault(data[at + 8 : at + 8 + length], (len(pieces), score))
        at += 8 + length
    return pieces


def _tokens(text: str, vocabulary: dict[bytes, tuple[int, float]]) -> np.ndarray:
    """Byte-pair encoding: always the best merge; bytes for what the vocabulary lacks; begins with number 1."""
    parts: list[bytes] = []
    for character in " " + text:
        raw = character.encode()
        parts.extend([raw] if raw in vocabulary else [b"<0x%02X>" % byte for byte in raw])
    while True:
        joined = [left + right for left, right in itertools.pairwise(parts)]
        merges = [(vocabulary[one][1], -place) for place, one in enumerate(joined) if one in vocabulary]
        if not merges:
            return np.array([1, *(vocabulary[part][0] for part in parts)], np.int64)
        place = -max(merges)[1]
        parts[place : place + 2] = [joined[place]]


def digits(name: str) -> Case:
    """A model of the project on handwritten digits."""
    sys.path.insert(0, str(ROOT / "models"))
    data = importlib.import_module("digits")
    with np.load(data.DATA) as stored:
        images, labels = data.prepare(stored["test_images"]), stored["test_labels"]
    test = [{"image": images[i : i + data.BATCH]} for i in range(0, len(images), data.BATCH)]
    return Case(ROOT / "models" / f"{name}.onnx", list(data.calibration()), test, labels)


def zoo(name: str) -> Case:
    """A full-size architecture of the zoo. Needs torch for the first export."""
    from tests.zoo.large import large_path

    return large(large_path(name, "torchscript"))


def large(path: Path) -> Case:
    """A model without data: random inputs of its shapes, 128 for a sequence."""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in ir.load(path).graph.inputs:
        assert value.shape is not None
        size = [
            side if isinstance(side, int) else 1 if axis == 0 else 128
            for axis, side in enumerate(value.shape)
        ]
        is_float = value.dtype == ir.DataType.FLOAT
        array = rng.standard_normal(size).astype(np.float32) if is_float else rng.integers(0, 1000, size)
        feeds[value.name or ""] = array
    return Case(path, [feeds], [feeds])


CASES: dict[str, Callable[[], Case]] = {
    "resnet20": lambda: cifar("resnet20"),
    "resnet56": lambda: cifar("resnet56"),
    "mobilenetv2": lambda: imagenet("mobilenetv2_1.0_dy18.onnx", signed=True, offset=1),
    "squeezenet": lambda: imagenet("squeezenet1.1_ts13.onnx", signed=False, offset=0),
    "stories": stories,
    "digits_lstm": lambda: digits("digits_lstm"),
    "digits_vit": lambda: digits("digits_vit"),
    "resnet50": lambda: zoo("resnet50"),
    "bert_base": lambda: zoo("bert_base"),
}
