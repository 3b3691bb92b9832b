"""`prune`: a torch module in, a smaller one that trains on out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import onnx_ir as ir
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from sparsecc.allocators import Problem, allocator_named
from sparsecc.axes.algebra import Atom
from sparsecc.decide.data_free import keep_of
from sparsecc.decide.limits import Limits, patterns_of
from sparsecc.errors import GoalError, InputError, InternalError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group, find_groups, known_names
from sparsecc.graph.patterns import require_matches
from sparsecc.options import CompileOptions
from sparsecc.torch.analysis import analyse
from sparsecc.torch.graph_form import graph_form
from sparsecc.torch.layers import Edit, apply_edits, attribute_edits
from sparsecc.torch.limits import limits_of
from sparsecc.torch.masked import difference, masked_outputs, tensors_of
from sparsecc.torch.plan import TorchPlan, changes_of, described, kept_slots, replace_tensors
from sparsecc.torch.program.exported import Program, renew_spectral_norms, trace
from sparsecc.torch.program.failures import TORCH_FAILURES, made_by_us, reason_of, run_in_eval
from sparsecc.torch.program.reparametrized import composed_weights, copied, vectors_kept
from sparsecc.torch.scores.gradients import GRADIENT_CRITERIA, gradient_scores
from sparsecc.torch.weight_scores import WEIGHT_CRITERIA, candidates, cost_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

TOLERANCE = 1e-4
FORMS = ("auto", "module", "graph")
_PLAN = "sparsecc_plan"

Loss = Callable[[nn.Module, Any], Tensor]
"""(module, batch) -> a scalar to differentiate."""


@dataclass
class Study:
    """A module with its groups; several decisions can be taken on it."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    program: Program
    analysis: Analysis
    groups: list[Group]
    options: CompileOptions
    limits: Limits = field(default_factory=Limits)
    said: tuple[Mapping[str, Any], TorchPlan | None] = ({}, None)
    """The `slots` and the plan that `limits` were made of."""

    @property
    def free(self) -> list[Group]:
        return [g for g in self.groups if g.is_free]


def study(
    module: nn.Module,
    example_inputs: Any,
    *,
    criterion: str = "auto",
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    kinds: Sequence[str] = ("channels", "heads", "head_dims"),
    slots: Mapping[str, Any] | None = None,
    plan: TorchPlan | Mapping[str, Any] | None = None,
    **options: Any,
) -> Study:
    """Export a module and find its groups of coupled slots, with what is said of single ones."""
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    own = criterion if criterion in WEIGHT_CRITERIA else "auto"
    given = CompileOptions(criterion=own, keep=tuple(keep), only=tuple(only), prune=tuple(kinds), **options)
    program = trace(module, args, kwargs, dynamic_shapes)
    with made_by_us(module, args, kwargs or {}):
        analysis = analyse(program)
    before = TorchPlan.of_json(plan) if isinstance(plan, Mapping) else plan
    said = slots or {}, before
    return _grouped(Study(module, args, dict(kwargs or {}), program, analysis, [], given, said=said))


def _grouped(found: Study) -> Study:
    """With the groups of its analysis, and what is said of them."""
    given, analysis = found.options, found.analysis
    groups = find_groups(analysis, keep=given.keep, only=given.only, prune=given.prune)
    patterns = patterns_of(given)
    asked = {"keep": given.keep, "only": given.only, **patterns}
    require_matches(asked, known_names(analysis, groups), len(groups), spelt="")
    limits = limits_of(found.module, found.program, analysis, groups, patterns, *found.said)
    return replace(found, groups=groups, limits=limits)


