"""Is what a compile tells of its result true of inputs that it was never given?

    python benchmarks/told_quality.py [--pairs resnet20,...] [--seconds 240] [--json FILE]

Besides the pairs, models of the shared materials on photographs in the size and range that they were made for. Of the
samples the first five eighths are given as `--calib`; the rest, and what a pair's metric is measured on, no compile
sees. Every model is compiled at ratios 0.1, 0.3 and 0.5, to int8, and both. A row is right where the quality on the
unseen inputs is within 2 dB of what the report told, or within its interval. Rows are stored as they come and not made
again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsecc
from benchmarks.accuracy_pairs import PAIRS, SHARED
from sparsecc.errors import SparseccError
from sparsecc.graph.analysis import analyse
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loss.parts import parts_of_outputs
from sparsecc.loss.quality import told
from sparsecc.runtime.session import open_session
from sparsecc.shapes.dynamic_dims import takes_any_batch

STORE = Path(__file__).resolve().parents[1] / "out" / "benchmarks" / "told_quality.json"
JUDGED = (
    "digits_resnet",
    "digits_vit",
    "digits_lstm",
    "resnet20",
    "squeezenet",
    "resnet56",
    "mobilenetv2",
    "stories",
)
Feeds = Mapping[str, np.ndarray]
MOST = 8
"""Batches of a metric's inputs that are looked at."""
PHOTOS = 128
"""Photographs to a model of the materials."""


@dataclass(frozen=True)
class Photos:
    """A model of photographs: its file, its input, (height, width), (pixel - mean) / deviation."""

    file: str
    name: str
    size: tuple[int, int]
    mean: float = 0.0
    deviation: float = 255.0
    layout: str = "NCHW"

    def inputs(self) -> np.ndarray:
        """(number, *shape of the input), float32."""
        from PIL import Image

        found = []
        for file in sorted((SHARED / "imagenet1000").glob("*.jpg"))[::3][:PHOTOS]:
            with Image.open(file) as opened:
                image = opened.convert("L" if self.layout == "gray" else "RGB").resize(self.size[::-1])
            pixels = (np.asarray(image, dtype=np.float32) - self.mean) / self.deviation
            found.append(pixels[None] if self.layout == "gray" else pixels)
        array = np.stack(found)
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if self.layout == "NCHW" else array


MATERIALS: Mapping[str, Photos] = {
    "fsanet": Photos("face/fsanet-1x1.onnx", "input", (64, 64), 127.5, 127.5),
    "iris": Photos("face/mp_iris_landmark.onnx", "input_1", (64, 64), layout="NHWC"),
    "hyperlpr": Photos("misc/hyperlpr_cls_96x.onnx", "data", (96, 96), 127.5, 127.5),
    "resnet8": Photos("cifar10/mlperf_resnet8_tf2onnx17.onnx", "input_1", (32, 32), 0.0, 1.0, "NHWC"),
    "plate": Photos("ocr/plate_rec.onnx", "images", (48, 168), 127.5, 127.5),
    "super_resolution": Photos("sr/super_resolution_224_caffe2.onnx", "input", (224, 224), layout="gray"),
    "ultraface": Photos("face/ultraface-slim-320.onnx", "input", (240, 320), 127.0, 128.0),
    "sinet": Photos("seg/sinet_softmax.onnx", "data", (320, 320), 110.0, 65.0),
    "yunet": Photos("face/yunet_n_320_320.onnx", "input", (320, 320), 0.0, 1.0),
}
"""Models of the shared materials that have no labelled data, smallest work first."""
HOW: Mapping[str, Mapping[str, Any]] = {
    "0.1": {"ratio": 0.1},
    "0.3": {"ratio": 0.3},
    "0.5": {"ratio": 0.5},
    "int8": {"ratio": 0.0, "quantize": "int8"},
    "0.3 + int8": {"ratio": 0.3, "quantize": "int8"},
}
CLOSE = 2.0
"""Decibels between what was told and what is true that count as right."""


def row(name: str, how: str) -> dict[str, Any]:
    """One compile: the told quality with its interval, and that on inputs never given."""
    path, every, unseen = samples_of(name)
    number = len(next(iter(every.values())))
    step = 32 if takes_any_batch(load_ir(path)) else 1
    given = {n: array[: number * 5 // 8] for n, array in every.items()}
    left = range(number * 5 // 8, number, step)
    unseen = [*({n: array[i : i + step] for n, array in every.items()} for i in left), *unseen]
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/calib.npz", **given)
        options: dict[str, Any] = {"calib": f"{folder}/calib.npz", "measure": False, **HOW[how]}
        try:
            made = sparsecc.compile(path, output=f"{folder}/out", **options)
        except SparseccError as e:
            return {"pair": name, "how": how, "error": str(e)}
        dense, small = (open_session(file, threads=1) for file in (path, Path(folder, "out/model.onnx")))
        parts = parts_of_outputs(analyse(normalise(load_ir(path))))
        facts = made.report["fidelity"]
        true = told([dense.run(one) for one in unseen], [small.run(one) for one in unseen], parts)
    return {
        "pair": name,
        "how": how,
        "samples": facts["samples"],
        "told_db": facts["quality_db"],
        "interval_db": facts.get("interval_db"),
        "said": made.report["verdict"]["judgement"],
        "unseen_db": true["quality_db"],
        "unseen_interval_db": true.get("interval_db"),
    }


def samples_of(name: str) -> tuple[Path, dict[str, np.ndarray], list[Feeds]]:
    """A model, all its samples by input, and batches of what its metric is measured on."""
    if name in MATERIALS:
        photos = MATERIALS[name]
        return SHARED / photos.file, {photos.name: photos.inputs()}, []
    pair, unseen = PAIRS[name](), list[Feeds]()
    dense, batches = open_session(pair.model, threads=1), pair.samples.batches

    def run(feeds: Feeds) -> Feeds:
        unseen.append(feeds)
        return dense.run(feeds)

    pair.accuracy(run)
    every = {n: np.concatenate([batch[n] for batch in batches]) for n in batches[0]}
    return pair.model, every, unseen[:MOST]


def is_right(found: Mapping[str, Any]) -> bool:
    """Whether the told quality holds for unseen inputs."""
    low, high = found["interval_db"] or (np.inf, -np.inf)
    return abs(found["told_db"] - found["unseen_db"]) <= CLOSE or low <= found["unseen_db"] <= high


def main() -> None:
    """Make what is missing, and show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", default=",".join((*JUDGED, *MATERIALS)))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--json", type=Path, default=STORE)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.json.read_text()) if given.json.exists() else []
    done, begun = {(one["pair"], one["how"]) for one in rows}, time.monotonic()
    given.json.parent.mkdir(parents=True, exist_ok=True)
    for pair in given.pairs.split(","):
        for how in HOW:
            if (pair, how) in done or time.monotonic() - begun > given.seconds:
                continue
            rows.append(row(pair, how))
            given.json.write_text(json.dumps(rows, indent=1))
            print(rows[-1], flush=True)
    known = [one for one in rows if "told_db" in one]
    wrong = [f"{one['pair']} {one['how']}" for one in known if not is_right(one)]
    print(
        f"{len(known) - len(wrong)} of {len(known)} told within {CLOSE:g} dB or their interval; others: {wrong}"
    )


if __name__ == "__main__":
    main()
