"""Models of six kinds with samples, and what their users would look at, for `benchmarks/goals.py`.

Five are of the shared materials (SPARSECC_SHARED or ../shared), on photographs, rendered plates and text; a detector
and the sentence encoder are trained here in a few minutes and kept under out/benchmarks/.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy_pairs import DEVIATION, MEAN, ROOT, SHARED, cifar_batch
from benchmarks.goal_detector import DETECTOR, scenes, train

Feeds = Mapping[str, np.ndarray]
Outputs = Mapping[str, np.ndarray]
Decode = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Turns what a detector gives for an image into boxes (n, 4), centre and sides in pixels, and scores (n, classes)."""
LETTERS = np.array(list("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"))
ENCODER = ROOT / "out" / "benchmarks" / "sentence_encoder.onnx"


@dataclass(frozen=True)
class Case:
    """A model, samples that a compile is given, inputs that it never sees, and `same(dense, other)`: which share of
    what the dense model tells the other tells too, of the outputs for all unseen inputs."""

    file: Path
    given: Feeds
    unseen: Sequence[Feeds]
    same: Callable[[Sequence[Outputs], Sequence[Outputs]], float]
    measure: str


def _photos(size: int, count: int, start: int = 0, step: int = 1) -> np.ndarray:
    """(count, size, size, 3), uint8."""
    from PIL import Image

    found = []
    for file in sorted((SHARED / "imagenet1000").glob("*.jpg"))[start::step][:count]:
        with Image.open(file) as opened:
            found.append(np.asarray(opened.convert("RGB").resize((size, size))))
    return np.stack(found)


def _one_by_one(name: str, array: np.ndarray) -> list[Feeds]:
    return [{name: array[i : i + 1]} for i in range(len(array))]


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)


def _only(outputs: Outputs) -> np.ndarray:
    return next(iter(outputs.values()))


# Detectors with boxes and scores in one output


def detector() -> Case:
    """One of residual blocks with SiLU on shapes over photographs, trained here (`benchmarks/goal_detector.py`)."""
    if not DETECTOR.exists():
        train()
    images, unseen = scenes(48, seed=100_000)[0], scenes(200, seed=200_000)[0]
    alike = partial(_boxes_alike, lambda found: (found[:4].T, found[4:].T))
    return Case(DETECTOR, {"image": images}, _one_by_one("image", unseen), alike, "F1 of boxes")


def yolox() -> Case:
    """YOLOX-Nano on photographs."""
    images, file = _channels_first(_photos(416, 112, step=4)[..., ::-1]), SHARED / "det/yolox_nano.onnx"
    unseen = _one_by_one("images", images[48:])
    return Case(file, {"images": images[:48]}, unseen, partial(_boxes_alike, _on_grids), "F1 of boxes")


