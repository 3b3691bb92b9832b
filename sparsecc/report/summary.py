"""The few sentences that a report comes down to. Used by the terminal and by the page alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsecc.decide.goals import words_of_serving
from sparsecc.report import numbers

Written = Callable[[float | None], str]

TOTALS: tuple[tuple[str, str, Written], ...] = (
    ("MACs", "macs", numbers.count),
    ("parameters", "params", numbers.count),
    ("cache", "kv", numbers.size),
    ("size", "bytes", numbers.size),
    ("engine", "engine_bytes", numbers.size),
    ("memory", "memory_bytes", numbers.size),
)
"""Label, key in the report's `before` and `after`, and how the number is written. Only the compiled one has an
engine: its size stands beside that of the ONNX file and is not added to it; `cache` is of one position of one text."""


def pair(report: Mapping[str, Any], key: str) -> tuple[float | None, float | None]:
    """A total of the model before and after."""
    return (report.get("before") or {}).get(key), (report.get("after") or {}).get(key)


def headline(report: Mapping[str, Any]) -> str:
    """`2.31x faster (95 % interval 2.22 to 2.40), 51 % fewer MACs, 61 % fewer parameters`."""
    parts = [speedup_text(report)] if speedup_text(report) else []
    for label, key, _ in TOTALS[:2]:
        before, after = pair(report, key)
        if before and after is not None and after < before:
            parts.append(f"{100 * (1 - after / before):.0f} % fewer {label}")
    return ", ".join(parts) if parts else "nothing was removed"


def unproved(report: Mapping[str, Any]) -> str:
    """That the surgery is not proved, and why; "" where it is, or where no proof was asked for."""
    facts = report.get("verification") or {}
    return f"Not proved: {facts.get('reason')}." if facts.get("status", "proved") != "proved" else ""


def held_for(report: Mapping[str, Any]) -> list[str]:
    """The input sizes that figures hold for (`MACs are of one sample (image 1x3x224x224); latency and memory …`), and
    how it serves most."""
    counted = report.get("counted") or {}
    lines = [f"MACs are of one sample ({numbers.shapes(counted['inputs'])})"] if counted else []
    if lines and (report.get("latency") or report.get("footprint")):
        lines[0] += f"; latency and memory are of a run of {numbers.shapes(report.get('measured_at', {}))}"
    if remark := clocked_rows(report.get("latency") or {}, ())[1]:
        lines.append(remark)
    if served := report.get("throughput"):
        lines.append(f"It serves {words_of_serving(served['after'])}")
    lines += _came_quantized(report)
    if unknown := counted.get("unknown"):
        number = numbers.plural(len(unknown), "layer")
        lines.append(f"MACs of {number} of unknown size are not in the sum: {unknown[0]}")
    return lines


def _came_quantized(report: Mapping[str, Any]) -> list[str]:
    """That a model came in Q/DQ, and what of it is kept."""
    told = [
        one["facts"] for one in report.get("passes", ()) if (one.get("facts") or {}).get("lifted") is not None
    ]
    if not told:
        return []
    kept = f"its integers and {numbers.plural(told[0]['lifted'], 'range')} of it are kept"
    return [f"It came in Q/DQ: {kept}, and all figures are against it as it came"]


def speedup_text(report: Mapping[str, Any]) -> str:
    """The speed-up with its interval, or nothing when it was not measured."""
    speedup = (report.get("latency") or {}).get("speedup")
    if not speedup:
        return ""
    low, high = speedup["ci95"]
    interval = f"(95 % interval {low:.2f} to {high:.2f})"
    if low <= 1 <= high:
        return f"no change in latency that can be told {interval}"
    if high < 1:
        return f"{1 / speedup['estimate']:.2f}x slower (95 % interval {1 / high:.2f} to {1 / low:.2f})"
    return f"{speedup['estimate']:.2f}x faster {interval}"


def engine_text(report: Mapping[str, Any]) -> str:
    """`Engine: 42 layers (30 int8, 12 fp16); sparse kernels for 3 of 5 eligible layers.`, or nothing without one."""
    build = report.get("build") or {}
    counts = build.get("census")
    if not counts:
        return ""
    types = ", ".join(f"{number} {type_}" for type_, number in counts["by_type"].items())
    text = f"Engine: {numbers.plural(counts['layers'], 'layer')} ({types})"
    rows = build.get("sparsity") or ()
    picked, eligible = (sum(bool(row[key]) for row in rows) for key in ("picked", "eligible"))
    return f"{text}; sparse kernels for {picked} of {eligible} eligible layers." if rows else f"{text}."


WALL = "wall clock is what passed meanwhile, other work of this machine included; the ratio is of CPU time"


def clocked_rows(
    latency: Mapping[str, Any], quantiles: Iterable[str]
) -> tuple[list[tuple[str, str, str, str]], str]:
    """(rows of a latency by the clock that its ratio is of, then of the wall clock; what to say of that one)."""
    clock = {"cpu": "CPU time", "wall": "wall clock", "gpu": "GPU time"}.get(
        latency.get("clock", ""), "latency"
    )
    rows, wall = latency_rows(latency, quantiles), latency_rows(latency.get("wall") or {}, ("p50",))
    named = [
        (f"{word} {key}", before, after, change)
        for word, those in ((clock, rows), ("wall clock", wall))
        for key, before, after, change in those
    ]
    return named, WALL if wall else ""


def latency_rows(latency: Mapping[str, Any], quantiles: Iterable[str]) -> list[tuple[str, str, str, str]]:
    """(quantile, before, after, change) of a report's `latency`, for those quantiles that it has."""
    rows = []
    for key in quantiles:
        before, after = ((latency.get(side) or {}).get(key) for side in ("before_ms", "after_ms"))
        if before is not None:
            cells = (numbers.milliseconds(before), numbers.milliseconds(after))
            rows.append((key, *cells, numbers.change(before, after)))
    return rows


