"""Real models with samples and what measures them, for `benchmarks/accuracy.py`.

All but the digits models are the shared materials (SPARSECC_SHARED or ../shared).
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sparsecc.data.samples import Samples, merged
from sparsecc.loading.models import load_ir
from sparsecc.loss.quality import told
from sparsecc.runtime.session import open_session

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SPARSECC_SHARED") or ROOT.parent / "shared") / "materials"
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], "f4"), np.array([0.229, 0.224, 0.225], "f4")
CALIBRATION = 256
"""CIFAR-10 images to calibrate on."""
ANIMALS = (2, 3, 4, 5, 6, 7)
"""Classes of CIFAR-10."""
WITH_GENERAL = ("resnet20_animals",)
"""The pairs that have two sets of samples."""
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Pair:
    """A model, unlabelled samples, and what its quality is measured by.

    `measure` is top-1, nats (the mean negative log likelihood of text, less is better) or dB (the distance of the
    outputs to the dense model's, where there are no labels). `general` are samples that are not of the domain which
    the others are of, where there are such.
    """

    model: Path
    samples: Samples
    accuracy: Callable[[Run], float]
    measure: str = "top-1"
    general: Samples | None = None


def digits(name: str) -> Pair:
    """One of the reference models."""
    sys.path.insert(0, str(ROOT / "models"))
    data = importlib.import_module("digits")
    path = ROOT / "models" / f"{name}.onnx"
    return Pair(path, Samples(tuple(merged(data.calibration(), load_ir(path))), True), data.accuracy)


def cifar(name: str) -> Pair:
    """A CIFAR-10 ResNet: 256 training images to calibrate on, 1,000 test images to score."""
    images, _ = cifar_batch(0)
    return _cifar(name, _batches(images), *cifar_batch(50))


def cifar_animals(name: str) -> Pair:
    """The same where only animals matter: 256 training images of them, 256 of all classes; animals are scored.

    Its answer may still be any of the ten classes.
    """
    images, labels = cifar_batch(0)
    everything, _ = cifar_batch(1)
    test, wanted = cifar_batch(50)
    chosen = np.isin(wanted, ANIMALS)
    pair = _cifar(name, _batches(images[np.isin(labels, ANIMALS)]), test[chosen], wanted[chosen])
    return replace(pair, general=_batches(everything))


def _cifar(name: str, samples: Samples, test: np.ndarray, wanted: np.ndarray) -> Pair:
    def accuracy(run: Run) -> float:
        answers = [next(iter(run({"image": test[i : i + 250]}).values())) for i in range(0, len(test), 250)]
        return float(np.mean(np.concatenate(answers).argmax(axis=1) == wanted))

    return Pair(SHARED / "cifar10" / f"{name}_cifar10.onnx", samples, accuracy)


def _batches(images: np.ndarray) -> Samples:
    return Samples(tuple({"image": images[i : i + 64]} for i in range(0, CALIBRATION, 64)), True)


def cifar_batch(number: int) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    folder = SHARED / "cifar10"
    found = re.search(r"\[[^\]]*\]", (folder / "cifar10_labels.js").read_text())
    assert found is not None
    labels = np.array(json.loads(found.group()))[number * 1000 : (number + 1) * 1000]
    pixels = np.asarray(Image.open(folder / f"cifar10_batch_{number}.png").convert("RGB"))
    scaled = pixels.reshape(1000, 32, 32, 3).astype(np.float32) / 255
    return np.ascontiguousarray(((scaled - MEAN) / DEVIATION).transpose(0, 3, 1, 2)), labels


def imagenet(name: str) -> Pair:
    """An ImageNet classifier: of the 500 images every twentieth calibrates, every second scores.

    The images are 224 x 224 already: resized and cropped when the sample was taken, and not once more here.
    """
    from PIL import Image

    folder = SHARED / "imagenet1000"
    classes = [line.split()[0] for line in (folder / "synsets.txt").read_text().splitlines()]
    mobile = name.startswith("mobilenet")
    files = sorted(folder.glob("*.jpg"))
    images, labels = [], []
    for file in files:
        found = re.search(r"n\d{8}", file.name)
        labels.append(classes.index(found.group()) if found else int(re.findall(r"\d+", file.stem)[-1]))
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        scaled = np.asarray(image, dtype=np.float32) / 255
        images.append((scaled * 2 - 1 if mobile else (scaled - MEAN) / DEVIATION).transpose(2, 0, 1))
    data, truth = np.stack(images), np.array(labels)
    calibration = data[::20]
    test, wanted = data[1::2], truth[1::2] + (1 if mobile else 0)

    def accuracy(run: Run) -> float:
        answers = [next(iter(run({"image": test[i : i + 25]}).values())) for i in range(0, len(test), 25)]
        return float(np.mean(np.concatenate(answers).argmax(axis=1) == wanted))

    batches = tuple({"image": calibration[i : i + 5]} for i in range(0, len(calibration), 5))
    return Pair(folder / f"{name}.onnx", Samples(batches, True), accuracy)


def stories(name: str) -> Pair:
    """A small Llama: the beginnings of 16 stories that it tells itself calibrate, two real ones are scored."""
    from benchmarks.quantization_cases import CASES

    case = CASES[name]()

    def nats(run: Run) -> float:
        found = case.score(next(iter(run(case.test[0]).values())))
        assert found is not None
        return found

    ids = told_by_itself(open_session(case.path, threads=1).run, 16, 128)
    batches = tuple({"ids": ids[i : i + 16]} for i in range(0, len(ids), 16))
    return Pair(case.path, Samples(batches, True), nats, case.measure)


def told_by_itself(run: Run, number: int, length: int) -> np.ndarray:
    """Tokens drawn from the model's own prediction, from the token that begins a story. (number, length) int64."""
    generator = np.random.default_rng(0)
    ids = np.ones((number, 1), np.int64)
    while ids.shape[1] < length:
        logits = run({"ids": ids})["logits"][:, -1]
        drawn = (logits + generator.gumbel(size=logits.shape)).argmax(axis=1)
        ids = np.concatenate([ids, drawn[:, None]], axis=1)
    return ids


def detector(name: str) -> Pair:
    """NanoDet without labelled images: 32 photographs calibrate, 32 others measure the distance to the dense one."""
    from PIL import Image

    files = sorted((SHARED / "imagenet1000").glob("*.jpg"))[::7][:64]
    mean, deviation = np.array([103.53, 116.28, 123.675], "f4"), np.array([57.375, 57.12, 58.395], "f4")
    feeds = []
    for file in files:
        with Image.open(file) as opened:
            pixels = np.asarray(opened.convert("RGB").resize((320, 320)), dtype=np.float32)[..., ::-1]
        feeds.append(
            {"input.1": np.ascontiguousarray(((pixels - mean) / deviation).transpose(2, 0, 1)[None])}
        )
    path = SHARED / "det" / f"{name}.onnx"
    samples, test = Samples(tuple(feeds[::2]), True), feeds[1::2]
    dense = _joined(open_session(path, threads=1).run, test)
    return Pair(path, samples, lambda run: float(told([dense], [_joined(run, test)])["quality_db"]), "dB")


def _joined(run: Run, feeds: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    answers = [run(one) for one in feeds]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


PAIRS: Mapping[str, Callable[[], Pair]] = {
    "resnet20": lambda: cifar("resnet20"),
    "resnet56": lambda: cifar("resnet56"),
    "resnet20_animals": lambda: cifar_animals("resnet20"),
    "digits_resnet": lambda: digits("digits_resnet"),
    "digits_vit": lambda: digits("digits_vit"),
    "digits_lstm": lambda: digits("digits_lstm"),
    "mobilenetv2": lambda: imagenet("mobilenetv2_1.0_dy18"),
    "squeezenet": lambda: imagenet("squeezenet1.1_ts13"),
    "stories": lambda: stories("stories"),
    "nanodet": lambda: detector("nanodet_m_320"),
}


def resnet8() -> Pair:
    """MLPerf Tiny's CIFAR-10 ResNet, which takes pixels: 256 training images to calibrate on, 1,000 test images."""

    def pixels(images: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.round((images.transpose(0, 2, 3, 1) * DEVIATION + MEAN) * 255)).astype(
            "f4"
        )

    (images, _), (test, wanted) = cifar_batch(0), cifar_batch(50)
    given, scored = pixels(images), pixels(test)

    def accuracy(run: Run) -> float:
        answers = [next(iter(run({"input_1": scored[i : i + 250]}).values())) for i in range(0, 1000, 250)]
        return float(np.mean(np.concatenate(answers).argmax(axis=1) == wanted))

    batches = tuple({"input_1": given[i : i + 64]} for i in range(0, CALIBRATION, 64))
    return Pair(SHARED / "cifar10" / "mlperf_resnet8_tf2onnx17.onnx", Samples(batches, True), accuracy)


def in_frames(small: np.ndarray) -> np.ndarray:
    """Digits of 8 x 8, made 20 x 20 in a black frame, from 0 to 1. (N, 28, 28)."""
    from PIL import Image

    frames = np.zeros((len(small), 28, 28), np.float32)
    for frame, digit in zip(frames, small.reshape(len(small), 8, 8), strict=True):
        image = Image.fromarray((digit.astype(np.float32) * 255 / small.max()).astype(np.uint8))
        frame[4:24, 4:24] = np.asarray(image.resize((20, 20)), np.float32) / 255
    return frames


def mnist(file: str, name: str, shape: tuple[int, ...], mean: float = 0.0, deviation: float = 1.0) -> Pair:
    """A model of MNIST that takes one digit, on the digits of the reference models."""
    sys.path.insert(0, str(ROOT / "models"))
    with np.load(importlib.import_module("digits").DATA) as data:
        given, scored, wanted = (data[what] for what in ("calibration_images", "test_images", "test_labels"))

    def feeds(images: np.ndarray) -> list[dict[str, np.ndarray]]:
        return [{name: one.reshape(1, *shape)} for one in (in_frames(images) - mean) / deviation]

    test = feeds(scored)

    def accuracy(run: Run) -> float:
        answers = [int(next(iter(run(one).values())).argmax()) for one in test]
        return float(np.mean(np.array(answers) == wanted))

    return Pair(SHARED / "mnist" / file, Samples(tuple(feeds(given)), True), accuracy)


FRESH: Mapping[str, Callable[[], Pair]] = {
    "resnet8": resnet8,
    "burn_mnist": lambda: mnist("burn_mnist.onnx", "input.1", (1, 28, 28), 0.1307, 0.3081),
    "onnx2c_mnist": lambda: mnist("onnx2c_pytorch.onnx", "network_input", (784,)),
}
"""Pairs that no default or threshold was chosen on."""
