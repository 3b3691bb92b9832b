"""Recovery without labels: the dense model teaches the pruned one on unlabelled inputs.

The student is trained to give the teacher's outputs, and its inner values as far as their slots are left,
measured relative to the variance of the teacher's values, so that every one counts alike. Weights are
averaged over time, and those that did best on held-out inputs are written; if none beat the start, the
start is. A training that was killed goes on where it was when it is asked for again. A student that is FAR from its
teacher has batch norms behind convolutions with a bias while it trains, folded at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from sparsecc.errors import InputError
from sparsecc.rules import Trait, traits_of
from sparsecc.torch.onnx_ops.module import OnnxModule, from_onnx, write_back
from sparsecc.torch.training.batch_norms import LEAST, fold, put_back
from sparsecc.torch.training.checkpoints import Checkpoints, key_of
from sparsecc.torch.training.loop import STATISTICS, Progress, Training
from sparsecc.torch.training.losses import relative_error
from sparsecc.torch.training.samples import Feed, TrainingData

Feeds = Iterable[Mapping[str, np.ndarray]]
Kept = Callable[[str, int], "np.ndarray | None"]
"""(value of the dense model, axis) -> boolean mask of its slots that are left, None where all are."""
Slots = dict[int, Tensor]
"""Axis of a value -> the slots of it that are left."""

FEATURES = 6
RATES = 3e-4, 3e-3
"""The largest step unless one is asked for, without and with batch norms: more destroys what a repair gained."""
FAR = 0.1
"""Relative squared error of the outputs above which norms help; below it, they first lose what is there."""
_SUMS = frozenset({"Add", "LayerNormalization"})
"""Operators beside those with products whose results are compared: residual sums and their norms."""


@dataclass(frozen=True)
class Budget:
    """How long to train: seconds, or steps. Cosine decay ends with it."""

    seconds: float | None = None
    steps: int | None = None

    @staticmethod
    def of(given: str | float) -> Budget:
        """From "90s", "10m", "1h", "steps:2000", or a number of seconds."""
        text = str(given).strip()
        try:
            if text.startswith("steps:"):
                found = Budget(steps=int(text[6:]))
            else:
                unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
                found = Budget(seconds=float(text[:-1]) * unit if unit else float(text))
        except ValueError as e:
            raise InputError(f"budget '{given}' is not understood: write 90s, 10m, 1h or steps:2000") from e
        if (found.seconds or found.steps or 0) <= 0:
            raise InputError(f"budget '{given}' is empty: write 90s, 10m, 1h or steps:2000")
        return found

    def used(self, steps: int, seconds: float) -> float:
        """The share that is used up, 1 at the end."""
        return steps / self.steps if self.steps else seconds / (self.seconds or 1.0)


def distill(
    dense_onnx: Path,
    pruned_onnx: Path,
    feeds: Feeds,
    *,
    budget: str | float = "10m",
    seed: int = 0,
    progress: Progress | None = None,
    output: Path,
    rate: float | None = None,
    batch: int = 64,
    augment: bool = True,
    kept: Kept | None = None,
    resume: bool = True,
) -> dict[str, Any]:
    """Train the pruned model to answer like the dense one and write it to `output`.

    `feeds` are calibration inputs by name; a tenth of them is held out. `augment` shifts, flips and mixes
    images (the teacher sees what the student sees). `kept` says which slots of the dense model's inner values
    are left; without it only inner values of equal shapes are compared. With `resume` the state is saved in the
    user's cache, and the same call goes on from there after a kill. Facts are those of `Training`, the names of
    the `features`, the number of `norms`, and the `device`. InputError: an operator that torch lacks, too few
    inputs, an odd budget.
    """
    feeds, files = list(feeds), (Path(dense_onnx), Path(pruned_onnx))
    limit, device = Budget.of(budget), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = {"budget": str(budget), "seed": seed, "rate": rate, "batch": batch, "augment": augment}
    checkpoints = Checkpoints(key_of(files, feeds, recipe), device) if resume else None
    teacher, student = (from_onnx(file).to(device) for file in files)
    samples = TrainingData.of(feeds, student.model, batch=batch, seed=seed, augment=augment, device=device)
    teach, features = _lessons(teacher, student, samples, kept)
    training = _training(teach, student, samples, limit, rate, checkpoints)
    norms = len(student.norms)
    training.run(progress or (lambda share, line: None))
    fold(student)
    write_back(student, output)
    return {**training.facts(), "features": features, "norms": norms, "device": str(device)}


def _lessons(
    teacher: OnnxModule, student: OnnxModule, samples: TrainingData, kept: Kept | None
) -> tuple[Callable[[Feed], dict[str, Tensor]], list[str]]:
    """What the teacher says to inputs, cut to the slots that the student has; the names of the inner values."""
    features = _shared_values(teacher, student, samples.held_out[0], kept)
    teacher.features = student.features = tuple(features)

    def teach(feed: Feed) -> dict[str, Tensor]:
        return {name: _left(value, features.get(name, {})) for name, value in teacher(feed).items()}

    return teach, list(features)


def _training(
    teach: Callable[[Feed], Mapping[str, Tensor]],
    student: OnnxModule,
    samples: TrainingData,
    limit: Budget,
    rate: float | None,
    checkpoints: Checkpoints | None,
) -> Training:
    """With norms in the student where it is far from its teacher."""
    names = student.output_names
    if samples.size >= LEAST and gap(teach, student, names, samples) > FAR:
        put_back(student, samples.plain(STATISTICS))
    rate = rate or RATES[bool(student.norms)]
    return Training(teach, student, names, samples, limit=limit, rate=rate, checkpoints=checkpoints)


@torch.no_grad()
def gap(
    teach: Callable[[Feed], Mapping[str, Tensor]],
    student: nn.Module,
    outputs: Sequence[str],
    samples: TrainingData,
) -> float:
    """The relative squared error of the student's outputs on the inputs held out."""
    errors = []
    for feed in samples.held_out:
        found = student(feed)
        errors.append(relative_error({name: found[name] for name in outputs}, teach(feed), outputs))
    return float(torch.stack(errors).mean())


