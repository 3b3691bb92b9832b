"""What `report.html` shows, gathered from the JSON of a compile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsecc.report import numbers
from sparsecc.report.charts import Distributions, Plot, distributions
from sparsecc.report.checks import Check, checks, text
from sparsecc.report.layer_bars import LayerBar, layer_bars, times_note
from sparsecc.report.summary import (
    TOTALS,
    Reason,
    clocked_rows,
    headline,
    held_for,
    pair,
    prompt_rows,
    reasons,
    speedup_text,
    unproved,
)
from sparsecc.report.trials import trial_flags, trial_rows, trials_plot
from sparsecc.report.verdict import verdict

LAYERS_OPEN = 60
"""Layers shown at once; the rest fold away on the screen."""
CLOCKS = {
    "cpu": "process CPU time, which other processes do not disturb",
    "wall": "wall clock",
    "gpu": "time on the GPU",
}
FORESEEN = {"bytes": "the graph before it is built", "float_bytes": "the same in float"}
"""Sizes that quantization foresees, which are not quite those of the file that a runtime's optimizer leaves."""


@dataclass(frozen=True)
class Card:
    """One number of the headline."""

    label: str
    value: str
    note: str
    mood: str = ""


@dataclass(frozen=True)
class CensusRow:
    """How many kernels of one kind the runtime picked, before and after; None where it was not looked at."""

    kernel: str
    before: int | None
    after: int | None


@dataclass(frozen=True)
class CompilePage:
    """Everything the template draws."""

    title: str
    headline: str
    setting: str
    """Target, device, batch and versions in a line."""
    judgement: str
    """What must be said of the result before anything else; "" where it may be used as it is."""
    mood: str
    unproved: str
    cards: Sequence[Card]
    layers: Sequence[LayerBar]
    layers_open: int
    times_note: str
    """How the times of layers were measured; "" where they were not."""
    held_for: Sequence[str]
    latency: Distributions | None
    latency_rows: Sequence[tuple[str, str, str, str]]
    latency_note: str
    trials: Sequence[tuple[str, str, str, str, str]]
    trials_plot: Plot | None
    checks: Sequence[Check]
    clock: str
    census: Sequence[CensusRow]
    in_float: Sequence[Mapping[str, Any]]
    misaligned: int
    pinned: Sequence[Reason]
    skipped: Sequence[Mapping[str, Any]]
    passes: Sequence[tuple[str, str, str]]
    warnings: Sequence[str]
    facts: Sequence[tuple[str, str]]
    recipe: str
    command: str

    @classmethod
    def of(cls, report: Mapping[str, Any], plan: Mapping[str, Any], recipe: str, command: str) -> CompilePage:
        """Gather it. Sections without data stay empty and are not drawn."""
        latency = report.get("latency") or {}
        census = report.get("census") or {}
        said = verdict(report)
        judgement, mood = said.sentence
        return cls(
            title=str((report.get("model") or {}).get("name") or "compiled model"),
            headline=f"{headline(report)}; {said.lost}",
            setting=_setting(report),
            judgement=judgement,
            mood=mood,
            unproved=unproved(report),
            cards=_cards(report),
            layers=layer_bars(report),
            layers_open=LAYERS_OPEN,
            times_note=times_note(report),
            held_for=held_for(report),
            latency=_curves(latency),
            latency_rows=[
                *clocked_rows(latency, ("p50", "p90", "p99", "mean"))[0],
                *prompt_rows(report),
            ],
            latency_note=speedup_text(report),
            trials=[
                (*row, flags) for row, flags in zip(trial_rows(report), trial_flags(report), strict=True)
            ],
            trials_plot=trials_plot(report),
            checks=checks(report),
            clock=CLOCKS.get(latency.get("clock", ""), "time on the device"),
            census=_census(census),
            in_float=(census.get("after") or {}).get("in_float") or (),
            misaligned=len((census.get("after") or {}).get("misaligned") or ()),
            pinned=reasons(report.get("pinned") or (), "what"),
            skipped=report.get("skipped") or (),
            passes=[_pass(one) for one in report.get("passes") or ()],
            warnings=[str(warning) for warning in report.get("warnings") or ()],
            facts=_facts(report, plan),
            recipe=recipe,
            command=command,
        )


