"""What `sparsecc compile` shows: the headline, before and after, what was removed, what was not and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sparsecc.cli.view import Block, Grid, Line
from sparsecc.escaping import quoted
from sparsecc.report import numbers
from sparsecc.report.numbers import plural
from sparsecc.report.summary import (
    TOTALS,
    clocked_rows,
    engine_text,
    headline,
    held_for,
    pair,
    prompt_rows,
    reasons,
    unproved,
)
from sparsecc.report.trials import trial_rows
from sparsecc.report.verdict import verdict

TOP = 5
"""How many reasons are shown; all are in the report."""


def compile_view(report: Mapping[str, Any]) -> list[Block]:
    """The result of a compile, from its report."""
    return [
        *_first(report),
        Line(""),
        Grid(("", ">before", ">after", ">change"), _before_after(report)),
        *(Line(text, "dim") for text in held_for(report)),
        Line(""),
        *_trials(report),
        *_engine(report),
        *_removed(report),
        *_resized(report),
        *_package(report),
        *_types(report),
        *_reasons("pinned", report.get("pinned", ()), "what"),
        *_reasons("skipped", report.get("skipped", ()), "where"),
        *_warnings(report),
        *_verification(report),
        *_next_steps(report),
    ]


def _first(report: Mapping[str, Any]) -> list[Block]:
    """What was gained and what was lost, in one breath; what is of no use is said before that, and behind it what is
    doubtful, or not proved."""
    said = verdict(report)
    lines: list[Block] = [Line(f"{headline(report)}; {said.lost}", "title")]
    text, style = said.sentence
    if text:
        lines.insert(0 if style == "bad" else 1, Line(text, style))
    if not_proved := unproved(report):
        lines.append(Line(not_proved, "warn"))
    return lines


def _before_after(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for label, key, written in TOTALS:
        before, after = pair(report, key)
        if before is not None:
            rows.append((label, written(before), written(after), numbers.change(before, after)))
        elif after is not None:
            rows.append((label, "", written(after), ""))
    rows += clocked_rows(report.get("latency") or {}, ("p50", "p90"))[0]
    rows += prompt_rows(report)
    if served := report.get("throughput"):
        before, after = served["before"]["rate"], served["after"]["rate"]
        gained = numbers.change(before, after)
        rows.append(("samples a second", f"{before:,.0f}", f"{after:,.0f}", gained))
    if accuracy := report.get("accuracy"):
        before, after = accuracy["before"], accuracy["after"]
        drop = f"{after - before:+.4g}".replace("-", "−")
        rows.append((accuracy.get("metric") or "accuracy", f"{before:.4g}", f"{after:.4g}", drop))
    return rows


def _trials(report: Mapping[str, Any]) -> list[Block]:
    rows = trial_rows(report)
    return [Grid(("tried", ">speed or size", ">left", ""), rows), Line("")] if rows else []


def _engine(report: Mapping[str, Any]) -> list[Block]:
    text = engine_text(report)
    return [Line(text), Line("")] if text else []


def _removed(report: Mapping[str, Any]) -> list[Block]:
    cut = [group for group in report.get("groups", ()) if group["kept"] < group["size"]]
    tokens = report.get("tokens")
    if not cut and not tokens:
        return [Line("Removed: nothing.", "warn")]
    kinds = Counter(group["kind"] for group in cut)
    slots = Counter[str]()
    for group in cut:
        slots[group["kind"]] += group["size"] - group["kept"]
    texts = [
        f"{plural(slots[kind], kind)} of {plural(number, 'group')}" for kind, number in kinds.most_common()
    ]
    if tokens:
        gone = tokens["patches"] - tokens["kept"]
        texts.append(f"{gone} of {tokens['patches']} patches behind {tokens['stream']}")
    return [Line(f"Removed: {', '.join(texts)}.", _good(report))]


def _resized(report: Mapping[str, Any]) -> list[Block]:
    """Inputs and outputs that have other sizes now: whoever calls the model must know."""
    changed = report.get("io", ())
    rows = [
        (one["cache"], f"{quoted(one['name'])} axis {axis}: {before} to {after}")
        for one in changed
        for axis, (before, after) in one["axes"].items()
    ]
    kept, others = ([text for is_cache, text in rows if is_cache is wanted] for wanted in (True, False))
    lines: list[Block] = [Line(f"Caches are smaller: {kept[0]}{_more(kept)}.")] if kept else []
    if others:
        lines.append(
            Line(f"Callers must change: {'; '.join(others[:TOP])}{_more(others[TOP - 1 :])}.", "warn")
        )
    return lines


def _package(report: Mapping[str, Any]) -> list[Block]:
    """What the runtime of a language model finds beside it."""
    package = report.get("package")
    if not package:
        return _words(report)
    sizes = [f"{key} {before} to {after}" for key, (before, after) in package["sizes"].items()]
    told = f"{quoted(package['config'])} says {', '.join(sizes)}" if sizes else quoted(package["config"])
    copied = f", with {plural(len(package['copied']), 'file')} beside it" if package["copied"] else ""
    lines: list[Block] = [Line(f"For its runtime: {told}{copied}.")] if package["config"] else []
    less = [
        f"{quoted(one['name'])} of {quoted(one['file'])} axis {axis}: {before} to {after}"
        for one in package.get("handed", ())
        for axis, (before, after) in one["axes"].items()
    ]
    lines += [Line(f"Its files hand each other less: {less[0]}{_more(less)}.")] if less else []
    if dropped := package.get("dropped"):
        lines.append(Line(f"Left out, as it would load code: {quoted(dropped[0])}{_more(dropped)}.", "warn"))
    return [*_words(report), *lines]


def _words(report: Mapping[str, Any]) -> list[Block]:
    """How many words stayed, and that all figures are of the model with these."""
    words = report.get("vocabulary")
    if not words:
        return []
    same = "the same bit by bit" if words["exact"] else "the same up to rounding"
    sizes = " to ".join(map(numbers.size, words["bytes"]))
    told = f"Words: {words['after']} of {words['before']} stay, their scores are {same}, the file goes from {sizes}"
    return [Line(f"{told}; all other figures are held against the model with these words.")]


def _types(report: Mapping[str, Any]) -> list[Block]:
    """Which types the layers were given, where they differ, and what one type for all would have given."""
    rows = [(one.get("facts") or {}) for one in report.get("passes", ())]
    mixed = next((facts for facts in rows if facts.get("type") == "mixed"), None)
    if mixed is None:
        return []
    counts = Counter(mixed["types"].values()).most_common()
    alone = [
        f"{form} alone {numbers.size(one['bytes'])}, {one['error']:.1e}"
        for form, one in mixed.get("uniform", {}).items()
    ]
    said = ", ".join(f"{number} {form}" for form, number in counts)
    total = f"{numbers.size(mixed['bytes'])}, output error {mixed['error']:.1e}"
    compared: list[Block] = [Line(f"For comparison: {'; '.join(alone)}.", "dim")] if alone else []
    return [Line(f"Types of the layers: {said}; {total}."), *compared]


def _reasons(word: str, items: Sequence[Mapping[str, Any]], where: str) -> list[Block]:
    found = reasons(items, where)
    if not found:
        return []
    rows = [(str(reason.number), reason.text, reason.example) for reason in found[:TOP]]
    lines: list[Block] = [Line(""), Grid((f">{word}", "reason", "for example"), rows)]
    more = len(found) - len(rows)
    return [*lines, Line(f"and {plural(more, 'more reason')} in report.json", "dim")] if more > 0 else lines


def _warnings(report: Mapping[str, Any]) -> list[Block]:
    return [Line(f"Warning: {warning}", "warn") for warning in report.get("warnings", ())]


def _verification(report: Mapping[str, Any]) -> list[Block]:
    verification = report.get("verification") or {}
    if "status" not in verification:
        return []
    lines: list[Block] = []
    if verification["status"] == "proved":
        planted = verification["planted"]
        noticed = f"{planted['noticed']} of {planted['tried']} planted faults noticed"
        how = noticed if planted["tried"] else "no slots were cut"
        error = verification["max_relative_error"]
        lines.append(Line(f"Surgery proved ({how}); largest relative error {error:.2g}.", _good(report)))
    if constant := verification.get("constant_outputs"):
        lines.append(
            Line(
                f"The same on every input that was tried: output {quoted(constant[0])}{_more(constant)}.",
                "warn",
            )
        )
    if one_size := verification.get("one_size"):
        lines.append(Line(f"Tried at one size only: {one_size[0]}{_more(one_size)}.", "dim"))
    return [Line(""), *lines] if lines else []


def _good(report: Mapping[str, Any]) -> str:
    """Green only where the result is known to be of use: a proof of the surgery says nothing of that."""
    return "good" if verdict(report).is_good else ""


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _asked_nothing(report: Mapping[str, Any]) -> list[Block]:
    """What to ask for; where the fastest without loss was looked for, first that there is none."""
    chosen = report.get("chosen")
    if chosen is None:
        return [Line("Next: ask for something: --ratio 0.5, --speedup 2 or --quantize int8.", "warn")]
    if chosen["ratio"] or chosen["levers"]:
        return []
    told = "Nothing faster that loses nothing measurable was found: --speedup 2 or --ratio 0.5 take what loses some."
    return [Line(told, "warn")]


def _next_steps(report: Mapping[str, Any]) -> list[Block]:
    bundle = report.get("bundle")
    if not bundle:
        return [Line(""), Line("Nothing was written (dry run).", "dim")]
    lines: list[Block] = [Line(""), Line(f"Bundle: {bundle} (open {bundle}/report.html)", "title")]
    asked = report.get("asked") or {}
    if asked and not any(value for name, value in asked.items() if name not in ("metric", "recover")):
        lines += _asked_nothing(report)
    if not report.get("accuracy"):
        lines.append(Line("Next: --eval FILE.py:FUNCTION shows the accuracy before and after.", "dim"))
    if (report.get("build") or {}).get("emitted"):
        lines.append(
            Line(f"Next: sparsecc build {bundle} where the target runs, or --device for it", "title")
        )
    lines.append(Line(f"Next: {report.get('verify') or f'sparsecc verify {bundle} --model ORIGINAL'}", "dim"))
    return lines
