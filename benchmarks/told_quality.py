"""Is what a compile tells of its result true of inputs that it was never given?

    python benchmarks/told_quality.py [--pairs resnet20,...] [--how 0.3,int8] [--splits 0,1] [--seconds 240] [--json F]

Besides the pairs, models of the shared materials on photographs, text and digits in the size and range that they were
made for. Of the samples, shuffled by the split's number, five eighths are given as `--calib`; the rest, and what a
pair's metric is measured on, no compile sees. Every model is compiled at ratios 0.1, 0.3 and 0.5, to int8, and both. A
row is right where the quality on the unseen inputs is within 2 dB of what the report told, or within its interval; a
warning, where the same thresholds say the same of the unseen inputs. Rows are stored as they come and not made again,
but for errors.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsecc
from benchmarks.accuracy_pairs import PAIRS, SHARED, Pair, in_frames, told_by_itself
from sparsecc.errors import SparseccError
from sparsecc.graph.analysis import analyse
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loss.answers import questions
from sparsecc.loss.judge import use_of
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
    "stories",
    "nanodet",
    "mobilenetv2",
)
Feeds = Mapping[str, np.ndarray]
MOST = 8
"""Batches of a metric's inputs that are looked at."""
PHOTOS = 128
"""Samples for a model of the materials."""
STEP = 32
"""Samples of a batch, where a model takes any."""