def _setting(report: Mapping[str, Any]) -> str:
    """`onnxruntime on local (AMD EPYC, x86_64), 1 thread; a run of image 50x1x16x16; sparsecc 0.2.0, …; 2026-12-01`"""
    target, device = report.get("target") or {}, report.get("device") or {}
    about = ", ".join(str(device[key]) for key in ("processor", "machine") if device.get(key))
    where = f"{target.get('name', '')} on {device.get('name', 'local')}{f' ({about})' if about else ''}"
    threads = f", {numbers.plural(target['threads'], 'thread')}" if target.get("threads") else ""
    run = report.get("measured_at")
    versions = report.get("versions") or {}
    told = ", ".join(f"{name} {versions[name]}" for name in ("sparsecc", "onnxruntime") if name in versions)
    ran = f"a run of {numbers.shapes(run)}" if run else ""
    parts = (f"{where}{threads}", ran, told, str(report.get("date", "")))
    return "; ".join(part for part in parts if part)


def _cards(report: Mapping[str, Any]) -> list[Card]:
    cards = []
    speedup = (report.get("latency") or {}).get("speedup")
    if speedup:
        low, high = speedup["ci95"]
        mood = "good" if low > 1 else "bad" if high < 1 else ""
        cards.append(
            Card("speed", f"{speedup['estimate']:.2f}×", f"95 % interval {low:.2f} to {high:.2f}", mood)
        )
    for label, key, written in TOTALS:
        before, after = pair(report, key)
        if before and after is not None:
            note = f"{written(before)} → {written(after)}"
            cards.append(Card(label, numbers.change(before, after), note, "good" if after < before else ""))
        elif after is not None:
            cards.append(Card(label, written(after), "beside the ONNX file that it was built from"))
    if accuracy := report.get("accuracy"):
        drop = f"{accuracy['before']:.4g} → {accuracy['after']:.4g}"
        cards.append(Card(accuracy.get("metric") or "accuracy", f"{accuracy['after']:.4g}", drop))
    return cards


def _curves(latency: Mapping[str, Any]) -> Distributions | None:
    samples = latency.get("samples_ms") or {}
    clock = latency.get("clock", "wall")
    return distributions([(side, side, samples.get(f"{clock}_{side}") or ()) for side in ("before", "after")])


def _census(census: Mapping[str, Any]) -> list[CensusRow]:
    before, after = ((census.get(side) or {}).get("kernels") for side in ("before", "after"))
    kernels = {**(before or {}), **(after or {})}
    rows = [
        CensusRow(
            kernel,
            before.get(kernel, 0) if before is not None else None,
            after.get(kernel, 0) if after is not None else None,
        )
        for kernel in kernels
    ]
    return sorted(rows, key=lambda row: (-(row.after or 0), -(row.before or 0), row.kernel))


def _pass(one: Mapping[str, Any]) -> tuple[str, str, str]:
    foreseen = FORESEEN if str(one["name"]).startswith("quantize") else {}
    facts = [
        f"{foreseen[key]}: {numbers.size(float(value))}"
        if key in foreseen
        else f"{key.replace('_', ' ')}: {text(value)}"
        for key, value in (one.get("facts") or {}).items()
        if isinstance(value, str | int | float | bool)
    ]
    seconds = one.get("seconds")
    return str(one["name"]), "" if seconds is None else f"{seconds:.2f} s", ", ".join(facts)


def _facts(report: Mapping[str, Any], plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where it ran and with what: the target, the device, versions, the input's hash."""
    rows = []
    for part in ("target", "device", "versions"):
        for key, value in (report.get(part) or {}).items():
            if isinstance(value, str | int | float | bool) and value != "":
                rows.append((f"{part}: {key.replace('_', ' ')}" if part != "versions" else key, text(value)))
    sha256 = (plan.get("model") or {}).get("sha256")
    return [*rows, ("input sha256", str(sha256))] if sha256 else rows
