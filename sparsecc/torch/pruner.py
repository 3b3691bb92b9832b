"""Gradual pruning inside the user's own training loop: masks first, physical removal at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sparsecc.axes.algebra import Atom, atoms_of, mask
from sparsecc.errors import InputError
from sparsecc.torch.plan import TorchPlan, owned
from sparsecc.torch.program.reparametrized import normed_weights, quotient
from sparsecc.torch.pruning import Loss, decide, fresh_scores, planned, realise, study
from sparsecc.torch.scores.regularisers import REGULARISERS, Regulariser, owned_by

Schedule = Callable[[float], float]
"""Share of the steps done -> share of the final ratio, both from 0 to 1."""
ROUNDS = 5


def one_shot(done: float) -> float:
    """All at the first step."""
    return 1.0


def linear(done: float) -> float:
    """Evenly."""
    return done


def cubic(done: float) -> float:
    """Fast at first, slower towards the end ("To prune, or not to prune", Zhu and Gupta, 2017)."""
    return 1 - (1 - done) ** 3


def iterative(done: float) -> float:
    """In five rounds with training between them ("The Lottery Ticket Hypothesis", Frankle and Carbin, 2019)."""
    return math.floor(done * ROUNDS + 1e-9) / ROUNDS


def at_end(done: float) -> float:
    """All at the last step: a regulariser works until then."""
    return float(done >= 1)


SCHEDULES: Mapping[str, Schedule] = {
    "one-shot": one_shot,
    "linear": linear,
    "cubic": cubic,
    "iterative": iterative,
    "at-end": at_end,
}


class Pruner:
    """Prunes a module while it trains.

    Call `step()` after every optimizer step. Over `steps` of them the ratio grows as the schedule says; every
    `every` steps the masks are chosen anew, and masked slots are held at zero in every tensor of their group.
    With `rewind=N` the weights of step N return whenever more slots are masked (for "iterative"; the
    optimizer's state stays). `penalty()` is the regulariser to add to the loss: it draws slots towards zero.
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
        rewind: int | None = None,
        regulariser: str | Regulariser = "lasso",
        criterion: str = "auto",
        batches: Iterable[Any] | None = None,
        loss: Loss | None = None,
        **options: Any,
    ) -> None:
        if steps < 1 or every < 1:
            raise InputError(f"steps={steps}, every={every}: both must be at least 1")
        self.schedule: Schedule = _named("schedule", schedule, SCHEDULES)
        self.regulariser: Regulariser = _named("regulariser", regulariser, REGULARISERS)
        self.criterion, self.batches, self.loss = criterion, batches, loss
        self.study = study(module, example_inputs, criterion=criterion, **options)
        self.ratio, self.steps, self.every, self.rewind, self.done = ratio, steps, every, rewind, 0
        self.masks: dict[Atom, np.ndarray] = {}
        self.plan: TorchPlan | None = None
        self._tensors: list[tuple[Tensor, int, Tensor]] = []
        self._doomed: dict[Atom, Tensor] | None = None
        self._early = self._weights() if rewind == 0 else []
        live = self._live()
        self._normed = [
            (live[one.source], live[one.length], one.axis) for one in normed_weights(module) if one.length
        ]
        self._owned = owned_by(self.study.free, self.study.analysis, self.study.program, self._live())

    @property
    def current_ratio(self) -> float:
        """The share of the metric that is masked by now."""
        return self.ratio * self.schedule(min(self.done / self.steps, 1.0)) if self.done else 0.0

    def step(self) -> None:
        """After an optimizer step: choose masks when it is time, and hold what they say at zero."""
        self.done += 1
        if self.done == self.rewind:
            self._early = self._weights()
        last = self.done == self.steps
        first = self.done == 1 and self.schedule(0.0) > 0
        if self.done <= self.steps and (self.done % self.every == 0 or last or first):
            before = self.plan.after if self.plan is not None else math.inf
            self._choose(self.current_ratio)
            if self.plan is not None and self.masks and self.plan.after < before:
                self._return()
        self.apply_masks()

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Set every masked slot to zero; a weight norm's lengths keep what is left of its weights as it was."""
        before = [torch.norm_except_dim(vector, 2, axis) for vector, _, axis in self._normed]
        for tensor, axis, stays in self._tensors:
            shape = [1] * tensor.dim()
            shape[axis] = len(stays)
            tensor.mul_(stays.to(tensor.device, tensor.dtype).reshape(shape))
        for (vector, length, axis), norm in zip(self._normed, before, strict=True):
            length.mul_(quotient(norm, torch.norm_except_dim(vector, 2, axis)).reshape(length.shape))

    def penalty(self) -> Tensor:
        """What the regulariser says, averaged over slots."""
        done = min(self.done / self.steps, 1.0)
        doomed = self._going()
        terms = [self.regulariser(o.squares(), doomed[o.group.atom], done) for o in self._owned]
        if not terms:
            return torch.zeros(())
        return torch.stack([t.to(terms[0].device) for t in terms]).sum() / sum(
            o.group.size for o in self._owned
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside those of module and optimizer: tensors and numbers alone."""
        groups = enumerate(self.study.groups)
        slots = {i: torch.from_numpy(self.masks[g.atom]) for i, g in groups if g.atom in self.masks}
        reached = self.plan is not None and self.plan.reached
        return {
            "done": self.done,
            "slots": slots,
            "reached": reached,
            "early": [old for _, old in self._early],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, with a module of the same class, whose own state is loaded apart."""
        groups = self.study.groups
        masks = {int(i): slots.numpy().astype(bool) for i, slots in state["slots"].items()}
        if any(i >= len(groups) or groups[i].size != len(slots) for i, slots in masks.items()):
            raise InputError("the pruner's state is of another module: its groups have other sizes")
        self.done, self._doomed = int(state["done"]), None
        self.masks = {groups[i].atom: slots for i, slots in masks.items()}
        self.plan = planned(self.study, self.masks, reached=bool(state["reached"])) if masks else None
        self._tensors = self._masked_tensors()
        parameters = list(self.study.module.parameters())
        self._early = [(p, old.to(p.device)) for p, old in zip(parameters, state["early"], strict=False)]

    def finish(self, *, form: str = "auto") -> nn.Module:
        """The smaller module without the slots that are masked at the final ratio; it trains on."""
        if self.plan is None or self.done < self.steps:
            self._choose(self.ratio)
        self.apply_masks()
        assert self.plan is not None
        return realise(self.study, self.masks, self.plan, form=form)

    def _choose(self, ratio: float) -> None:
        scores = fresh_scores(self.study, self.criterion, self.batches, self.loss)
        self.masks, self.plan = decide(self.study, ratio, scores)
        self._tensors = self._masked_tensors()
        self._doomed = None

    def _going(self) -> dict[Atom, Tensor]:
        """The slots that go at the final ratio, as far as the weights tell since masks were last chosen."""
        if self._doomed is None:
            scores = fresh_scores(self.study, self.criterion, self.batches, self.loss)
            masks, _ = decide(self.study, self.ratio, scores)
            whole = {o.group.atom: np.ones(o.group.size, bool) for o in self._owned}
            self._doomed = {atom: torch.from_numpy(~slots) for atom, slots in {**whole, **masks}.items()}
        return self._doomed

    def _weights(self) -> list[tuple[Tensor, Tensor]]:
        return [(p, p.detach().clone()) for p in self.study.module.parameters()]

    @torch.no_grad()
    def _return(self) -> None:
        for parameter, early in self._early:
            parameter.copy_(early)

    def _live(self) -> dict[str, Tensor]:
        return {full: tensor for full, _, _, tensor in owned(self.study.module)}

    def _masked_tensors(self) -> list[tuple[Tensor, int, Tensor]]:
        live, program = self._live(), self.study.program
        own_length = {(id(vector), axis) for vector, _, axis in self._normed}
        found: dict[tuple[int, int], tuple[Tensor, int, Tensor]] = {}
        for value, axes in self.study.analysis.weights():
            for name in program.names[value.name or ""]:
                for position, axis in enumerate(axes):
                    touched = any(a in self.masks for a in atoms_of(axis))
                    slots = mask(axis, self.masks) if touched and name in live else None
                    if (id(live.get(name)), position) in own_length:
                        continue  # a vector of length 0 has no direction
                    if slots is not None and live[name].is_floating_point():
                        found[id(live[name]), position] = (live[name], position, torch.from_numpy(slots))
        return list(found.values())


Row = TypeVar("Row")


def _named(what: str, given: str | Row, table: Mapping[str, Row]) -> Row:
    if not isinstance(given, str):
        return given
    if given not in table:
        raise InputError(f"unknown {what} '{given}': choose from {', '.join(table)}")
    return table[given]