def _is_compared(node: ir.Node) -> bool:
    """Whether what a node gives may be compared with the teacher's: where slots are mixed."""
    return node.op_type in _SUMS or bool(traits_of(node) & Trait.COMPUTES)


def _shared_values(
    teacher: OnnxModule, student: OnnxModule, feed: Feed, kept: Kept | None
) -> dict[str, Slots]:
    """Inner values that the student still has, a few of them, evenly spread, with the slots that are left."""
    seen = []
    for module in (teacher, student):
        names = [v.name or "" for n in module.nodes if _is_compared(n) for v in n.outputs[:1]]
        module.features = tuple(dict.fromkeys(n for n in names if n not in module.output_names))
        with torch.no_grad():
            seen.append(module(feed))
    both: dict[str, Slots] = {}
    for name, value in seen[1].items():
        if name in student.output_names or name not in seen[0]:
            continue
        slots = _slots(name, seen[0][name], kept)
        if _left(seen[0][name], slots).shape == value.shape:
            both[name] = slots
    if len(both) <= FEATURES:
        return both
    chosen = [list(both)[round((i + 1) * len(both) / (FEATURES + 1))] for i in range(FEATURES)]
    return {name: both[name] for name in chosen}


def _slots(name: str, value: Tensor, kept: Kept | None) -> Slots:
    found = {}
    for axis in range(value.dim()) if kept is not None else ():
        stays = kept(name, axis) if kept is not None else None
        if stays is not None and not stays.all() and len(stays) == value.shape[axis]:
            found[axis] = torch.from_numpy(np.flatnonzero(stays)).to(value.device)
    return found


def _left(value: Tensor, slots: Slots) -> Tensor:
    for axis, chosen in slots.items():
        value = value.index_select(axis, chosen)
    return value
