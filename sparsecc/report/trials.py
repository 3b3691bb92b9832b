"""The trials of a search to a goal: a small table, and speed against what is left of the outputs as a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsecc.decide.goals import words_of
from sparsecc.report import numbers
from sparsecc.report.charts import Dot, Plot, original, plot

Trials = Sequence[Mapping[str, Any]]
SCORE, QUALITY = "score of --evaluate", "worst part of the outputs, dB"


def trial_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(levers, speed or size, quality, `chosen` or nothing) of each trial, the gentlest first."""
    return [
        (name_of(trial), _cost(trial), _kept(trial), "chosen" if _is_chosen(trial, report) else "")
        for trial in _ordered(report)
    ]


def trial_flags(report: Mapping[str, Any]) -> list[str]:
    """What makes each trial again, in the order of `trial_rows`: flags beside those of the samples."""
    return [flags_of(trial) for trial in _ordered(report)]


def flags_of(trial: Mapping[str, Any]) -> str:
    """`--ratio 0.31 --quantize int8`."""
    words = [f"--ratio {trial['ratio']:.4g}"]
    for name, value in (trial.get("levers") or {}).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, Mapping):
            words += [f"{flag.removesuffix('s')} {key}={one}" for key, one in value.items()]
        else:
            words.append(f"{flag} {','.join(value) if isinstance(value, list | tuple) else value}")
    return " ".join(words)


def trials_plot(report: Mapping[str, Any]) -> Plot | None:
    """Speed against what is left, the dense model beside the trials; None with fewer than two that were measured."""
    trials = [t for t in report.get("trials") or () if t.get("speedup") and _left(t) is not None]
    if len(trials) < 2:
        return None
    dots = [
        Dot(
            t["speedup"],
            _left(t) or 0.0,
            "after" if _is_chosen(t, report) else "before",
            f"{name_of(t)}: {_cost(t)}, {_kept(t)}",
            name_of(t),
            f"trial-{_ordered(report).index(t)}",
        )
        for t in trials
    ]
    dense = trials[0].get("dense_score")
    dots.append(original(1.0, dense, [dot.y for dot in dots]))
    front: list[Dot] = []
    for dot in sorted(dots, key=lambda d: -d.x):
        if not front or dot.y > front[-1].y:
            front.append(dot)
    label = SCORE if dense is not None else QUALITY
    return plot("times as fast as the original", label, dots, front)


def _ordered(report: Mapping[str, Any]) -> Trials:
    trials: Trials = report.get("trials") or ()
    return sorted(trials, key=lambda t: t.get("speedup") or t["dense_bytes"] / max(t["bytes"], 1))


def name_of(trial: Mapping[str, Any]) -> str:
    """`ratio 0.3, int8`."""
    levers = words_of(trial.get("levers") or {})
    return ", ".join(
        [*([f"ratio {trial['ratio']:.2g}"] if trial["ratio"] > 0 or not levers else []), *levers]
    )


def _is_chosen(trial: Mapping[str, Any], report: Mapping[str, Any]) -> bool:
    chosen = report.get("chosen") or {}
    levers = dict(trial.get("levers") or {})
    return bool(chosen) and chosen["ratio"] == trial["ratio"] and dict(chosen.get("levers") or {}) == levers


def _left(trial: Mapping[str, Any]) -> float | None:
    value = trial.get("score", trial.get("quality_db"))
    return None if value is None else float(value)


def _cost(trial: Mapping[str, Any]) -> str:
    return f"{trial['speedup']:.2f}x" if trial.get("speedup") else numbers.size(trial["bytes"])


def _kept(trial: Mapping[str, Any]) -> str:
    kept = [f"{trial['score']:.4g}"] if trial.get("score") is not None else []
    if trial.get("nats") is not None:
        return ", ".join([*kept, f"{trial['nats']:.3f} nats"])
    kept += [f"{trial['quality_db']:.1f} dB"] if trial.get("quality_db") is not None else []
    return ", ".join(kept) or "not judged"
