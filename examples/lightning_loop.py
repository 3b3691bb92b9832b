"""A module of Lightning: fit, prune, fit on with checkpoints, save, compile. Lines marked * are ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparsecc  # *
import sparsecc.torch  # *


def network() -> nn.Module:
    """The dense network: the code that a saved one is loaded into."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip


class Digits(lightning.LightningModule):
    """Trains whatever network it is given, dense or pruned."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Cross entropy."""
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def test_step(self, batch: Any, index: int) -> None:
        """The share of right answers."""
        x, y = batch
        self.log("accuracy", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.net.parameters(), 3e-3)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    """1,400 images of 8 by 8 digits to train on, and 397 to judge by."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target)
    train, test = TensorDataset(x[:1400], y[:1400]), TensorDataset(x[1400:], y[1400:])
    return DataLoader(train, 64, shuffle=True), DataLoader(test, 397)


def fitted(net: nn.Module, epochs: int, folder: Path) -> float:
    """Fit it, keep Lightning's checkpoint; the accuracy afterwards."""
    train, test = loaders()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, **quiet)
    module = Digits(net)
    trainer.fit(module, train)
    return float(trainer.test(module, test, verbose=False)[0]["accuracy"])


def main(folder: Path) -> None:
    """Fit 3 epochs, prune half of the work away, fit 2 more, and write weights and a bundle into `folder`."""
    lightning.seed_everything(0, verbose=False)
    net = network()
    print(f"dense {fitted(net, 3, folder / 'dense'):.3f}")
    images = next(iter(loaders()[1]))[0][:8]

    small = sparsecc.torch.prune(net, images, ratio=0.5)  # *
    print(f"trained on {fitted(small, 2, folder / 'small'):.3f}")

    sparsecc.torch.save(small, folder / "small.safetensors")  # *
    again = sparsecc.torch.load(folder / "small.safetensors", network())  # *
    checkpoint = next((folder / "small").rglob("*.ckpt"))
    state = torch.load(checkpoint, weights_only=True)["state_dict"]  # Lightning's own goes into it as well
    again.load_state_dict({name.removeprefix("net."): tensor for name, tensor in state.items()})
    result = sparsecc.compile(again, example_inputs=(images,), measure=False, output=folder / "bundle")  # *
    print(result.model)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
