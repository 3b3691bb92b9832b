"""Gradient criteria for an ONNX graph: the graph as a torch module, its own predictions as labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecc.axes.algebra import Atom
from sparsecc.data.samples import Feeds, Samples
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group, find_groups
from sparsecc.shapes.dynamic_dims import input_values, is_fixed
from sparsecc.torch.onnx_ops.module import OnnxModule, require_operators
from sparsecc.torch.scores.domains import Sensitivity, domain_scores
from sparsecc.torch.scores.gradients import ON_OUTPUTS, gradient_scores

SAMPLES = 64
"""More change the order of slots little, and every one costs a backward pass."""
TOGETHER = 4
"""Samples whose gradients are taken together."""


@dataclass(frozen=True)
class _Running:
    """A graph as a module, the parameters that its values are, and its free groups."""

    module: OnnxModule
    names: dict[str, list[str]]
    groups: list[Group]

    @staticmethod
    def of(analysis: Analysis, criterion: str) -> _Running:
        """InputError for operators that torch cannot run."""
        require_operators(analysis.model, "criterion " + criterion)
        module = OnnxModule(analysis.model)
        parameters = {id(parameter): name for name, parameter in module.named_parameters()}
        names = {name: [parameters[id(parameter)]] for name, parameter in module.named.items()}
        return _Running(module, names, [group for group in find_groups(analysis) if group.is_free])


def scores_of(
    analysis: Analysis, criterion: str, samples: Samples, *, seed: int, general: Samples | None = None
) -> dict[Atom, np.ndarray]:
    """One score per slot of every free group. InputError for operators that torch cannot run.

    Without labels, the loss is -log p of labels drawn from the model's own prediction, whose squared gradient is
    the Fisher information; of outputs that are no class scores, the squared distance to themselves with noise.
    With `general`, the samples are those of a domain that is compared with it.
    """
    running = _Running.of(analysis, criterion)
    random = torch.Generator().manual_seed(seed)
    if general is not None:
        found, other = (sensitivity(running.module, s, analysis.model, random) for s in (samples, general))
        parts = (running.module, running.names, analysis, running.groups, found, other)
        return domain_scores(*parts, literal=criterion == "dai_literal")

    def loss(runner: nn.Module, feeds: Any) -> Tensor:
        value = _output(runner, feeds)
        return value if criterion in ON_OUTPUTS else surprise(value, random)

    batches = list(_few(samples, analysis.model))
    return gradient_scores(running.module, running.names, analysis, running.groups, criterion, batches, loss)


def sensitivity(
    module: OnnxModule, samples: Samples, model: ir.Model, random: torch.Generator
) -> Sensitivity:
    """The Fisher information by labels drawn from the prediction, and the gradient that strengthens the prediction:
    that of drawn labels is zero on average.
    """
    parameters = dict(module.named_parameters())
    fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
    gradient = {name: torch.zeros_like(p) for name, p in parameters.items()}
    batches = list(_few(samples, model))
    for feeds in batches:
        value = _output(module, feeds)
        for scalar, power, sums in ((surprise(value, random), 2, fisher), (doubt(value), 1, gradient)):
            found = torch.autograd.grad(
                scalar, list(parameters.values()), allow_unused=True, retain_graph=True
            )
            for name, part in zip(parameters, found, strict=True):
                if part is not None:
                    sums[name] += part.pow(power) / len(batches)
    return Sensitivity(fisher, gradient)


def surprise(value: Tensor, random: torch.Generator) -> Tensor:
    """-log p of a label drawn from p, a model's own prediction. `value` holds scores, probabilities, or neither."""
    if value.dim() < 2 or value.shape[-1] < 2:
        noise = torch.randn(value.shape, generator=random) * value.detach().std(correction=0)
        return 0.5 * (value - (value.detach() + noise)).square().mean()
    logs = _log_shares(value)
    labels = torch.multinomial(logs.detach().exp(), 1, generator=random)[:, 0]
    return F.nll_loss(logs, labels)


def doubt(value: Tensor) -> Tensor:
    """-log p of the likeliest label; of outputs that are no class scores, minus half their mean square."""
    if value.dim() < 2 or value.shape[-1] < 2:
        return -0.5 * value.square().mean()
    return -_log_shares(value).amax(-1).mean()


def _log_shares(value: Tensor) -> Tensor:
    """log p, one row per prediction, from scores or probabilities."""
    rows = value.reshape(-1, value.shape[-1])
    are_shares = bool((rows >= 0).all()) and bool(
        torch.allclose(rows.sum(-1), torch.ones(len(rows)), atol=1e-3)
    )
    return rows.clamp_min(1e-12).log() if are_shares else F.log_softmax(rows, -1)


def _output(runner: nn.Module, feeds: Feeds) -> Tensor:
    return _first_float(runner({n: torch.from_numpy(np.array(a)) for n, a in feeds.items()}))


def _first_float(outputs: dict[str, Tensor]) -> Tensor:
    found = next((t for t in outputs.values() if t.is_floating_point()), None)
    if found is None:
        raise InputError("gradient criteria need an output of floating point: choose another criterion")
    return found.float()


def _few(samples: Samples, model: ir.Model) -> Iterator[Feeds]:
    """SAMPLES samples, TOGETHER at a time where the model's batch size is free."""
    free = all(v.shape is not None and len(v.shape) and not is_fixed(v.shape[0]) for v in input_values(model))
    for batch in samples.first(SAMPLES).batches:
        yield from _parts(batch) if free else [batch]


def _parts(batch: Feeds) -> Sequence[Feeds]:
    number = len(next(iter(batch.values())))
    starts = range(0, min(number, SAMPLES), TOGETHER)
    return [{name: array[start : start + TOGETHER] for name, array in batch.items()} for start in starts]