class Options(TypedDict, total=False):
    """What `study`, `prune` and `Pruner` take besides their own arguments.

    `metric` is macs, params or channels; `align` "auto" (the multiples that the target's kernels like) or a
    number; `keep` and `only` are shell patterns over parameter names, or names of modules; `kinds` are of channels,
    heads, head_dims and experts; `kwargs` are keyword arguments of forward; `dynamic_shapes` as of torch.export.

    `ratio_for`, `at_least`, `at_most` and `protect` say of the groups that a pattern names which share of them goes,
    how many slots (or which share of them) stay at least and at most, and which slots do. `slots` says by parameter,
    by `parameter:axis` or by module which slots stay: their numbers, a mask of the axis, or one of all elements.
    `plan` is that of another pruning of the same module: what it removed goes, and more where `ratio` says so. With
    `ratio=0` nothing else goes (docs/slots.md).
    """

    metric: str
    allocator: str
    align: str | int
    target: str
    keep: Sequence[str]
    only: Sequence[str]
    kinds: Sequence[str]
    ratio_for: Mapping[str, float]
    at_least: Mapping[str, float | int]
    at_most: Mapping[str, float | int]
    protect: Mapping[str, Sequence[int]]
    slots: Mapping[str, Any]
    plan: TorchPlan | Mapping[str, Any]
    kwargs: Mapping[str, Any] | None
    dynamic_shapes: Any
    seed: int


def prune(
    module: nn.Module,
    example_inputs: Any,
    *,
    ratio: float = 0.5,
    criterion: str = "auto",
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    form: str = "auto",
    inplace: bool = False,
    **options: Unpack[Options],
) -> nn.Module:
    """A smaller module that trains on, with `ratio` of the metric removed.

    `example_inputs` is a tensor or the tuple of positional arguments (a batch of two or more keeps the batch
    free in the graph form). The user's own modules are kept where their forward allows it (`form="module"`),
    otherwise the exported graph is returned (`form="graph"`); "auto" takes the first that computes what the
    dense module does with the removed slots without effect, to 1e-4. With `inplace`, `module` itself is
    changed. The criteria of GRADIENT_CRITERIA need `batches` and `loss(module, batch)`.

    InputError: torch.export cannot follow the module, or an option is wrong. GoalError: the ratio is out of
    reach, or the result differs from the masked dense module.
    """
    _check(form, inplace, criterion)
    found = study(module, example_inputs, criterion=criterion, **options)
    batches = list(batches) if isinstance(batches, Iterator) else batches  # they may be needed twice

    def score(of: Study) -> dict[Atom, np.ndarray] | None:
        return fresh_scores(of, criterion, batches, loss)

    scores = score(found)
    masks, plan = decide(found, ratio, scores)
    if not plan.reached:
        raise GoalError(
            f"{type(module).__name__}: only {plan.removed:.1%} of the {plan.metric} can go, not {ratio:.1%}"
            f"{_what_stays(found)}: lower the ratio or free more groups"
        )
    small = None
    if form != "graph":
        small = _module_form(found, ratio, scores, inplace=inplace)
        if small is None and (even := _with_equal_pieces(found)) is not None:
            small = _module_form(even, ratio, score(even), inplace=inplace)
    return realise(found, masks, plan, form=form, inplace=inplace) if small is None else small


_NAMED = 3
"""Pins that an error names."""


def _what_stays(found: Study) -> str:
    """The pinned groups that own the largest parameters, with their reasons."""
    sizes = {name: tensor.numel() for name, tensor in found.module.state_dict().items()}
    by_reason: dict[str, tuple[int, str]] = {}
    for group in found.groups:
        owned = [(sizes.get(name, 0), name) for name, _ in group.members]
        if group.pinned and owned:
            by_reason[group.pinned] = max(by_reason.get(group.pinned, (0, "")), max(owned))
    largest = sorted(by_reason.items(), key=lambda item: -item[1][0])[:_NAMED]
    return "".join(f"; '{name}' stays ({reason})" for reason, (_, name) in largest)


def _check(form: str, inplace: bool, criterion: str) -> None:
    if form not in FORMS:
        raise InputError(f"unknown form '{form}': choose from {', '.join(FORMS)}")
    if inplace and form == "graph":
        raise InputError("inplace needs the user's own modules: use form='module' or 'auto'")
    known = (*WEIGHT_CRITERIA, *GRADIENT_CRITERIA)
    if criterion not in known:
        raise InputError(f"unknown criterion '{criterion}': choose from {', '.join(known)}")


