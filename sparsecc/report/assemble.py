"""The report: everything measured in this run, as plain data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsecc.compilation import Compilation
from sparsecc.decide.decision import Decision, advised
from sparsecc.decide.goals import judge, words_of_serving
from sparsecc.graph.groups import pinned_reasons
from sparsecc.report.types_used import advice_for, larger_than, outside_blocks, slower_than, type_warnings
from sparsecc.report.verdict import verdict
from sparsecc.system.machine import device
from sparsecc.system.versions import versions

if TYPE_CHECKING:
    from sparsecc.decide.channels import Choice

SCHEMA = "sparsecc.report/1"
NAMED = ("ratio_for", "at_least", "at_most", "protect", "slots", "plan")
"""Options of single groups, told where they were given."""


def report(
    compilation: Compilation,
    decision: Decision,
    verification: Mapping[str, Any],
    measured: Mapping[str, Any],
    accuracy: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """`report.json`."""
    options, plan, choice = compilation.options, decision.plan, decision.choice
    made: dict[str, Any] = {
        "schema": SCHEMA,
        "model": {"name": (compilation.original or compilation.file).name, **plan.model},
        "asked": {
            "ratio": options.ratio,
            "metric": options.metric,
            "quantize": options.quantize,
            "sparsity": options.sparsity,
            "tokens": options.tokens,
            "recover": options.recover,
            **{name: value for name in NAMED if (value := getattr(options, name))},
        },
        "removed": {"share": choice.removed, "metric": options.metric, "reached": choice.reached},
        "verification": dict(verification),
        "fidelity": measured.get("fidelity", {}),
        "target": {"name": options.target, "threads": options.threads},
        "device": device(),
        "versions": versions(),
        "passes": [record.to_json() for record in compilation.records],
        "groups": [g for g in plan.groups if g["pinned"] is None],
        "layers": decision.layers,
        "counted": decision.counted,
        **({"tokens": plan.tokens} if plan.tokens else {}),
        **({"io": resized(compilation)} if plan.io else {}),
        "pinned": pinned_reasons(decision.groups),
        "skipped": [{"pass": name, "where": s.where, "reason": s.reason} for name, s in compilation.remarks],
        "warnings": [
            *compilation.warnings,
            *(doubts(compilation, measured) if measured else forebodings(choice)),
        ],
    }
    made |= {side: _totals(side, decision, measured) for side in ("before", "after")}
    told = (
        "latency",
        "prompt",
        "footprint",
        "throughput",
        "parts",
        "census",
        "unmeasured",
        "next_steps",
        "text",
    )
    made |= {name: measured[name] for name in told if name in measured}
    if (pair := measured.get("layers")) is not None:
        made |= {"layers": pair.beside(decision.layers), "layer_times": pair.facts()}
    if options.measure and measured:
        made["date"] = time.strftime(
            "%Y-%m-%d", time.gmtime()
        )  # a report without times is the same every day
    if built := measured.get("built"):
        made["build"] = dict(built)
        if "plan_bytes" in built:
            made["after"]["engine_bytes"] = built["plan_bytes"]
    if accuracy is not None:
        made["accuracy"] = dict(accuracy)
    if compilation.goal is not None:
        _settle_goal(made, compilation.goal, measured)
    if measured:
        made["measured_at"] = {name: list(array.shape) for name, array in compilation.timed.items()}
        made["verdict"] = verdict(made).to_json()
    return made


def resized(compilation: Compilation) -> list[dict[str, Any]]:
    """Inputs and outputs that have other sizes now: {"name", "cache", "axes": {axis: [before, after]}}."""
    narrowed, shapes = compilation.narrowed, {}
    for arrays in (compilation.feeds[0], compilation.expected[0]):
        shapes.update({name: np.shape(array) for name, array in arrays.items()})
    return [
        {
            "name": name,
            "cache": name in compilation.caches,
            "axes": {str(axis): [shapes[name][axis], len(left)] for axis, left in axes.items()},
        }
        for side in (narrowed.inputs, narrowed.outputs)
        for name, axes in side.items()
    ]


def _totals(side: str, decision: Decision, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What a whole model costs: work, parameters, and as far as they were measured, bytes on disk and in memory."""
    totals: dict[str, Any] = dict(decision.costs[side])
    if sizes := measured.get("bytes"):
        totals["bytes"] = sizes[side]
    if footprints := measured.get("footprint"):
        totals["memory_bytes"] = footprints[side]["model_memory_bytes"]
    return totals


def forebodings(choice: Choice) -> list[str]:
    """What a dry run says of quality: nothing was made that could be judged."""
    return [] if choice.advised is None else [f"a poor result is foreseen: {advised(choice)}"]


def doubts(compilation: Compilation, measured: Mapping[str, Any]) -> list[str]:
    """What of the asked types and combinations did not come to pass. What was lost is the verdict's to say."""
    both = measured.get("census") or {}
    census = both.get("after")
    asked, rows = compilation.options.type, [record.to_json() for record in compilation.records]
    found = type_warnings(asked, rows, census, compilation.remarks)
    found += outside_blocks(both.get("before"), census)
    for part, speedup in (measured.get("parts") or {}).items():
        found += slower_than(f"the {part} model alone", speedup, "leave the rest out")
    if speedup := (measured.get("latency") or {}).get("speedup"):
        found += slower_than("the original", speedup, advice_for(compilation.options.quantize))
    if "weights" in measured:
        found += larger_than(measured["bytes"], measured["weights"])
    return found


def _settle_goal(made: dict[str, Any], goal: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    """What was asked for beside what the final measurement found, every trial, and what stands in the way."""
    made["asked"] |= goal["asked"]
    made["trials"], made["chosen"] = list(goal["trials"]), goal["chosen"]
    made["warnings"] = [*made["warnings"], *goal["notes"]]
    if measured:
        made["goal"] = judge(goal, measured, made["after"].get("kv"))
        if told := made["goal"].get("foretold"):
            reached = [f"{told['speedup']:.2f}x"]
            if "serving" in told:
                reached.append(words_of_serving(told["serving"]))
            elif "ms" in told:
                reached.append(f"{told['ms']:.3g} ms")
            speed = f"{', '.join(reached)} is foretold by {told['by']}, not measured"
            made["warnings"].append(
                f"{speed}: measure it where {made['target']['name']} runs, with sparsecc profile"
            )
        elif not made["goal"]["met"] and not goal["notes"]:
            made["warnings"].append("the final measurement missed the goal by over 5 %: compile once more")
