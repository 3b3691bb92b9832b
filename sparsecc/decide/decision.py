"""What a compile decides: what is kept of every tensor and axis, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsecc.calibrate.layer_statistics import RUN_FACTS
from sparsecc.compilation import Compilation
from sparsecc.cost import summary
from sparsecc.criteria import criterion_named
from sparsecc.decide.cache_budget import within_cache
from sparsecc.decide.channels import Choice, choose, criterion_for
from sparsecc.decide.layers import Depth
from sparsecc.decide.limits import limits_of
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group, find_groups
from sparsecc.loss.measure import quality
from sparsecc.plan import Plan, make_plan
from sparsecc.reference.pruned_io import Narrowed

BEYOND = 0.05
"""By how much more than asked may go before that is said."""


@dataclass(frozen=True)
class Decision:
    """What a compile decided, and what that costs: {"before", "after"} -> {"macs", "params"}."""

    groups: list[Group]
    choice: Choice
    plan: Plan
    costs: dict[str, dict[str, int]]
    layers: list[dict[str, Any]]
    counted: dict[str, Any]
    """What the figures hold for: the input sizes of one sample, and layers of unknown size."""


def decide(compilation: Compilation, analysis: Analysis, depth: Depth) -> Decision:
    """What is kept of the layers that are left, per tensor and axis, and what that costs."""
    options = compilation.options
    groups = find_groups(analysis, keep=depth.keep, only=depth.only, prune=options.prune)
    left = depth.ratio_left(options.ratio or 0.0)
    limits = limits_of(compilation, analysis, groups, depth.patterns)
    limits = within_cache(compilation, analysis, groups, depth.dead, limits)
    choice = depth.joined(choose(compilation, analysis, groups, left, depth.dead, limits), options.ratio)
    note_choice(compilation, choice)
    foretell(compilation, choice)
    is_free = any(g.is_free for g in groups) or any(b.is_free for b in depth.blocks)
    warn_of_choice(compilation, choice, is_free)
    costs = summary.costs(analysis, choice.keep)
    costs["before"].update(depth.before)
    if "kv" in costs["before"]:
        costs["after"].setdefault("kv", 0)  # every attention with a cache may be gone
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
    plan.repaired = sorted(depth.absorbed)
    plan.io = compilation.narrowed.to_json()
    layers = depth.dense_rows(summary.layers(analysis, choice.keep))
    return Decision(groups, choice, plan, costs, layers, summary.counted_at(analysis))


def note_choice(compilation: Compilation, choice: Choice) -> None:
    """How slots were chosen, for the report."""
    if choice.calibration:
        is_timed = compilation.options.measure
        told = {k: v for k, v in choice.calibration.items() if is_timed or k not in RUN_FACTS}
        compilation.note("calibrate", told)
    if choice.method:
        facts = {**choice.method, "predicted_error": choice.predicted}
        compilation.note("choose", facts | ({} if choice.advised is None else {"advised": choice.advised}))


def foretell(compilation: Compilation, choice: Choice) -> None:
    """Say what loss curves or a rehearsal foresee, before the long work that would only find it out.

    Curves do not know what options take of single groups besides, nor what repair gives back.
    """
    options, loss = compilation.options, choice.predicted if choice.rehearsed is None else choice.rehearsed
    if loss is None or options.names_slots:
        return
    by = "a rehearsal" if choice.rehearsed is not None else "loss curves"
    is_repaired = choice.rehearsed is None and options.samples is not None and options.recover != "none"
    before = ", before repair, which gives back an unknown part" if is_repaired else ""
    text = f"forecast by {by}: outputs about {quality(loss):.0f} dB at ratio {choice.asked:g}{before}"
    if choice.advised is not None:
        text += f"; {advised(choice)}"
    compilation.say(text, forecast={"quality_db": quality(loss), "by": by, "advised_ratio": choice.advised})


def advised(choice: Choice) -> str:
    """What to do instead, where the curves foresee a poor result."""
    ratio = choice.advised
    return f"take --ratio {ratio:g} or less" if ratio else "any ratio costs much, try --quantize int8"


def warn_of_choice(compilation: Compilation, choice: Choice, is_free: bool) -> None:
    """A warning where what was asked for could not be done."""
    options, warnings = compilation.options, compilation.warnings
    if compilation.general is not None and not criterion_named(criterion_for(options)).needs_general:
        warnings.append(f"--calib-general was not used: criterion {options.criterion} looks at one set")
    if not is_free and options.ratio:
        warnings.append("nothing in this model can be removed: see what is pinned and why")
    elif not choice.reached:
        most = f"{choice.removed:.3f} of the {options.metric} is the most that can go"
        warnings.append(f"ratio {options.ratio:g} was not reached: {most}")
    elif options.ratio and choice.removed - options.ratio > BEYOND:
        named = ", ".join(options.names_slots)
        why = (
            f"{named} alone takes more"
            if named
            else "groups go in the steps that kernels like, --align 1 in single ones"
        )
        warnings.append(f"ratio {options.ratio:g} became {choice.removed:.3f} of the {options.metric}: {why}")