def _on_grids(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(boxes (n, 4): centre and sides in pixels, scores (n, classes)) of offsets on three grids."""
    cells = [(x, y, s) for s in (8, 16, 32) for y in range(416 // s) for x in range(416 // s)]
    x, y, stride = np.array(cells, np.float32).T
    centre = (found[:, :2] + np.stack([x, y], 1)) * stride[:, None]
    sides = np.exp(np.minimum(found[:, 2:4], 10)) * stride[:, None]
    return np.column_stack([centre, sides]), found[:, 4:5] * found[:, 5:]


def _boxes_alike(decode: Decode, dense: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    """F1 of detections against the dense model's: same class, IoU of a half or more."""
    hits, told, wanted = 0, 0, 0
    for one, two in zip(dense, other, strict=True):
        a, b = (_detections(*decode(_only(found)[0])) for found in (one, two))
        told, wanted, free = told + len(b), wanted + len(a), set(range(len(a)))
        for box in b:
            near = [i for i in free if a[i][5] == box[5] and _iou(a[i], box) >= 0.5]
            if near:
                free.remove(max(near, key=lambda i: _iou(a[i], box)))
                hits += 1
    return 2 * hits / max(told + wanted, 1)


def _detections(boxes: np.ndarray, scores: np.ndarray) -> list[np.ndarray]:
    """(x0, y0, x1, y1, score, class) from 0.25 on, overlapping ones of a class once."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    rows = np.column_stack([centre - half, centre + half, scores.max(1), scores.argmax(1)])
    kept: list[np.ndarray] = []
    for row in sorted(rows[rows[:, 4] >= 0.25], key=lambda r: -r[4]):
        if all(row[5] != k[5] or _iou(row, k) < 0.5 for k in kept):
            kept.append(row)
    return kept


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])
    both = float(np.prod(np.maximum(sides, 0)))
    return both / (float(np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2])) - both + 1e-9)


# A recogniser of text by CTC, and a detector of text like a segmentation


def recogniser() -> Case:
    """A plate recogniser on rendered plates."""
    images = _plates(296, seed=0)
    file = SHARED / "ocr/plate_rec.onnx"
    return Case(file, {"images": images[:96]}, _one_by_one("images", images[96:]), _lines_alike, "same lines")


def _plates(number: int, seed: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    draw, found = np.random.default_rng(seed), []
    colors = (((20, 60, 180), (255, 255, 255)), ((240, 200, 0), (0, 0, 0)), ((240, 240, 240), (20, 20, 20)))
    for _ in range(number):
        back, front = colors[draw.integers(3)]
        image = Image.new("RGB", (168, 48), back)
        text, font = (
            "".join(draw.choice(LETTERS, draw.integers(5, 8))),
            ImageFont.load_default(int(draw.integers(26, 36))),
        )
        ImageDraw.Draw(image).text(
            (int(draw.integers(2, 16)), int(draw.integers(0, 10))), text, font=font, fill=front
        )
        turned = image.rotate(float(draw.uniform(-4, 4)), fillcolor=back)
        found.append(np.asarray(turned)[..., ::-1] + draw.normal(0, draw.uniform(2, 25), (48, 168, 3)))
    return _channels_first((np.stack(found).clip(0, 255) / 255 - 0.588) / 0.193)


def _lines_alike(dense: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    return float(np.mean([_line(_only(a)) == _line(_only(b)) for a, b in zip(dense, other, strict=True)]))


def _line(output: np.ndarray) -> list[int]:
    """Labels without repeats and blanks (0)."""
    best = output[0].argmax(axis=1)
    return [int(c) for i, c in enumerate(best) if c and (i == 0 or c != best[i - 1])]


def text_detector() -> Case:
    """PP-OCRv3's text detector on photographs with text drawn into them."""
    images = _photos_with_text(80)
    file = SHARED / "ocr/ppocrv3_det_ch_opencv.onnx"
    return Case(file, {"x": images[:32]}, _one_by_one("x", images[32:]), _masks_alike, "IoU of masks")


def _photos_with_text(number: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    draw, found = np.random.default_rng(0), []
    for pixels in _photos(320, number, step=3):
        image = Image.fromarray(pixels)
        for _ in range(draw.integers(2, 6)):
            text, font = (
                "".join(draw.choice(LETTERS, draw.integers(4, 12))),
                ImageFont.load_default(int(draw.integers(14, 40))),
            )
            place, color = (
                (int(draw.integers(0, 200)), int(draw.integers(0, 280))),
                tuple(map(int, draw.integers(0, 256, 3))),
            )
            ImageDraw.Draw(image).text(place, text, font=font, fill=color)
        found.append(np.asarray(image))
    return _channels_first((np.stack(found) / np.float32(255) - MEAN) / DEVIATION)


def _masks_alike(dense: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    a, b = (np.stack([_only(one) for one in found]) > 0.3 for found in (dense, other))
    return float((a & b).sum() / max((a | b).sum(), 1))


# Classifiers


def depthwise() -> Case:
    """MobileNetV2 on photographs."""
    images = _channels_first(_photos(224, 296)) / 127.5 - 1
    file = SHARED / "imagenet1000/mobilenetv2_1.0_dy18.onnx"
    unseen = [{"image": images[i : i + 25]} for i in range(96, 296, 25)]
    return Case(file, {"image": images[:96]}, unseen, _classes_alike, "same class")


def residual() -> Case:
    """ResNet-56 on CIFAR-10."""
    given, test = cifar_batch(0)[0][:256], cifar_batch(50)[0]
    unseen = [{"image": test[i : i + 250]} for i in range(0, 1000, 250)]
    return Case(
        SHARED / "cifar10/resnet56_cifar10.onnx", {"image": given}, unseen, _classes_alike, "same class"
    )


def _classes_alike(dense: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    a, b = (np.concatenate([_only(one).argmax(axis=1) for one in found]) for found in (dense, other))
    return float(np.mean(a == b))


# A sentence encoder


def encoder() -> Case:
    """A transformer of four layers that tells which half belongs to which passage."""
    tokens = _halves()[:, 0]
    if not ENCODER.exists():
        _train(_halves()[:-384])
    unseen = [{"tokens": tokens[i : i + 32]} for i in range(len(tokens) - 256, len(tokens), 32)]
    return Case(ENCODER, {"tokens": tokens[-384:-256]}, unseen, _neighbours_alike, "same neighbour")


def _halves(length: int = 32) -> np.ndarray:
    """(passages, 2, length) int64: halves of passages, their words by number, the 3,999 most frequent ones."""
    import re
    from collections import Counter

    text = (SHARED / "lm" / "tiny_shakespeare.txt").read_text(errors="ignore").lower()
    words = re.findall(r"[a-z']+|[.!?]", text)
    known = {word: number + 1 for number, (word, _) in enumerate(Counter(words).most_common(3999))}
    ids = np.array([known.get(word, 0) for word in words], np.int64)
    return ids[: len(ids) // (2 * length) * 2 * length].reshape(-1, 2, length)


def _neighbours_alike(dense: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    def nearest(found: Sequence[Outputs]) -> np.ndarray:
        rows = np.concatenate([_only(one) for one in found])
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        near = rows @ rows.T
        np.fill_diagonal(near, -np.inf)
        return near.argmax(axis=1)

    return float(np.mean(nearest(dense) == nearest(other)))


def _train(halves: np.ndarray, steps: int = 120) -> None:
    """Contrastive: each first half is to be nearest to its own second half in a batch."""
    import torch
    from torch import Tensor, nn

    class Layer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            n, length, width = x.shape
            y = self.first(x)
            q, k, v = (
                f(y).reshape(n, length, 4, width // 4).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
            mixed = torch.softmax(q @ k.transpose(2, 3) * (width // 4) ** -0.5, -1) @ v
            x = x + self.o(mixed.transpose(1, 2).reshape(n, length, width))
            return x + self.down(nn.functional.gelu(self.up(self.second(x))))

    class Encoder(nn.Module):
        def __init__(self, width: int = 128) -> None:
            super().__init__()
            self.words, self.places = (
                nn.Embedding(4000, width),
                nn.Parameter(0.02 * torch.randn(halves.shape[2], width)),
            )
            self.layers, self.norm = nn.ModuleList(Layer(width) for _ in range(4)), nn.LayerNorm(width)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.words(tokens) + self.places
            for layer in self.layers:
                x = layer(x)
            return self.norm(x).mean(1)

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, draw = Encoder(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for step in range(steps):
        batch = torch.from_numpy(halves[draw.choice(len(halves), 32, replace=False)])
        a, b = (nn.functional.normalize(model(batch[:, side]), dim=1) for side in (0, 1))
        loss = nn.functional.cross_entropy(20 * a @ b.T, torch.arange(32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 40 == 0:
            print(f"encoder: step {step}, loss {loss.item():.3f}", flush=True)
    ENCODER.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model.eval(),
        (torch.from_numpy(halves[:2, 0]),),
        str(ENCODER),
        dynamo=True,
        dynamic_shapes={"tokens": {0: torch.export.Dim("n")}},
        external_data=False,
        input_names=["tokens"],
        output_names=["sentence"],
    )


CASES: Mapping[str, Callable[[], Case]] = {
    "detector": detector,
    "text recogniser": recogniser,
    "depthwise classifier": depthwise,
    "sentence encoder": encoder,
    "residual classifier": residual,
    "text detector": text_detector,
    "YOLOX-Nano": yolox,
}
