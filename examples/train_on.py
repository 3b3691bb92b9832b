"""A plain training loop that prunes: train, prune, train on, export, compile. Lines marked * are ours."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import sparsecc  # *
import sparsecc.torch  # *


def data() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 by 8 digits, and their labels."""
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, epochs: int) -> None:
    """Cross entropy over shuffled batches of 64."""
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of right answers."""
    return float((model.eval()(x).argmax(1) == y).float().mean())


def main(folder: Path) -> None:
    """Train 6 epochs, prune half of the work away, train 2 more, and write a bundle into `folder`."""
    torch.manual_seed(0)
    x, y = data()
    model: nn.Module = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    train(model, optimizer, x[:1400], y[:1400], 6)
    print(f"dense {accuracy(model, x[1400:], y[1400:]):.3f}")

    small = sparsecc.torch.prune(model, x[:2], ratio=0.5)  # *
    sparsecc.torch.prune_optimizer(optimizer, model, small)  # *
    print(f"pruned {accuracy(small, x[1400:], y[1400:]):.3f}")
    train(small, optimizer, x[:1400], y[:1400], 2)
    print(f"trained on {accuracy(small, x[1400:], y[1400:]):.3f}")

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "digits.onnx"
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(small.eval(), (x[:2],), file, dynamo=True, dynamic_shapes=(batch,), verbose=False)
    result = sparsecc.compile(file, target="onnxruntime", ratio=0.0, output=folder / "bundle")  # *
    print(f"compiled {file.stat().st_size} bytes into {result.bundle}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