def fresh_scores(
    found: Study, criterion: str, batches: Iterable[Any] | None, loss: Loss | None
) -> dict[Atom, np.ndarray] | None:
    """Scores from gradients; None for a criterion that looks at weights alone."""
    if criterion not in GRADIENT_CRITERIA:
        return None
    return gradient_scores(
        found.module, found.program.names, found.analysis, found.free, criterion, batches, loss
    )


_FEWER: tuple[frozenset[str], ...] = (frozenset(), frozenset({"head_dim"}), frozenset({"head_dim", "head"}))
"""Kinds of groups left whole, in turn: a user's own attention rarely allows heads of another width."""


def _module_form(
    found: Study, ratio: float, scores: Mapping[Atom, np.ndarray] | None, *, inplace: bool
) -> nn.Module | None:
    """The user's own modules, smaller, with as many kinds of groups pruned as their forward allows."""
    present = {g.kind for g in found.free}
    for spared in _FEWER:
        if spared and (not spared & present or _are_named(found, spared)):
            continue
        fewer = replace(found, groups=[_spared(g, spared) for g in found.groups])
        masks, plan = decide(fewer, ratio, scores)
        if not plan.reached:
            continue
        try:
            return realise(fewer, masks, plan, form="module", inplace=inplace)
        except GoalError:
            continue
    return None


def _with_equal_pieces(found: Study) -> Study | None:
    """The same, where what forward cuts into equal pieces stays equal; None where that changes nothing."""
    even = replace(found, analysis=analyse(found.program, equal_pieces=True))
    even = _grouped(even)
    return even if len(even.free) < len(found.free) else None


def _are_named(found: Study, kinds: frozenset[str]) -> bool:
    """Whether the user said of groups of these kinds that slots of them go."""
    of = found.limits.of
    said = [of[g.atom] for g in found.free if g.kind in kinds and g.atom in of]
    return any(bounds.gone.any() or bounds.most is not None for bounds in said)


def _spared(group: Group, kinds: frozenset[str]) -> Group:
    if not group.is_free or group.kind not in kinds:
        return group
    return replace(group, pinned=f"a {group.kind} of another size does not fit the module's own forward")


def decide(
    found: Study, ratio: float, scores: Mapping[Atom, np.ndarray] | None = None
) -> tuple[dict[Atom, np.ndarray], TorchPlan]:
    """Keep-masks for a ratio, and the plan of what they mean for every tensor."""
    cost = cost_of(found.analysis, found.free, found.options.metric)
    offered = candidates(found.analysis, found.free, found.options, scores, found.limits, _composed(found))
    if ratio == 0 or not offered:
        named = {c.atom: c.best(c.size) for c in offered if c.gone is not None}
        return named, planned(found, named, reached=ratio == 0)
    problem = Problem(offered, cost, (1 - ratio) * cost.total({}), seed=found.options.seed)
    selection = allocator_named(found.options.allocator).allocate(problem)
    masks = keep_of(offered, selection)
    return masks, planned(found, masks, reached=selection.reached)


def _composed(found: Study) -> dict[ir.Value, np.ndarray | None]:
    """What weights are scored by instead of the tensors that a weight norm computes them from."""
    made = composed_weights(found.module)
    return {
        value: None if weight is None else TorchTensor(weight).numpy()
        for value in found.program.model.graph.initializers.values()
        for name in found.program.names[value.name or ""]
        if name in made
        for weight in [made[name]]
    }


def planned(found: Study, masks: Mapping[Atom, np.ndarray], *, reached: bool = True) -> TorchPlan:
    """What keep-masks mean for every tensor, and what they leave of the metric."""
    cost = cost_of(found.analysis, found.free, found.options.metric)
    left = cost.total({atom: int(slots.sum()) for atom, slots in masks.items()})
    tensors = kept_slots(found.program, found.analysis, masks)
    tensors |= vectors_kept(found.module, tensors)
    rows = described(found.groups, masks)
    return TorchPlan(tensors, rows, found.options.metric, cost.total({}), left, reached)


