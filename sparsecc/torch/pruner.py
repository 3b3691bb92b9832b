"""Gradual pruning inside the user's own training loop: masks first, physical removal at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsecc.axes import Atom, atoms_of, mask, owners_of
from sparsecc.errors import InputError
from sparsecc.torch.gradients import GRADIENT_CRITERIA, gradient_scores
from sparsecc.torch.plan import TorchPlan, owned
from sparsecc.torch.pruning import Loss, decide, realise, study

Schedule = Callable[[float], float]
"""Share of the steps done -> share of the final ratio, both from 0 to 1."""


def one_shot(done: float) -> float:
    """All at the first step."""
    return 1.0


def linear(done: float) -> float:
    """Evenly."""
    return done


def cubic(done: float) -> float:
    """Fast at first, slower towards the end ("To prune, or not to prune", Zhu and Gupta, 2017)."""
    return 1 - (1 - done) ** 3


SCHEDULES: Mapping[str, Schedule] = {"one-shot": one_shot, "linear": linear, "cubic": cubic}


class Pruner:
    """Prunes a module while it trains.

    Call `step()` after every optimizer step. Over `steps` of them the ratio grows as the schedule says; every
    `every` steps the masks are chosen anew, and masked slots are held at zero in every tensor of their group.
    `penalty()` is a group lasso to add to the loss: it draws the slots that will go towards zero.
    `finish()` gives the smaller module. The criteria that need gradients take `batches` and `loss`.
    """

    def __init__(
        self,
        module: nn.Module,
        example_inputs: Any,
        *,
        ratio: float = 0.5,
        steps: int = 1000,
        every: int = 10,
        schedule: str | Schedule = "cubic",
        criterion: str = "auto",
        batches: Iterable[Any] | None = None,
        loss: Loss | None = None,
        **options: Any,
    ) -> None:
        if isinstance(schedule, str) and schedule not in SCHEDULES:
            raise InputError(f"unknown schedule '{schedule}': choose from {', '.join(SCHEDULES)}")
        if steps < 1 or every < 1:
            raise InputError(f"steps={steps}, every={every}: both must be at least 1")
        self.schedule = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
        self.criterion, self.batches, self.loss = criterion, batches, loss
        own = "auto" if criterion in GRADIENT_CRITERIA else criterion
        self.study = study(module, example_inputs, criterion=own, **options)
        self.ratio, self.steps, self.every, self.done = ratio, steps, every, 0
        self.masks: dict[Atom, np.ndarray] = {}
        self.plan: TorchPlan | None = None
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        self._owners = self._find_owners()

    @property
    def current_ratio(self) -> float:
        """The share of the metric that is masked by now."""
        return self.ratio * self.schedule(min(self.done / self.steps, 1.0)) if self.done else 0.0

    def step(self) -> None:
        """After an optimizer step: choose masks when it is time, and hold what they say at zero."""
        self.done += 1
        last = self.done == self.steps
        first = self.done == 1 and self.schedule(0.0) > 0
        if self.done <= self.steps and (self.done % self.every == 0 or last or first):
            self._choose(self.current_ratio)
        self.apply_masks()

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set every masked slot to zero."""
        for tensor, axis, stays in self._tensors:
            shape = [1] * tensor.dim()
            shape[axis] = len(stays)
            tensor.mul_(stays.to(tensor.device, tensor.dtype).reshape(shape))

    def penalty(self) -> Tensor:
        """Group lasso: per slot the norm of all it owns, weighted by the root of its elements, averaged."""
        total = torch.zeros(())
        count = 0
        for group, uses in self._owners:
            squares: Tensor | None = None
            elements = 0.0
            for tensor, axis, owner in uses:
                others = [i for i in range(tensor.dim()) if i != axis]
                sums = tensor.square().sum(others) if others else tensor.square()
                seen = owner >= 0
                spread = torch.zeros(group, device=tensor.device, dtype=tensor.dtype)
                spread = spread.index_add(0, owner[seen].to(tensor.device), sums[seen.to(tensor.device)])
                squares = spread if squares is None else squares + spread
                elements += tensor.numel() / group
            if squares is not None:
                total = total.to(squares.device) + (squares + 1e-12).sqrt().sum() / elements**0.5
                count += group
        return total / max(count, 1)

    def finish(self, *, form: str = "auto") -> nn.Module:
        """The smaller module without the slots that are masked at the final ratio; it trains on."""
        if self.plan is None or self.done < self.steps:
            self._choose(self.ratio)
        self.apply_masks()
        assert self.plan is not None
        return realise(self.study, self.masks, self.plan, form=form)

    def _choose(self, ratio: float) -> None:
        self.masks, self.plan = decide(self.study, ratio, self._scores())
        self._tensors = self._masked_tensors()

    def _scores(self) -> dict[Atom, np.ndarray] | None:
        """Fresh scores from gradients; None where those of the weights do."""
        if self.criterion not in GRADIENT_CRITERIA:
            return None
        found = self.study
        return gradient_scores(
            found.module, found.program, found.analysis, found.free, self.criterion, self.batches, self.loss
        )

    def _live(self) -> dict[str, Tensor]:
        return {full: tensor for full, _, _, tensor in owned(self.study.module)}

    def _masked_tensors(self) -> list[tuple[Tensor, int, Tensor]]:
        live, program = self._live(), self.study.program
        found: dict[tuple[int, int], tuple[Tensor, int, Tensor]] = {}
        for value, axes in self.study.analysis.weights():
            for name in program.names[value.name or ""]:
                for position, axis in enumerate(axes):
                    touched = any(a in self.masks for a in atoms_of(axis))
                    slots = mask(axis, self.masks) if touched and name in live else None
                    if slots is not None and live[name].is_floating_point():
                        found[id(live[name]), position] = (live[name], position, torch.from_numpy(slots))
        return list(found.values())

    def _find_owners(self) -> list[tuple[int, Sequence[tuple[Tensor, int, Tensor]]]]:
        live, program = self._live(), self.study.program
        parameters = {n: t for n, t in live.items() if isinstance(t, nn.Parameter) and t.is_floating_point()}
        found: list[tuple[int, Sequence[tuple[Tensor, int, Tensor]]]] = []
        for group in self.study.free:
            uses: dict[tuple[int, int], tuple[Tensor, int, Tensor]] = {}
            for value, axes in self.study.analysis.weights():
                name = program.names[value.name or ""][0]
                for position, axis in enumerate(axes):
                    if name in parameters and group.atom in atoms_of(axis):
                        owner = torch.from_numpy(owners_of(axis, group.atom))
                        uses[id(parameters[name]), position] = (parameters[name], position, owner)
            found.append((group.size, list(uses.values())))
        return found
