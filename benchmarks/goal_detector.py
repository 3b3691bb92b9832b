"""A detector for `benchmarks/goals.py`, trained here in minutes: boxes and scores in one output, as YOLOv8 has them.

    python benchmarks/goal_detector.py

Squares, disks and crosses on crops of the shared photographs; residual blocks with SiLU, two branches on an even grid
of cells. The output is (n, 7, cells): centre and sides of a box in pixels, then a score from 0 to 1 for each class. It
is kept under out/benchmarks/.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy_pairs import ROOT, SHARED
from benchmarks.detector import shape_of

DETECTOR = ROOT / "out" / "benchmarks" / "goal_detector.onnx"
SIDE, STRIDE, CLASSES = 128, 8, 3
CELLS = SIDE // STRIDE


def scenes(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(images (n, 3, SIDE, SIDE) from 0 to 1, wanted (n, 4 + CLASSES, CELLS, CELLS)): one to four shapes, each told by
    the cell of its centre."""
    from PIL import Image

    draw = np.random.default_rng(seed)
    files = sorted((SHARED / "imagenet1000").glob("*.jpg"))
    images = np.empty((number, 3, SIDE, SIDE), np.float32)
    wanted = np.zeros((number, 4 + CLASSES, CELLS, CELLS), np.float32)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for image, target in zip(images, wanted, strict=True):
        with Image.open(files[draw.integers(len(files))]) as opened:
            photo = np.asarray(opened.convert("RGB").resize((160, 160)), np.float32) / 255
        top, left = draw.integers(0, 160 - SIDE, 2)
        image[:] = photo[top : top + SIDE, left : left + SIDE].transpose(2, 0, 1)
        for _ in range(draw.integers(1, 5)):
            y, x, size = *draw.uniform(14, SIDE - 14, 2), draw.uniform(7, 24)
            kind, color = draw.integers(CLASSES), draw.uniform(0, 1, (3, 1))
            inside = shape_of(kind, rows - y, columns - x, size)
            image[:, inside] = 0.2 * image[:, inside] + 0.8 * color
            cell = int(y / STRIDE), int(x / STRIDE)
            target[:, cell[0], cell[1]] = x, y, 2 * size, 2 * size, *np.eye(CLASSES)[kind]
    return images, wanted


def train(steps: int = 500, batch: int = 12) -> None:
    """Squared error of boxes where there are any, binary cross-entropy of scores; one cycle of the rate."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    class Unit(nn.Sequential):
        def __init__(self, before: int, after: int, stride: int = 1) -> None:
            convolution = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            super().__init__(convolution, nn.BatchNorm2d(after), nn.SiLU())

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.second = Unit(width, width), Unit(width, width)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(self.first(x))

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stem = [Unit(3, 16, 2), Unit(16, 32, 2), Block(32), Unit(32, 64, 2), Block(64), Block(64)]
            self.stem = nn.Sequential(*stem)
            self.box, self.score = (
                nn.Sequential(Unit(64, 64), Unit(64, 48), nn.Conv2d(48, outputs, 1))
                for outputs in (4, CLASSES)
            )
            nn.init.constant_(self.score[-1].bias, -4.0)
            y, x = np.mgrid[:CELLS, :CELLS] * STRIDE + STRIDE / 2
            self.register_buffer("centres", torch.tensor(np.stack([x, y])[None], dtype=torch.float32))

        def forward(self, image: Tensor) -> Tensor:
            features = self.stem(image)
            box, score = self.box(features), torch.sigmoid(self.score(features))
            centre, sides = self.centres + STRIDE * box[:, :2], STRIDE * torch.exp(box[:, 2:])
            return torch.cat([centre, sides, score], 1).flatten(2)

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Detector()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        images, wanted = map(torch.from_numpy, scenes(batch, seed=1 + step))
        found, wanted = model(images), wanted.flatten(2)
        there = wanted[:, 4:].amax(1) > 0
        boxes = functional.smooth_l1_loss(
            found[:, :4].transpose(1, 2)[there] / STRIDE, wanted[:, :4].transpose(1, 2)[there] / STRIDE
        )
        scores = functional.binary_cross_entropy(found[:, 4:], wanted[:, 4:], reduction="sum") / there.sum()
        optimizer.zero_grad()
        (boxes + scores).backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"detector: step {step}, boxes {boxes.item():.3f}, scores {scores.item():.3f}", flush=True)
    DETECTOR.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model.eval(),
        (torch.from_numpy(scenes(1, 0)[0]),),
        str(DETECTOR),
        dynamo=False,
        opset_version=18,
        input_names=["image"],
        output_names=["found"],
    )


if __name__ == "__main__":
    train()