def realise(
    found: Study, masks: dict[Atom, np.ndarray], plan: TorchPlan, *, form: str = "auto", inplace: bool = False
) -> nn.Module:
    """Remove what the masks say, physically, and check the result against the masked dense module.

    InternalError where the graph form is wrong; InputError for a module that nothing can be checked against.
    """
    name, reason = type(found.module).__name__, ""
    with made_by_us(found.module, found.args, found.kwargs):
        renew_spectral_norms(found.program, found.module)
        changes = changes_of(found.program, found.analysis, masks)
        wanted = masked_outputs(found.program, found.analysis, masks, found.args, found.kwargs)
    if form != "graph":
        small = copied(found.module)
        edits = attribute_edits(small, plan.tensors, changes)
        replace_tensors(small, plan.tensors)
        apply_edits(small, edits)
        error, reason = _error(small, found, wanted)
        if error <= TOLERANCE:
            plan = replace(plan, error=error, attributes=edits)
            return _in_place(found.module, plan, edits) if inplace else labelled(small, plan)
        if form == "module" or inplace:
            _require_repeatable(found)
            raise GoalError(
                f"{name}: its own forward does not allow these sizes ({reason}): "
                "use form='graph', or keep what it names"
            )
    with made_by_us(found.module, found.args, found.kwargs):
        graph = graph_form(found.program, plan.tensors, changes)
    graph.eval()
    error, failure = _error(graph, found, wanted)
    if error > TOLERANCE:
        _require_repeatable(found)
        raise InternalError(
            f"{name}: the pruned graph is wrong ({failure}): please report it with the module, or with the "
            "program that torch.export makes of it"
        )
    graph.train(found.module.training)
    return labelled(graph, replace(plan, form="graph", error=error, reason=reason))


def _require_repeatable(found: Study) -> None:
    """InputError for a module that answers NaN, or otherwise each time: nothing can be checked against it."""
    name, (first, second) = (
        type(found.module).__name__,
        (run_in_eval(found.module, found.args, found.kwargs) for _ in range(2)),
    )
    if any(bool(tensor.isnan().any()) for tensor in tensors_of(first)):
        raise InputError(
            f"{name} answers NaN on these example inputs: give inputs, or weights, that it has numbers for"
        )
    if difference(first, second) > TOLERANCE:
        raise InputError(
            f"{name} gives other outputs each time it runs on the same inputs: take the random "
            "numbers out of its forward in eval mode"
        )


def _in_place(module: nn.Module, plan: TorchPlan, edits: list[Edit]) -> nn.Module:
    replace_tensors(module, plan.tensors)
    apply_edits(module, edits)
    return labelled(module, plan)


def labelled(module: nn.Module, plan: TorchPlan) -> nn.Module:
    """The module, which carries its plan from here on."""
    module.__dict__[_PLAN] = plan
    return module


def plan_of(module: nn.Module) -> TorchPlan:
    """The plan by which a module was pruned. InputError for a module that `prune` did not make."""
    plan = module.__dict__.get(_PLAN)
    if not isinstance(plan, TorchPlan):
        raise InputError(f"{type(module).__name__} carries no plan: it was not made by sparsecc.torch.prune")
    return plan


def groups_of(module: nn.Module, example_inputs: Any, **options: Any) -> list[Group]:
    """The groups of coupled slots of a module, pinned ones with their reason. Options as for `prune`."""
    return study(module, example_inputs, **options).groups


def _error(small: nn.Module, found: Study, wanted: Any) -> tuple[float, str]:
    """(largest relative difference to the wanted outputs, why it is infinite or too large)."""
    try:
        outputs = run_in_eval(small, found.args, found.kwargs)
    except TORCH_FAILURES as e:
        return float("inf"), reason_of(e)
    error = difference(outputs, wanted)
    return error, "" if error <= TOLERANCE else f"outputs differ by {error:.1e}"