def prompt_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(`prompt of 128 tokens`, before, after, change) of a decoder's report; [] of others."""
    prompt = report.get("prompt") or {}
    label = f"prompt of {prompt.get('tokens', '?')} tokens"
    return [(label, *row[1:]) for row in latency_rows(prompt, ("p50",))]


def profile_rows(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how much) of a profile: CPU time, wall clock, load time, memory."""
    rows = []
    for part, label in (("cpu_ms", "CPU time"), ("wall_ms", "wall clock"), ("gpu_ms", "GPU time")):
        times = measured.get(part) or {}
        rows += [
            (f"{label} {key}", numbers.milliseconds(times[key])) for key in ("p50", "p90") if key in times
        ]
    if measured.get("energy_mj") is not None:
        rows.append(("energy of a run, whole processor", f"{measured['energy_mj']:.3g} mJ"))
    footprint = measured.get("footprint") or {}
    for key, label in (("load_ms", "load time"), ("first_inference_ms", "first inference")):
        if footprint.get(key) is not None:
            rows.append((label, numbers.milliseconds(footprint[key])))
    for key, label in (("peak_memory_bytes", "peak memory"), ("model_memory_bytes", "memory of the model")):
        if footprint.get(key) is not None:
            rows.append((label, numbers.size(footprint[key])))
    return rows


@dataclass(frozen=True)
class Reason:
    """Why things were left alone: how many, and the first of them."""

    text: str
    number: int
    example: str


def reasons(items: Iterable[Mapping[str, Any]], where: str) -> list[Reason]:
    """The reasons of `pinned` (where = "what") or `skipped` (where = "where"), the commonest first."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for item in items:
        reason = str(item["reason"])
        counts[reason] += int(item.get("groups", 1))
        first.setdefault(reason, str(item.get(where, "")))
    return [Reason(reason, number, first[reason]) for reason, number in counts.most_common()]
