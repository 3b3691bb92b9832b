"""A vision transformer with the Trainer of transformers: prune, train on, save, compile. Lines marked * are ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import sparsecc  # *
import sparsecc.torch  # *

CONFIG = ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    image_size=8, patch_size=2, num_channels=1, num_labels=10,
)  # fmt: skip


def data() -> tuple[TensorDataset, TensorDataset]:
    """1,000 images of 8 by 8 digits to train on, and 300 to judge by."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target)
    return TensorDataset(x[:1000], y[:1000]), TensorDataset(x[1000:1300], y[1000:1300])


def collate(rows: list[tuple[Any, Any]]) -> dict[str, Any]:
    """What the model's forward takes."""
    return {"pixel_values": torch.stack([x for x, _ in rows]), "labels": torch.stack([y for _, y in rows])}


def accuracy(predicted: Any) -> dict[str, float]:
    """The share of right answers."""
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def trained(model: Any, folder: Path, epochs: int) -> float:
    """Train with the library's own loop; the accuracy afterwards."""
    settings = TrainingArguments(
        str(folder), num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=2e-3, seed=0,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    train, test = data()
    trainer = Trainer(
        model, settings, collate, train_dataset=train, eval_dataset=test, compute_metrics=accuracy
    )
    trainer.train()
    return float(trainer.evaluate()["eval_accuracy"])


def main(folder: Path) -> None:
    """Train, remove 40 % of the work, train on, and write weights and a bundle into `folder`."""
    torch.manual_seed(0)
    model = ViTForImageClassification(CONFIG)
    print(f"dense {trained(model, folder / 'runs', 8):.3f}")
    images = torch.stack([x for x, _ in data()[0]][:8])

    small = sparsecc.torch.prune(model, images, ratio=0.4)  # *
    print(f"trained on {trained(small, folder / 'runs', 3):.3f}")

    sparsecc.torch.save(small, folder / "small.safetensors")  # *
    again = sparsecc.torch.load(folder / "small.safetensors", ViTForImageClassification(CONFIG))  # *
    result = sparsecc.compile(again, example_inputs=(images,), measure=False, output=folder / "bundle")  # *
    print(result.model)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
