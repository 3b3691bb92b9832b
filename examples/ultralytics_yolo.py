"""A YOLO of ultralytics, built from its YAML: train, prune, train on with its trainer, save, export, compile.

Lines marked * are ours. ultralytics is no part of sparsecc and is licensed under the AGPL-3.0: read its terms before
you ship what you make with it. It wants torchvision, so give it an environment of its own:

    pip install 'sparsecc[torch]' ultralytics
    python ultralytics_yolo.py yolo11n.yaml out/
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

import sparsecc  # *
import sparsecc.torch  # *

SIZE = 64
SETTINGS = {
    "imgsz": SIZE, "batch": 8, "device": "cpu", "workers": 0, "seed": 0, "amp": False, "plots": False,
    "verbose": False, "optimizer": "AdamW", "lr0": 2e-3, "warmup_epochs": 0, "mosaic": 0.0,
}  # fmt: skip


def data(folder: Path, number: int = 48) -> Path:
    """Grey images with one bright square or dark disc each, in the folders that ultralytics reads; its YAML file."""
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        for n in range(number if part == "train" else number // 3):
            pixels, which = draw.normal(128, 12, (SIZE, SIZE, 3)), int(draw.integers(2))
            half, (x, y) = int(draw.integers(8, 14)), draw.integers(16, SIZE - 16, 2)
            down, across = np.mgrid[:SIZE, :SIZE]
            square = (abs(across - x) <= half) & (abs(down - y) <= half)
            disc = (across - x) ** 2 + (down - y) ** 2 <= half**2
            pixels[disc if which else square] = 20 if which else 235
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / part / f"{n}.png")
            box = f"{which} {x / SIZE:.4f} {y / SIZE:.4f} {2 * half / SIZE:.4f} {2 * half / SIZE:.4f}\n"
            (folder / "labels" / part / f"{n}.txt").write_text(box)
    file = folder / "shapes.yaml"
    file.write_text(
        f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\nnames: [square, disc]\n"
    )
    return file


def network(file: str) -> Any:
    """The dense network of a YAML, for two classes: the code that a saved one is loaded into."""
    return DetectionModel(file, nc=2, verbose=False)


def trained(model: Any, file: Path, folder: Path, epochs: int) -> tuple[Any, float]:
    """Train a module as it is with ultralytics' own trainer; the weights it kept, and their mAP at 50 %."""

    class Trainer(DetectionTrainer):
        """Its trainer builds the network of the YAML anew, with the dense widths: this one takes what it is given."""

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            return self.set_model_names_for_load(model)

    settings = {
        **SETTINGS,
        "data": str(file),
        "epochs": epochs,
        "project": str(folder.resolve()),
        "name": f"epochs{epochs}",
    }
    trainer = Trainer(overrides={**settings, "model": model.yaml["yaml_file"], "exist_ok": True})
    trainer.train()
    return trainer.ema.ema.float(), float(trainer.metrics["metrics/mAP50(B)"])


def fixed(model: Any) -> list[str]:
    """Modules whose own forward has sizes written into it: the attention of YOLO11."""
    return [f"{name}.attn" for name, part in model.named_modules() if type(part).__name__ == "PSABlock"]


def main(yaml: str, folder: Path, epochs: int = 20, ratio: float = 0.3) -> None:
    """Train, remove 30 % of the work, train on, and write weights and a bundle into `folder`."""
    torch.manual_seed(0)
    file = data(folder / "data")
    dense, score = trained(network(yaml), file, folder / "runs", epochs)
    print(f"dense mAP50 {score:.3f}")

    images = torch.zeros(2, 3, SIZE, SIZE)
    small = sparsecc.torch.prune(dense, images, ratio=ratio, form="module", keep=fixed(dense))  # *
    small, score = trained(small, file, folder / "runs", max(1, epochs // 2))
    print(f"trained on mAP50 {score:.3f}")

    sparsecc.torch.save(small, folder / "small.safetensors")  # *
    again = sparsecc.torch.load(folder / "small.safetensors", network(yaml))  # *
    again.model[-1].export, again.model[-1].format = True, "onnx"  # ultralytics' switch: one output, no lists
    result = sparsecc.compile(  # *
        again.eval(), example_inputs=(images[:1],), calib=str(folder / "data" / "images" / "val"),
        measure=False, output=folder / "bundle",
    )  # fmt: skip
    print(result.model)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:4]))
