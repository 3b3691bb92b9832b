"""The CIFAR-10 training images of the shared materials, and the ResNets of them as torch modules."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.accuracy_pairs import SHARED, cifar_batch

FOLDER = SHARED / "cifar10"


def training_images() -> np.ndarray:
    """24,000 training images without their labels: 4,000 as they are and 20,000 from JPEG. (N, 3, 32, 32)."""
    from PIL import Image

    with zipfile.ZipFile(FOLDER / "cifar10_jpeg_train20k.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
    mean, deviation = np.array([0.485, 0.456, 0.406], "f4"), np.array([0.229, 0.224, 0.225], "f4")
    lossy = (np.stack(pictures).astype(np.float32) / 255 - mean) / deviation
    exact = [cifar_batch(number)[0] for number in range(4)]
    return np.ascontiguousarray(np.concatenate([*exact, lossy.transpose(0, 3, 1, 2)]))


class Block(nn.Module):
    """Two convolutions beside a shortcut that halves the image and pads the channels with zeros."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.padding = (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        found = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(found + x)


class ResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for stage in (1, 2, 3):
            first = Block(widths[stage - 1], widths[stage])
            rest = [Block(widths[stage], widths[stage]) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        result: Tensor = self.linear(x.mean((2, 3)))
        return result


def module(name: str) -> ResNet:
    """ "resnet20" or "resnet56" with the weights of its `.th` file, in eval mode."""
    file = next(FOLDER.glob(f"{name}-*.th"))
    state = torch.load(file, weights_only=True, map_location="cpu")
    state = state.get("state_dict", state)
    made = ResNet(int(name.removeprefix("resnet")))
    made.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return made.eval()
