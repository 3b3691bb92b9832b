"""What `sparsecc compile` shows: the headline, before and after, what was removed, what was not and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sparsecc.cli import blocks
from sparsecc.cli.blocks import Block, Grid, Line, plural

TOP = 5
"""How many reasons are shown; all are in the report."""

SIZES = (
    ("MACs", "macs", blocks.count),
    ("parameters", "params", blocks.count),
    ("size", "bytes", blocks.size),
)


def compile_view(report: Mapping[str, Any]) -> list[Block]:
    """The result of a compile, from its report."""
    return [
        Line(headline(report), "title"),
        Line(""),
        Grid(("", ">before", ">after", ">change"), _before_after(report)),
        Line(""),
        *_removed(report),
        *_reasons("pinned", report.get("pinned", ()), "what"),
        *_reasons("skipped", report.get("skipped", ()), "where"),
        *_warnings(report),
        *_verification(report),
        *_next_steps(report),
    ]


def headline(report: Mapping[str, Any]) -> str:
    """`2.31x faster (95 % interval 2.22 to 2.40), 51 % fewer MACs, 61 % fewer parameters`."""
    parts = [speedup_text(report)] if speedup_text(report) else []
    for label, key, _ in SIZES[:2]:
        before, after = _pair(report, key)
        if before and after is not None and after < before:
            parts.append(f"{100 * (1 - after / before):.0f} % fewer {label}")
    return ", ".join(parts) if parts else "nothing was removed"


def speedup_text(report: Mapping[str, Any]) -> str:
    """The speed-up with its interval, or nothing when it was not measured."""
    speedup = report.get("latency", {}).get("speedup") if report.get("latency") else None
    if not speedup:
        return ""
    low, high = speedup["ci95"]
    return f"{speedup['estimate']:.2f}x faster (95 % interval {low:.2f} to {high:.2f})"


def _pair(report: Mapping[str, Any], key: str) -> tuple[float | None, float | None]:
    return report.get("before", {}).get(key), report.get("after", {}).get(key)


def _before_after(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for label, key, written in SIZES:
        before, after = _pair(report, key)
        if before is not None:
            rows.append((label, written(before), written(after), blocks.change(before, after)))
    latency = report.get("latency") or {}
    for quantile in ("p50", "p90"):
        before, after = (latency.get(side, {}).get(quantile) for side in ("before_ms", "after_ms"))
        if before is not None:
            cells = (blocks.milliseconds(before), blocks.milliseconds(after), blocks.change(before, after))
            rows.append((f"latency {quantile}", *cells))
    if accuracy := report.get("accuracy"):
        before, after = accuracy["before"], accuracy["after"]
        drop = f"{after - before:+.4g}".replace("-", "−")
        rows.append((accuracy.get("metric") or "accuracy", f"{before:.4g}", f"{after:.4g}", drop))
    for name, value in sorted((report.get("fidelity") or {}).items()):
        if isinstance(value, int | float) and not isinstance(value, bool):
            rows.append((f"fidelity: {name}", "", f"{value:.4g}", ""))
    return rows


def _removed(report: Mapping[str, Any]) -> list[Block]:
    cut = [group for group in report.get("groups", ()) if group["kept"] < group["size"]]
    if not cut:
        return [Line("Removed: nothing.", "warn")]
    kinds = Counter(group["kind"] for group in cut)
    slots = Counter[str]()
    for group in cut:
        slots[group["kind"]] += group["size"] - group["kept"]
    texts = [
        f"{plural(slots[kind], kind)} of {plural(number, 'group')}" for kind, number in kinds.most_common()
    ]
    return [Line(f"Removed: {', '.join(texts)}.", "good")]


def _reasons(word: str, items: Sequence[Mapping[str, Any]], where: str) -> list[Block]:
    reasons = Counter(str(item["reason"]) for item in items)
    if not reasons:
        return []
    first = {str(item["reason"]): str(item.get(where, "")) for item in reversed(items)}
    rows = [(str(number), reason, first[reason]) for reason, number in reasons.most_common(TOP)]
    more = len(reasons) - len(rows)
    lines: list[Block] = [Line(""), Grid((f">{word}", "reason", "for example"), rows)]
    return [*lines, Line(f"and {plural(more, 'more reason')} in report.json", "dim")] if more > 0 else lines


def _warnings(report: Mapping[str, Any]) -> list[Block]:
    return [Line(f"Warning: {warning}", "warn") for warning in report.get("warnings", ())]


def _verification(report: Mapping[str, Any]) -> list[Block]:
    verification = report.get("verification") or {}
    difference = verification.get("max_relative_error")
    if difference is None:
        return []
    return [
        Line(""),
        Line(f"Verified: largest relative error {difference:.2g} against the masked original.", "good"),
    ]


def _next_steps(report: Mapping[str, Any]) -> list[Block]:
    bundle = report.get("bundle")
    if not bundle:
        return [Line(""), Line("Nothing was written (dry run).", "dim")]
    lines: list[Block] = [Line(""), Line(f"Bundle: {bundle} (open {bundle}/report.html)", "title")]
    if not report.get("accuracy"):
        lines.append(Line("Next: --eval py:module:function shows the accuracy before and after.", "dim"))
    lines.append(Line(f"Next: sparsecc verify {bundle}", "dim"))
    return lines
