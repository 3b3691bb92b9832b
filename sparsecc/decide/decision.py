"""What a compile decides: what is kept of every tensor and axis, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsecc.calibrate.layer_statistics import RUN_FACTS
from sparsecc.compilation import Compilation
from sparsecc.cost import summary
from sparsecc.criteria import criterion_named
from sparsecc.decide.channels import POOR, Choice, choose, criterion_for
from sparsecc.decide.layers import Depth
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group, find_groups
from sparsecc.plan import Plan, make_plan
from sparsecc.reference.pruned_io import Narrowed


@dataclass(frozen=True)
class Decision:
    """What a compile decided, and what that costs: {"before", "after"} -> {"macs", "params"}."""

    groups: list[Group]
    choice: Choice
    plan: Plan
    costs: dict[str, dict[str, int]]
    layers: list[dict[str, Any]]


def decide(compilation: Compilation, analysis: Analysis, depth: Depth) -> Decision:
    """What is kept of the layers that are left, per tensor and axis, and what that costs."""
    options = compilation.options
    groups = find_groups(analysis, keep=depth.keep, only=depth.only, prune=options.prune)
    left = depth.ratio_left(options.ratio or 0.0)
    choice = depth.joined(choose(compilation, analysis, groups, left), options.ratio)
    note_choice(compilation, choice)
    is_free = any(g.is_free for g in groups) or any(b.is_free for b in depth.blocks)
    warn_of_choice(compilation, choice, is_free)
    costs = summary.costs(analysis, choice.keep)
    costs["before"].update(depth.before)
    facts = {
        **compilation.identity,
        "nodes": len(analysis.model.graph) - depth.added + len(depth.nodes),
        "params": costs["before"]["params"],
        "macs": costs["before"]["macs"],
    }
    compilation.narrowed = Narrowed.of(analysis, choice.keep)
    plan = make_plan(analysis, groups, choice.keep, facts)
    plan.groups += depth.rows(len(groups))
    plan.dropped_nodes = list(depth.nodes)
    plan.tokens = dict(depth.tokens)
    plan.io = compilation.narrowed.to_json()
    layers = depth.dense_rows(summary.layers(analysis, choice.keep))
    return Decision(groups, choice, plan, costs, layers)


def note_choice(compilation: Compilation, choice: Choice) -> None:
    """How slots were chosen, for the report."""
    if choice.calibration:
        is_timed = compilation.options.measure
        told = {k: v for k, v in choice.calibration.items() if is_timed or k not in RUN_FACTS}
        compilation.note("calibrate", told)
    if choice.method:
        compilation.note("choose", {**choice.method, "predicted_error": choice.predicted})


def warn_of_choice(compilation: Compilation, choice: Choice, is_free: bool) -> None:
    """A warning where the curves foresee a poor result, and where what was asked for could not be done."""
    options, warnings = compilation.options, compilation.warnings
    if choice.advised is not None:
        kept = f"at ratio {choice.advised:g} it is below {POOR:g}" if choice.advised else "less is advised"
        more = "" if options.recover == "distill" else "; --recover distill regains part of it"
        warnings.append(f"ratio {choice.asked:g} is predicted to change outputs a lot: {kept}{more}")
    if compilation.general is not None and not criterion_named(criterion_for(options)).needs_general:
        warnings.append(f"--calib-general was not used: criterion {options.criterion} looks at one set")
    if not is_free and options.ratio:
        warnings.append("nothing in this model can be removed: see what is pinned and why")
    elif not choice.reached:
        most = f"{choice.removed:.3f} of the {options.metric} is the most that can go"
        warnings.append(f"ratio {options.ratio:g} was not reached: {most}")
