"""Recovery without labels: the dense model teaches the pruned one on unlabelled inputs.

The student is trained to give the teacher's outputs (and those inner values that both still have in the same
shape), measured relative to the variance of the teacher's values, so that every output counts alike. Weights
are averaged over time, and those that did best on held-out inputs are written; if none beat the start, the
start is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecc.errors import InputError
from sparsecc.torch.onnx_module import OnnxModule, from_onnx, write_back
from sparsecc.torch.samples import Samples

Progress = Callable[[float, str], None]
"""(share of the budget used, one line) -> nothing."""
Feeds = Iterable[Mapping[str, np.ndarray]]

EVALUATIONS = 25
"""How often the held-out inputs are looked at over the whole budget."""
PATIENCE = 8
"""So many looks without a better result end the training."""
FEATURES = 4
FEATURE_WEIGHT = 0.3
AVERAGE = 0.99
WARM_UP = 0.05
SMALLEST = 1e-12


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
    rate: float = 1e-3,
    batch: int = 64,
    augment: bool = True,
) -> dict[str, Any]:
    """Train the pruned model to answer like the dense one and write it to `output`.

    `feeds` are calibration inputs by name; a tenth of them is held out. `augment` shifts, flips and mixes
    images (the teacher sees what the student sees). Facts: `steps`, `seconds`, `samples`, `held_out`,
    `loss_before`, `loss_after` (relative squared error on held-out inputs), `agreement_before` and
    `agreement_after` (share of equal arg max, None where no output has classes), `features`, `stopped`.
    InputError: an operator that torch does not run, too few inputs, or a budget that is not understood.
    """
    limit = Budget.of(budget)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher, student = from_onnx(dense_onnx).to(device).eval(), from_onnx(pruned_onnx).to(device).train()
    samples = Samples.of(feeds, student.model, batch=batch, seed=seed, augment=augment, device=device)
    teacher.features = student.features = _shared_values(teacher, student, samples.held_out[0])
    training = _Training(teacher, student, samples, limit, rate)
    facts = training.run(progress or (lambda share, line: None))
    write_back(student, output)
    return facts


def _shared_values(teacher: OnnxModule, student: OnnxModule, feed: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Inner values that both models have in the same shape, a few of them, evenly spread."""
    seen = []
    for module in (teacher, student):
        names = [v.name or "" for n in module.nodes if n.op_type in _MIXERS for v in n.outputs[:1]]
        module.features = tuple(dict.fromkeys(n for n in names if n not in module.output_names))
        with torch.no_grad():
            seen.append({n: tuple(v.shape) for n, v in module(feed).items()})
        module.features = ()
    both = [n for n in seen[1] if n not in student.output_names and seen[0].get(n) == seen[1][n]]
    if len(both) <= FEATURES:
        return tuple(both)
    return tuple(both[round((i + 1) * len(both) / (FEATURES + 1))] for i in range(FEATURES))


_MIXERS = frozenset({"Add", "Conv", "Gemm", "MatMul", "LayerNormalization", "LSTM", "GRU"})


class _Training:
    """The loop: AdamW, warm-up and cosine, averaged weights, held-out looks."""

    def __init__(
        self, teacher: OnnxModule, student: OnnxModule, samples: Samples, budget: Budget, rate: float
    ) -> None:
        self.teacher, self.student, self.samples, self.budget, self.rate = (
            teacher,
            student,
            samples,
            budget,
            rate,
        )
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=1e-4)

    def run(self, progress: Progress) -> dict[str, Any]:
        started = time.monotonic()
        first = self._look(self.parameters)
        best, kept = first, [p.detach().clone() for p in self.parameters]
        steps, stale, looked, stopped = 0, 0, 0.0, "budget"
        while (used := self.budget.used(steps, time.monotonic() - started)) < 1:
            loss = self._step(used, steps)
            steps += 1
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss became {loss} after {steps} steps: lower the rate or check the inputs"
                )
            if used - looked < 1 / EVALUATIONS:
                continue
            looked = used
            found = self._look(self.average)
            progress(used, f"step {steps}: loss {loss:.4f}, held out {found[0]:.4f} (start {first[0]:.4f})")
            better = found[0] < best[0]
            stale = 0 if better else stale + 1
            if better:
                best, kept = found, [a.clone() for a in self.average]
            if stale >= PATIENCE:
                stopped = "no better"
                break
        found = self._look(self.average)
        if found[0] < best[0]:
            best, kept = found, [a.clone() for a in self.average]
        self._put(kept)
        return {
            "steps": steps, "seconds": round(time.monotonic() - started, 2), "samples": self.samples.count,
            "held_out": self.samples.held_out_count, "loss_before": first[0], "loss_after": best[0],
            "agreement_before": first[1], "agreement_after": best[1], "features": list(self.student.features),
            "stopped": stopped, "device": str(self.parameters[0].device),
        }  # fmt: skip

    def _step(self, used: float, steps: int) -> float:
        warm = min(1.0, used / WARM_UP) if WARM_UP else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * max(warm, 0.02) * 0.5 * (1 + math.cos(math.pi * min(used, 1.0)))
        feed = self.samples.batch()
        with torch.no_grad():
            wanted = self.teacher(feed)
        loss = relative_error(self.student(feed), wanted, self.student.output_names)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        decay = min(AVERAGE, (steps + 1) / (steps + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        return float(loss.detach())

    def _put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def _look(self, values: Sequence[Tensor]) -> tuple[float, float | None]:
        """(relative error, agreement) on the held-out inputs with these weights."""
        present = [p.detach().clone() for p in self.parameters]
        self._put(values)
        losses, equal, total = [], 0, 0
        with torch.no_grad():
            for feed in self.samples.held_out:
                found, wanted = self.student(feed), self.teacher(feed)
                outputs = self.student.output_names
                losses.append(float(relative_error({n: found[n] for n in outputs}, wanted, outputs)))
                same, count = _agreement(found, wanted, outputs)
                equal, total = equal + same, total + count
        self._put(present)
        return float(np.mean(losses)), equal / total if total else None


def relative_error(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], outputs: list[str]) -> Tensor:
    """Squared error over the variance of what is wanted, averaged; inner values count less than outputs."""
    total, weights = torch.zeros(()), 0.0
    for name, value in found.items():
        target = wanted[name]
        if not target.is_floating_point() or target.numel() < 2:
            continue
        weight = 1.0 if name in outputs else FEATURE_WEIGHT
        error = ((value.float() - target.float()) ** 2).mean() / (target.float().var() + SMALLEST)
        total, weights = total.to(error.device) + weight * error, weights + weight
    if not weights:
        raise InputError("no output is floating point: there is nothing to distil")
    return total / weights


def _agreement(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], outputs: list[str]
) -> tuple[int, int]:
    name = next((n for n in outputs if wanted[n].dim() >= 2 and wanted[n].is_floating_point()), None)
    if name is None or wanted[name].shape[-1] < 2:
        return 0, 0
    same = found[name].argmax(-1) == wanted[name].argmax(-1)
    return int(same.sum()), same.numel()
