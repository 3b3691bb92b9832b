"""The loop in which a student learns its teacher's answers: AdamW, warm-up and cosine, averaged weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sparsecc.errors import InputError
from sparsecc.torch.training.checkpoints import Checkpoints
from sparsecc.torch.training.losses import agreement, relative_error
from sparsecc.torch.training.samples import Feed, TrainingData

Progress = Callable[[float, str], None]
"""(share of the budget used, one line) -> nothing."""

EVALUATIONS = 25
"""How often the held-out inputs are looked at over the whole budget."""
SETTLING = 0.5
"""The share of the budget in which the rate is high: the error rises first, and falls as the rate does."""
PATIENCE = 8
"""So many looks without a better one after that end the training."""
AVERAGE = 0.99
STATISTICS = 512
"""Inputs for the statistics of norms."""
WARM_UP = 0.05
SMALL_ERROR = 1e-2
"""Below this held-out error the rounding of bfloat16 would be what is learnt: training stays in float32."""


class Limit(Protocol):
    """How long to train."""

    def used(self, steps: int, seconds: float) -> float:
        """The share that is used up, 1 at the end."""


@dataclass
class State:
    """Where a training is. Losses are relative squared errors on held-out inputs."""

    steps: int = 0
    seconds: float = 0.0
    stale: int = 0
    looked: float = 0.0
    lowest: float = math.inf
    first: tuple[float, float | None] = (math.inf, None)
    best: tuple[float, float | None] = (math.inf, None)
    stopped: str = "budget"
    resumed_at: list[int] = field(default_factory=list)


class Training:
    """Student and teacher give values by name; `outputs` are those that count, others are inner values."""

    def __init__(
        self,
        teach: Callable[[Feed], Mapping[str, Tensor]],
        student: nn.Module,
        outputs: Sequence[str],
        samples: TrainingData,
        *,
        limit: Limit,
        rate: float,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.teach, self.student, self.outputs, self.samples = teach, student, list(outputs), samples
        self.limit, self.rate, self.checkpoints = limit, rate, checkpoints
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        self.norms = [m for m in student.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        statistics = [s for m in self.norms for s in (m.running_mean, m.running_var) if s is not None]
        self.values = [*self.parameters, *statistics]
        self.average = self._copies()
        self.kept = self._copies()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=1e-4)
        self.state = State()
        self.fast = False
        self._answers: list[dict[str, Tensor]] = []

    def facts(self) -> dict[str, Any]:
        """What a report keeps: steps, losses (relative squared error on held-out inputs), and the share of
        equal arg max, None where no output has classes; `resumed_at` are steps."""
        state = self.state
        return {
            "steps": state.steps, "seconds": round(state.seconds, 2), "samples": self.samples.count,
            "held_out": self.samples.held_out_count, "loss_before": state.first[0],
            "loss_after": state.best[0], "agreement_before": state.first[1],
            "agreement_after": state.best[1], "stopped": state.stopped, "resumed_at": state.resumed_at,
            "precision": "bfloat16" if self.fast else "float32",
        }  # fmt: skip

    def run(self, progress: Progress) -> None:
        """Train until the budget is used or nothing gets better; the student then has its best weights."""
        if not self._resume():
            self.state.first = self.state.best = self._look(self.values)
        self.fast = self.state.first[0] > SMALL_ERROR and self._runs_fast()
        state, started = self.state, time.monotonic() - self.state.seconds
        while (used := self.limit.used(state.steps, time.monotonic() - started)) < 1:
            loss = self._step(used)
            state.seconds = time.monotonic() - started
            if used - state.looked >= 1 / EVALUATIONS:
                self._judge(used, loss, progress)
                if state.stale >= PATIENCE:
                    state.stopped = "no better"
                    break
            if self.checkpoints is not None and self.checkpoints.is_due():
                self.checkpoints.save(self._saved())
        self._judge(1.0, math.nan, progress)
        self._put(self.kept)
        if self.checkpoints is not None:
            self.checkpoints.drop()

    def _step(self, used: float) -> float:
        state = self.state
        for group in self.optimizer.param_groups:
            warm = max(min(1.0, used / WARM_UP), 0.02)
            group["lr"] = self.rate * warm * 0.5 * (1 + math.cos(math.pi * used))
        feed = self.samples.batch()
        with self._precision():
            with torch.no_grad():
                wanted = self.teach(feed)
            self.student.train()
            loss = relative_error(self.student(feed), wanted, self.outputs)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        state.steps += 1
        decay = min(AVERAGE, state.steps / (state.steps + 9))
        torch._foreach_lerp_(self.average, [v.detach() for v in self.values], 1 - decay)
        found = float(loss.detach())
        if not math.isfinite(found):
            steps = state.steps
            raise InputError(
                f"the loss became {found} after {steps} steps: lower the rate or check the inputs"
            )
        return found

    def _judge(self, used: float, loss: float, progress: Progress) -> None:
        """Look at the held-out inputs; keep the averaged weights where they are better."""
        state = self.state
        state.looked = used
        self._settle()
        found = self._look(self.average)
        if used > SETTLING:
            state.stale = 0 if found[0] < state.lowest else state.stale + 1
        state.lowest = min(state.lowest, found[0])
        if found[0] < state.best[0]:
            state.best = found
            self.kept = [a.clone() for a in self.average]
        start = state.first[0]
        shown = f"loss {loss:.4f}, " if math.isfinite(loss) else ""
        progress(used, f"step {state.steps}: {shown}held out {found[0]:.4f} (start {start:.4f})")

    def _settle(self) -> None:
        """Give the averaged weights the statistics that their norms have on inputs as they are."""
        if not self.norms:
            return
        present = self._copies()
        self._put(self.average)
        for norm in self.norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.student.train()
        with torch.no_grad():
            for feed in self.samples.plain(STATISTICS):
                self.student(feed)
        self.average = self._copies()
        self._put(present)

    def _look(self, values: Sequence[Tensor]) -> tuple[float, float | None]:
        """(relative error of the outputs, agreement) on the held-out inputs with these weights."""
        present = self._copies()
        self._put(values)
        self.student.eval()
        losses, equal, total = [], 0, 0
        with torch.no_grad():
            for feed, wanted in zip(self.samples.held_out, self._truth(), strict=True):
                found = self.student(feed)
                answers = {n: found[n] for n in self.outputs}
                losses.append(float(relative_error(answers, wanted, self.outputs)))
                same, count = agreement(found, wanted, self.outputs)
                equal, total = equal + same, total + count
        self._put(present)
        return float(np.mean(losses)), equal / total if total else None

    def _truth(self) -> list[dict[str, Tensor]]:
        """The teacher's outputs for the held-out inputs, asked for once."""
        if not self._answers:
            for feed in self.samples.held_out:
                given = self.teach(feed)
                self._answers.append({n: given[n] for n in self.outputs})
        return self._answers

    def _precision(self) -> AbstractContextManager[Any]:
        if not self.fast:
            return nullcontext()
        return torch.autocast(self.parameters[0].device.type, dtype=torch.bfloat16)

    def _runs_fast(self) -> bool:
        """Whether this machine multiplies bfloat16 faster, and the models run in it."""
        if not has_bfloat16(self.parameters[0].device):
            return False
        self.fast = True
        feed = self.samples.held_out[0]
        try:
            with self._precision():
                loss = relative_error(self.student(feed), self.teach(feed), self.outputs)
                torch.autograd.grad(loss, self.parameters, allow_unused=True)
        except (InputError, RuntimeError):
            return False
        return bool(torch.isfinite(loss))

    def _copies(self) -> list[Tensor]:
        return [v.detach().clone() for v in self.values]

    def _put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for own, value in zip(self.values, values, strict=True):
                own.copy_(value)

    def _saved(self) -> dict[str, Any]:
        return {
            "state": asdict(self.state), "values": self._copies(), "average": self.average,
            "kept": self.kept, "optimizer": self.optimizer.state_dict(), "samples": self.samples.position(),
        }  # fmt: skip

    def _resume(self) -> bool:
        saved = self.checkpoints.load() if self.checkpoints is not None else None
        if saved is None:
            return False
        self.state = State(**saved["state"])
        self.state.resumed_at.append(self.state.steps)
        self._put(saved["values"])
        self.average, self.kept = saved["average"], saved["kept"]
        self.optimizer.load_state_dict(saved["optimizer"])
        self.samples.go_to(saved["samples"])
        return True


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
