"""Accuracy against removed work, without training: criteria × allocators × repair on real models and data.

    python benchmarks/accuracy.py [--pairs resnet20,digits_resnet] [--ratios 0.1,0.3,0.5] [--json FILE]

All pairs but the digits models need the shared materials (SPARSECC_SHARED or ../shared).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.backends.onnxruntime_cpu import OnnxRuntimeCpu
from sparsecc.calibrate.samples import Samples, merged
from sparsecc.choose import Source, choose
from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.reconstruct.stage import kept_values
from sparsecc.reconstruct.sweep import Settings, repair
from sparsecc.verify.prove import write

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SPARSECC_SHARED") or ROOT.parent / "shared") / "materials"
Feeds = dict[str, np.ndarray]
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

COMBINATIONS = (
    ("random", "uniform"), ("l2", "uniform"), ("l2", "global"), ("wanda", "uniform"),
    ("fluctuation", "global"), ("obs", "uniform"), ("obs", "distortion"),
)  # fmt: skip
REPAIRS = ("none", "bn", "reconstruct")


@dataclass(frozen=True)
class Pair:
    """A model, unlabelled samples, and what its accuracy is measured by."""

    model: Path
    samples: Samples
    accuracy: Callable[[Run], float]


def digits(name: str) -> Pair:
    """One of the reference models."""
    sys.path.insert(0, str(ROOT / "models"))
    data = importlib.import_module("digits")
    path = ROOT / "models" / f"{name}.onnx"
    return Pair(path, Samples(tuple(merged(data.calibration(), load_ir(path))), True), data.accuracy)


def cifar(name: str) -> Pair:
    """A CIFAR-10 ResNet: 256 training images to calibrate on, 1,000 test images to score."""
    images, _ = cifar_batch(0)
    test, labels = cifar_batch(50)

    def accuracy(run: Run) -> float:
        answers = [next(iter(run({"image": test[i : i + 250]}).values())) for i in range(0, 1000, 250)]
        return float(np.mean(np.concatenate(answers).argmax(axis=1) == labels))

    batches = tuple({"image": images[i : i + 64]} for i in range(0, 256, 64))
    return Pair(SHARED / "cifar10" / f"{name}_cifar10.onnx", Samples(batches, True), accuracy)


def cifar_batch(number: int) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    folder = SHARED / "cifar10"
    found = re.search(r"\[[^\]]*\]", (folder / "cifar10_labels.js").read_text())
    assert found is not None
    labels = np.array(json.loads(found.group()))[number * 1000 : (number + 1) * 1000]
    pixels = np.asarray(Image.open(folder / f"cifar10_batch_{number}.png").convert("RGB"))
    scaled = pixels.reshape(1000, 32, 32, 3).astype(np.float32) / 255
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return np.ascontiguousarray(((scaled - mean) / deviation).transpose(0, 3, 1, 2)), labels


def imagenet(name: str) -> Pair:
    """An ImageNet classifier: every fifth image of the sample calibrates, the others score.

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
        mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
        images.append((scaled * 2 - 1 if mobile else (scaled - mean) / deviation).transpose(2, 0, 1))
    data, truth = np.stack(images), np.array(labels)
    scored = np.arange(len(data)) % 5 != 0
    calibration = data[~scored]
    test, wanted = data[scored], truth[scored] + (1 if mobile else 0)

    def accuracy(run: Run) -> float:
        answers = [next(iter(run({"image": test[i : i + 20]}).values())) for i in range(0, len(test), 20)]
        return float(np.mean(np.concatenate(answers).argmax(axis=1) == wanted))

    batches = tuple({"image": calibration[i : i + 20]} for i in range(0, len(calibration), 20))
    return Pair(folder / f"{name}.onnx", Samples(batches, True), accuracy)


PAIRS: dict[str, Callable[[], Pair]] = {
    "digits_resnet": lambda: digits("digits_resnet"),
    "digits_vit": lambda: digits("digits_vit"),
    "digits_lstm": lambda: digits("digits_lstm"),
    "resnet20": lambda: cifar("resnet20"),
    "resnet56": lambda: cifar("resnet56"),
    "mobilenetv2": lambda: imagenet("mobilenetv2_1.0_dy18"),
    "squeezenet": lambda: imagenet("squeezenet1.1_ts13"),
}


def rows(
    pair: Pair, ratio: float, criterion: str, allocator: str, repairs: Sequence[str]
) -> list[dict[str, Any]]:
    """One plan, repaired in each way: accuracies and times."""
    begun = time.perf_counter()
    analysis = analyse(normalise(load_ir(pair.model)))
    options = CompileOptions(ratio=ratio, criterion=criterion, allocator=allocator, calibration="samples")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        source = Source(lambda: pair.samples, Path(folder))
        chosen = choose(analysis, find_groups(analysis, prune=options.prune), options, ratio, source)
        kept = kept_values(analysis, chosen.keep)
        remove(analysis, chosen.keep)
        choosing = time.perf_counter() - begun
        for method in repairs:
            begun = time.perf_counter()
            model = analysis.model.clone()
            if method != "none":
                dense = normalise(load_ir(pair.model))
                repair(dense, model, kept, pair.samples, Path(folder), Settings(method))
            repairing = time.perf_counter() - begun
            runner = OnnxRuntimeCpu().load(write(model, Path(folder) / "pruned.onnx"), threads=1)
            found.append(
                {
                    "ratio": ratio, "criterion": criterion, "allocator": allocator, "repair": method,
                    "removed": chosen.removed, "predicted_error": chosen.predicted, "advised": chosen.advised,
                    "accuracy": pair.accuracy(runner.run), "choose_s": choosing, "repair_s": repairing,
                }
            )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", default="digits_resnet,resnet20")
    parser.add_argument("--ratios", default="0.1,0.2,0.3,0.5")
    parser.add_argument("--combinations", default=",".join(":".join(c) for c in COMBINATIONS))
    parser.add_argument("--repairs", default=",".join(REPAIRS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results: dict[str, Any] = {}
    for name in given.pairs.split(","):
        pair = PAIRS[name]()
        dense = pair.accuracy(OnnxRuntimeCpu().load(pair.model, threads=1).run)
        results[name] = {"dense": dense, "rows": []}
        print(f"{name}: dense {dense:.4f}", flush=True)
        for ratio in map(float, given.ratios.split(",")):
            for combination in given.combinations.split(","):
                made = rows(pair, ratio, *combination.split(":"), given.repairs.split(","))
                results[name]["rows"] += made
                accuracies = "  ".join(f"{r['repair']} {r['accuracy']:.4f}" for r in made)
                print(f"  -{made[0]['removed']:5.1%}  {combination:20s} {accuracies}", flush=True)
                if given.json:
                    given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
