"""The digits data for the reference models, in numpy alone: accuracy on the test split, calibration batches.

The images are scikit-learn's digits (8x8, 0 to 16), stored as they are in digits.npz and brought to the
models' input here: float32 (batch, 1, 16, 16), bilinearly enlarged, -1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

SIDE = 16
BATCH = 50
DATA = Path(__file__).resolve().with_name("digits.npz")

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def prepare(images: np.ndarray) -> np.ndarray:
    """(n, 8, 8) pixels of 0 to 16 -> the models' input, float32 (n, 1, 16, 16) of -1 to 1."""
    enlarge = _bilinear(images.shape[-1], SIDE)
    large: np.ndarray = enlarge @ images.astype(np.float32) @ enlarge.T
    return large[:, None] / 8 - 1


def _bilinear(small: int, large: int) -> np.ndarray:
    """(large, small) weights of one axis' bilinear interpolation; pixels are areas, edges repeat."""
    position = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    distance = np.abs(position[:, None] - np.arange(small)[None, :])
    weights: np.ndarray = np.maximum(0, 1 - distance).astype(np.float32)
    return weights


def accuracy(run: Run) -> float:
    """The share of the test split's 500 images that `run` (a batch of inputs to outputs) labels right."""
    with np.load(DATA) as data:
        images, labels = data["test_images"], data["test_labels"]
    right = 0
    for start in range(0, len(images), BATCH):
        outputs = run({"image": prepare(images[start : start + BATCH])})
        right += int((outputs["logits"].argmax(axis=1) == labels[start : start + BATCH]).sum())
    return right / len(images)


def calibration() -> Iterator[dict[str, np.ndarray]]:
    """Batches of training images, without labels."""
    with np.load(DATA) as data:
        images = data["calibration_images"]
    for start in range(0, len(images), BATCH):
        yield {"image": prepare(images[start : start + BATCH])}
