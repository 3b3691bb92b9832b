"""Repair without samples: inputs that are drawn, and matched to batch norms, against noise and training images.

    python benchmarks/data_free.py [--models resnet20,resnet56] [--ratios 0.25,0.5]      the table of docs/methods.md

CIFAR-10 ResNets, exported from torch with their batch norms, cut by `l2`, `uniform`; top-1 on 1,000 test images. Needs
the shared materials (SPARSECC_SHARED or ../shared), torch and pillow.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy_pairs import cifar
from benchmarks.cifar_data import module
from sparsecc.api import compile
from sparsecc.runtime.session import open_session

NOISE = 64
"""Inputs of plain noise: as many as `--calib synthetic` draws."""
COLUMNS = (
    ("none", "none"),
    ("noise", "reconstruct"),
    ("synthetic", "bn"),
    ("synthetic", "reconstruct"),
    ("images", "bn"),
    ("images", "reconstruct"),
)
"""Samples and repair."""


def calibrations(name: str, folder: Path) -> dict[str, str | None]:
    """What --calib is given, by the name of its column."""
    images = np.concatenate([feed["image"] for feed in cifar(name).samples.batches])
    noise = np.random.default_rng(0).standard_normal((NOISE, *images.shape[1:])).astype(np.float32)
    for kind, arrays in (("images", images), ("noise", noise)):
        np.savez(folder / f"{kind}.npz", image=arrays)
    files = {kind: str(folder / f"{kind}.npz") for kind in ("images", "noise")}
    return {"none": None, "synthetic": "synthetic", **files}


def row(name: str, ratio: float, folder: Path) -> list[float]:
    """Top-1 for every column."""
    model = folder / f"{name}.onnx"
    batch = {"image": {0: torch.export.Dim("n")}}
    given = (torch.zeros(2, 3, 32, 32),)
    torch.onnx.export(
        module(name), given, model, input_names=["image"], dynamic_shapes=tuple(batch.values()), dynamo=True,
        optimize=False, verbose=False, external_data=False,
    )  # fmt: skip
    samples, found = calibrations(name, folder), []
    for number, (kind, repair) in enumerate(COLUMNS):
        bundle = folder / f"{name}-{ratio}-{number}"
        compile(
            model, ratio=ratio, criterion="l2", allocator="uniform", calib=samples[kind], recover=repair,
            measure=False, output=bundle,
        )  # fmt: skip
        found.append(cifar(name).accuracy(open_session(bundle / "model.onnx").run))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Repair without samples, against noise and training images.")
    parser.add_argument("--models", default="resnet20,resnet56")
    parser.add_argument("--ratios", default="0.25,0.5")
    options = parser.parse_args(argv)
    heads = [kind if repair == "none" else f"{kind}, `{repair}`" for kind, repair in COLUMNS]
    print(
        "| share of the work removed | "
        + " | ".join(["as cut", *heads[1:]])
        + " |\n|---|"
        + "---|" * len(heads)
    )
    for name in options.models.split(","):
        for ratio in options.ratios.split(","):
            with tempfile.TemporaryDirectory() as folder:
                cells = row(name, float(ratio), Path(folder))
            print(
                f"| {name}, {float(ratio):.0%} | " + " | ".join(f"{c:.3f}" for c in cells) + " |", flush=True
            )


if __name__ == "__main__":
    main()