@dataclass(frozen=True)
class Photos:
    """A model of photographs: its file, the (height, width) of each input, (pixel - mean) / deviation.

    With `text`, words are written over every photograph, as readers of text would find them. An input after the first
    shows the middle of the same photograph.
    """

    file: str
    sizes: Mapping[str, tuple[int, int]]
    mean: float = 0.0
    deviation: float = 255.0
    layout: str = "NCHW"
    dtype: str = "f4"
    number: int = PHOTOS
    text: bool = False

    def inputs(self) -> dict[str, np.ndarray]:
        """(number, *shape of the input) by the input's name."""
        from PIL import Image

        found: dict[str, list[np.ndarray]] = {name: [] for name in self.sizes}
        files = sorted((SHARED / "imagenet1000").glob("*.jpg"))
        for at, file in enumerate(files[:: len(files) // self.number][: self.number]):
            with Image.open(file) as opened:
                image = opened.convert("L" if self.layout == "gray" else "RGB")
            if self.text:
                _write(image, at)
            for name, size in self.sizes.items():
                pixels = np.asarray(image.resize(size[::-1]), dtype=np.float32)
                scaled = ((pixels - self.mean) / self.deviation).astype(self.dtype)
                found[name].append(scaled[None] if self.layout == "gray" else scaled)
                image = image.crop((image.width // 4, image.height // 4, *_end(image.size)))
        stacked = {name: np.stack(arrays) for name, arrays in found.items()}
        if self.layout != "NCHW":
            return stacked
        return {name: np.ascontiguousarray(one.transpose(0, 3, 1, 2)) for name, one in stacked.items()}


def _end(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] * 3 // 4, size[1] * 3 // 4


def _write(image: Any, seed: int) -> None:
    """A few words in the image, drawn by seed."""
    from PIL import ImageDraw, ImageFont

    generator, draw = np.random.default_rng(seed), ImageDraw.Draw(image)
    words = (SHARED / "lm" / "grimm.txt").read_text().split()
    for _ in range(4):
        place, size = generator.integers(0, image.width * 2 // 3, 2), int(generator.integers(16, 48))
        word = words[int(generator.integers(len(words)))]
        colour = tuple(int(one) for one in generator.integers(0, 256, 3))
        draw.text((int(place[0]), int(place[1])), word, fill=colour, font=ImageFont.load_default(size))


@dataclass(frozen=True)
class Texts:
    """A model of text or bytes: its file, its input, how long one sample is, what its numbers are."""

    file: str
    name: str
    length: int
    read: Callable[[Path, int, int], np.ndarray]
    states: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    number: int = PHOTOS

    def inputs(self) -> dict[str, np.ndarray]:
        """(number, length) of the input, and for each sample zeros of the states that the model begins with."""
        found = {self.name: self.read(SHARED / self.file, self.number, self.length)}
        return found | {name: np.zeros((self.number, *shape), "f4") for name, shape in self.states.items()}


def _windows(ids: np.ndarray, number: int, length: int) -> np.ndarray:
    """(number, length) spread over a long text."""
    return np.stack([ids[at : at + length] for at in np.linspace(0, len(ids) - length, number).astype(int)])


def characters(_: Path, number: int, length: int) -> np.ndarray:
    """Characters of a play by their place among all that it has, int64."""
    text = (SHARED / "lm" / "tiny_shakespeare.txt").read_text()
    places = {character: at for at, character in enumerate(sorted(set(text)))}
    return _windows(np.array([places[character] for character in text]), number, length)


def raw(_: Path, number: int, length: int) -> np.ndarray:
    """Bytes of fairy tales, uint8."""
    return _windows(np.frombuffer((SHARED / "lm" / "grimm.txt").read_bytes(), np.uint8), number, length)


def written(model: Path, number: int, length: int) -> np.ndarray:
    """What the model itself writes, int64."""
    return told_by_itself(open_session(model, threads=1).run, number, length)


def files(_: Path, number: int, length: int) -> np.ndarray:
    """Beginnings and ends of files of many kinds, int32; 256 where a file is shorter."""
    root, kinds = Path(__file__).resolve().parents[1], dict[str, list[Path]]()
    for path in (*sorted(root.glob("[a-z]*/**/*")), *sorted(SHARED.glob("**/*"))):
        if path.is_file() and path.stat().st_size and "out" not in path.parts:
            kinds.setdefault(path.suffix, []).append(path)
    chosen = [path for round_ in zip_longest(*kinds.values()) for path in round_ if path is not None]
    found = np.full((number, length), 256, np.int32)
    for row_, path in zip(found, chosen[:number], strict=True):
        data = np.frombuffer(path.read_bytes(), np.uint8)
        half = min(length // 2, len(data))
        row_[:half], row_[length - half :] = data[:half], data[len(data) - half :]
    return found


@dataclass(frozen=True)
class Digits:
    """A model of handwritten digits of 28 x 28: its file, its input and that's shape, (pixel - mean) / deviation."""

    file: str
    name: str
    shape: tuple[int, ...]
    mean: float = 0.0
    deviation: float = 1.0

    def inputs(self) -> dict[str, np.ndarray]:
        """The digits of the reference models, 20 x 20 in a black frame. (PHOTOS, *shape)."""
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
        frames = in_frames(np.load(importlib.import_module("digits").DATA)["test_images"][:PHOTOS])
        return {self.name: ((frames - self.mean) / self.deviation).reshape(-1, *self.shape)}


def _photos(file: str, name: str, side: int | tuple[int, int], *scale: float, **more: Any) -> Photos:
    size = (side, side) if isinstance(side, int) else side
    return Photos(file, {name: size}, *scale, **more)


NHWC = {"layout": "NHWC"}
MATERIALS: Mapping[str, Photos | Texts | Digits] = {
    "fsanet": _photos("face/fsanet-1x1.onnx", "input", 64, 127.5, 127.5),
    "iris": _photos("face/mp_iris_landmark.onnx", "input_1", 64, **NHWC),
    "hyperlpr": _photos("misc/hyperlpr_cls_96x.onnx", "data", 96, 127.5, 127.5),
    "resnet8": _photos("cifar10/mlperf_resnet8_tf2onnx17.onnx", "input_1", 32, 0.0, 1.0, **NHWC),
    "plate": _photos("ocr/plate_rec.onnx", "images", (48, 168), 127.5, 127.5),
    "burn_mnist": Digits("mnist/burn_mnist.onnx", "input.1", (1, 28, 28), 0.1307, 0.3081),
    "ort_mnist": Digits("mnist/ort_mnist_original.onnx", "input1", (784,)),
    "onnx2c_mnist": Digits("mnist/onnx2c_pytorch.onnx", "network_input", (784,), 0.1307, 0.3081),
    "char_lstm": Texts(
        "lm/export/charrnn_lstm_ts13.onnx", "ids", 48, characters, {"h": (2, 1, 128), "c": (2, 1, 128)}
    ),
    "byte_lstm": Texts("lm/tract_byte_sb_bidi_lstm.onnx", "input", 64, raw),
    "babyllama": Texts("lm/export/babyllama105_dy18.onnx", "ids", 48, written, number=32),
    "magika": Texts("misc/magika_standard_v2_0.onnx", "bytes", 4096, files, number=32),
    "fsanet_var": _photos("face/fsanet-var.onnx", "input", 64, 127.5, 127.5),
    "text_angle": _photos("ocr/ppocr_cls.onnx", "x", (48, 192), 127.5, 127.5, text=True),
    "espcn": _photos("sr/espcn_subpixel_float.onnx", "input", 4),
    "dncnn": _photos("sr/dncnn25_ts13.onnx", "x", 48, layout="gray", number=64),
    "super_resolution": _photos(
        "sr/super_resolution_224_caffe2.onnx", "input", 224, layout="gray", number=32
    ),
    "ultraface": _photos("face/ultraface-slim-320.onnx", "input", (240, 320), 127.0, 128.0),
    "ultraface_rfb": _photos("face/ultraface-RFB-320.onnx", "input", (240, 320), 127.0, 128.0, number=64),
    "sinet": _photos("seg/sinet_softmax.onnx", "data", 320, 110.0, 65.0, number=32),
    "yunet": _photos("face/yunet_n_320_320.onnx", "input", 320, 0.0, 1.0),
    "palm": _photos("pose/mp_palm_detection_lite.onnx", "input_1", 192, number=64, **NHWC),
    "hand": _photos("pose/mp_hand_landmark_lite.onnx", "input_1", 224, number=32, **NHWC),
    "prisma": _photos("seg/prisma_nchw.onnx", "input_3", 256, number=32),
    "tracker": Photos(
        "det/vitTracker.onnx", {"search": (256, 256), "template": (128, 128)}, 120, 57, number=64
    ),
    "text": _photos("ocr/ch_mobile_v1.1_det.onnx", "image", 320, 120.0, 57.0, number=32, text=True),
    "text_v3": _photos("ocr/ppocrv3_det_ch_opencv.onnx", "x", 320, 120.0, 57.0, number=32, text=True),
    "mobilenet_v1": _photos(
        "imagenet1000/mobilenet_v1_0.75_192_quant_tf2onnx17.onnx",
        "input",
        192,
        0.0,
        1.0,
        dtype="u1",
        number=32,
        **NHWC,
    ),
    "squeezenet_fp16": _photos(
        "imagenet1000/squeezenet_winml_fp16.onnx", "data_0", 224, 120.0, 57.0, dtype="f2", number=32
    ),
    "yolox": _photos("det/yolox_nano.onnx", "images", 416, 0.0, 1.0, number=32),
}
"""Models of the shared materials that have no labelled data, smallest work first."""
HOW: Mapping[str, Mapping[str, Any]] = {
    "0.1": {"ratio": 0.1},
    "0.3": {"ratio": 0.3},
    "0.5": {"ratio": 0.5},
    "int8": {"ratio": 0.0, "quantize": "int8"},
    "0.3 + int8": {"ratio": 0.3, "quantize": "int8"},
}
CLOSE, EQUAL = 2.0, 100.0
"""Decibels between what was told and what is true that count as right, and from which on nothing differs."""


def row(name: str, how: str, split: int) -> dict[str, Any]:
    """One compile: what is told of it, with its interval, and the same of inputs that were never given."""
    path, given, unseen = samples_of(name, split)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"calib": given, "measure": False, "next_steps": False, **HOW[how]}
        try:
            made = sparsecc.compile(path, output=f"{folder}/out", **options)
        except SparseccError as e:
            return {"pair": name, "how": how, "split": split, "error": str(e)}
        dense, small = (open_session(file, threads=1) for file in (path, Path(folder, "out/model.onnx")))
        analysis = analyse(normalise(load_ir(path)))
        parts = parts_of_outputs(analysis)
        found = [[session.run(one) for one in unseen] for session in (dense, small)]
        true = told(*found, parts, questions(analysis.model, parts))
    facts = made.report["fidelity"]
    return {
        "pair": name,
        "how": how,
        "split": split,
        "samples": facts["samples"],
        **(_of_answers(facts, true) if "quality_db" not in facts else _of_decibels(facts, true)),
        "said": made.report["verdict"]["judgement"],
        "unseen_use": use_of(true),
    }


def _of_decibels(facts: Mapping[str, Any], true: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "told_db": facts["quality_db"],
        "interval_db": facts.get("interval_db"),
        "unseen_db": true["quality_db"],
        "unseen_interval_db": true.get("interval_db"),
    }


def _of_answers(facts: Mapping[str, Any], true: Mapping[str, Any]) -> dict[str, Any]:
    """Of outputs that are no floats, whose answers alone are known."""
    worst = min(facts["agreement"], key=lambda one: one["share"])
    same = next(one for one in true["agreement"] if one["part"] == worst["part"])
    return {"told_share": worst["share"], "interval": worst["interval"], "unseen_share": same["share"]}


def samples_of(name: str, split: int) -> tuple[Path, list[Feeds], list[Feeds]]:
    """A model, batches that a compile is given, and others, with those that its metric is measured on."""
    if name in MATERIALS:
        model, every = SHARED / MATERIALS[name].file, MATERIALS[name].inputs()
        measured = []
    else:
        pair = PAIRS[name]()
        model, (every, measured) = pair.model, _of_pair(pair)
    number = len(next(iter(every.values())))
    order = np.random.default_rng(split).permutation(number)  # files lie sorted by class
    every = {n: array[order] for n, array in every.items()}
    step = STEP if takes_any_batch(load_ir(model)) else 1
    states = getattr(MATERIALS.get(name), "states", {})

    def batches(begin: int, end: int) -> list[Feeds]:
        cut = [
            {n: array[at : min(at + step, end)] for n, array in every.items()}
            for at in range(begin, end, step)
        ]
        return [{n: array[0] if n in states else array for n, array in batch.items()} for batch in cut]

    return model, batches(0, number * 5 // 8), [*batches(number * 5 // 8, number), *measured]


def _of_pair(pair: Pair) -> tuple[dict[str, np.ndarray], list[Feeds]]:
    """All samples of a pair, and batches of what its metric is measured on."""
    measured = list[Feeds]()
    dense, batches = open_session(pair.model, threads=1), pair.samples.batches

    def run(feeds: Feeds) -> Feeds:
        measured.append(feeds)
        return dense.run(feeds)

    pair.accuracy(run)
    return {n: np.concatenate([batch[n] for batch in batches]) for n in batches[0]}, measured[:MOST]


def is_right(found: Mapping[str, Any]) -> bool:
    """Whether the told quality, or the told share of answers, holds for unseen inputs."""
    if "told_share" in found:
        return bool(found["interval"][0] <= found["unseen_share"] <= found["interval"][1])
    low, high = found["interval_db"] or (np.inf, -np.inf)
    told_db, unseen_db = (min(found[key], EQUAL) for key in ("told_db", "unseen_db"))
    return abs(told_db - unseen_db) <= CLOSE or low <= unseen_db <= high


def main() -> None:
    """Make what is missing, and show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", default=",".join((*JUDGED, *MATERIALS)))
    parser.add_argument("--how", default=",".join(HOW))
    parser.add_argument("--splits", default="0")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--json", type=Path, default=STORE)
    given = parser.parse_args()
    stored: list[dict[str, Any]] = json.loads(given.json.read_text()) if given.json.exists() else []
    rows = [one for one in stored if "error" not in one]
    done, begun = {(one["pair"], one["how"], one.get("split", 0)) for one in rows}, time.monotonic()
    given.json.parent.mkdir(parents=True, exist_ok=True)
    points = product(map(int, given.splits.split(",")), given.pairs.split(","), given.how.split(","))
    for split, pair, how in points:
        if (pair, how, split) in done or time.monotonic() - begun > given.seconds:
            continue
        rows.append(row(pair, how, split))
        given.json.write_text(json.dumps(rows, indent=1))
        print(rows[-1], flush=True)
    print(summary(rows))


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many rows were told right, and how many warnings: against what the same thresholds say of unseen inputs."""
    known = [one for one in rows if "error" not in one]
    wrong = [_name(one) for one in known if not is_right(one)]
    judged = [one for one in known if "unseen_use" in one]
    unwarned = [_name(one) for one in judged if (one["said"], one["unseen_use"]) == ("usable", "useless")]
    false = [_name(one) for one in judged if (one["said"], one["unseen_use"]) == ("useless", "usable")]
    refused = [f"{_name(one)}: {one['error']}" for one in rows if "error" in one]
    return "\n".join(
        (
            f"{len(known) - len(wrong)} of {len(known)}, of {len({one['pair'] for one in known})} models, told within "
            f"{CLOSE:g} dB or their interval; others: {wrong}",
            f"of {len(judged)}, useless and called usable: {unwarned}; usable and called useless: {false}",
            *refused,
        )
    )


def _name(found: Mapping[str, Any]) -> str:
    return f"{found['pair']} {found['how']}"


if __name__ == "__main__":
    main()
