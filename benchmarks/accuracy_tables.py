"""Tables and the plot of `benchmarks/accuracy.py`."""

from __future__ import annotations

import importlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKS = ("<!-- made by benchmarks/accuracy.py -->", "<!-- end of benchmarks/accuracy.py -->")
DEFAULT = ("auto:auto", "reconstruct")
COLUMNS: Mapping[str, tuple[str, str]] = {
    "**default**": DEFAULT,
    "group magnitude": ("l2:uniform", "none"),
    "group magnitude, repaired": ("l2:uniform", "reconstruct"),
    "torch-pruning, best": ("torch-pruning ", "none"),
    "onnxsim, best": ("onnxsim ", "none"),
}
"""Heading -> (the start of the method's name, repair); of several that fit the best is shown."""
FAR = 0.02
"""A share of the work this far from the one asked for is shown beside the score."""
CROWD = 60
"""Methods measured at a pair and ratio from which on their order tells something."""
FEW = 3
"""Criteria that an allocator met, up to which it is not compared with those that met all."""
AHEAD = 12
"""How many of the first are named; of the others only MARKERS."""
MARKERS = ("l2:uniform", "random:uniform")
Row = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """A method at one ratio: mean and standard deviation over its seeds."""

    method: str
    score: float
    spread: float | None
    removed: float


def line_of(made: Sequence[Row]) -> str:
    """The rows of one point for the terminal."""
    first = made[0]
    start = f"{first['pair']:14s} -{first['ratio']:.0%}  {first['method']:32s}"
    if "reason" in first:
        return f"{start} {first['reason']}"
    scores = "  ".join(f"{row['repair']} {row['score']:.4f}" for row in made)
    return f"{start} -{first['removed']:.1%}  {scores}  {first['choose_s']:.1f} s"


def tables(stored: Mapping[str, Any]) -> str:
    """Markdown: the default beside its rivals, where it does not win, and every method of each pair."""
    return f"{compared(stored)}\n{matrices(stored)}"


def matrices(stored: Mapping[str, Any]) -> str:
    """Markdown: every method of each pair."""
    every = _by_method(stored["rows"])
    return "\n".join(line for name, pair in stored["pairs"].items() for line in _matrix(every, name, pair))


def compared(stored: Mapping[str, Any]) -> str:
    """Markdown: the default beside its rivals, and where it does not win."""
    every = _by_method(stored["rows"])
    lines = ["| pair (dense) | less work | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    lost = []
    for name, pair in stored["pairs"].items():
        for ratio in sorted({key[1] for key in every if key[0] == name and key[2:] == DEFAULT}):
            columns = {title: _best(every, name, ratio, pair, title) for title in COLUMNS}
            cells = " | ".join(_cell(found, pair, ratio) for found in columns.values())
            lines.append(f"| {_title(name, pair)} | {ratio:.0%} | {cells} |")
            lost += _losses(name, ratio, columns, pair)
    if not lost and len(lines) > 2:
        lost = ["The default is behind none of them anywhere."]
    return "\n".join([*lines, "", *lost])


def ranked(stored: Mapping[str, Any]) -> str:
    """Markdown: how many of all methods one leaves behind after `reconstruct`, on average over pairs and ratios."""
    fields: dict[tuple[str, float], dict[str, float]] = defaultdict(dict)
    for (name, ratio, method, repair), found in _by_method(stored["rows"]).items():
        if repair == DEFAULT[1] and ":" in method:
            sign = -1 if stored["pairs"][name]["measure"] == "nats" else 1
            fields[name, ratio][method] = sign * found.score
    whole = {key: scores for key, scores in fields.items() if len(scores) >= CROWD}
    if not whole:
        return ""
    behind: dict[str, list[float]] = defaultdict(list)
    for scores in whole.values():
        for method, score in scores.items():
            behind[method].append(_behind(score, list(scores.values())))
    usual = {m: shares for m, shares in behind.items() if len(shares) > 0.9 * len(whole)}
    order = sorted(usual, key=lambda m: -statistics.mean(usual[m]))
    chosen = [*order[:AHEAD], *(m for m in order[AHEAD:] if m in MARKERS)]
    lines = [
        f"Over {len(whole)} pairs and ratios, {len(usual)} methods:",
        "",
        "| criterion, allocator | leaves behind |",
    ]
    lines += ["|---|---|", *(f"| {m.replace(':', ', ')} | {statistics.mean(usual[m]):.0%} |" for m in chosen)]
    met = Counter(m.partition(":")[2] for m in usual)
    crossed = {m: statistics.mean(shares) for m, shares in usual.items() if met[m.partition(":")[2]] > FEW}
    for kind, place in (("allocator", 2), ("criterion", 0)):
        own: dict[str, list[float]] = defaultdict(list)
        for method, share in crossed.items():
            own[method.partition(":")[place]].append(share)
        best = sorted(own, key=lambda name: -statistics.mean(own[name]))
        told = ", ".join(f"`{name}` {statistics.mean(own[name]):.0%}" for name in best)
        lines += ["", f"By {kind}, where every criterion met the allocator: {told}."]
    return "\n".join(lines)


def _behind(score: float, scores: Sequence[float]) -> float:
    """The share of the others that are worse; those as good count half."""
    worse, same = sum(s < score for s in scores), sum(s == score for s in scores) - 1
    return (worse + same / 2) / max(len(scores) - 1, 1)


def _by_method(rows: Sequence[Row]) -> dict[tuple[str, float, str, str], Found]:
    """(pair, ratio, method, repair) -> what its seeds come to."""
    seeds: dict[tuple[str, float, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if "score" in row:
            seeds[row["pair"], row["ratio"], row["method"], row["repair"]].append(row)
    found = {}
    for key, own in seeds.items():
        scores = [row["score"] for row in own]
        spread = statistics.stdev(scores) if len(scores) > 1 else None
        found[key] = Found(
            key[2], statistics.mean(scores), spread, statistics.mean(r["removed"] for r in own)
        )
    return found


def _title(name: str, pair: Mapping[str, Any]) -> str:
    dense = "" if pair["measure"] == "dB" else f"{pair['dense']:.3f} "
    return f"{name} ({dense}{pair['measure']})"


def _gain(a: Found, b: Found, pair: Mapping[str, Any]) -> float:
    """By how much `a` is better than `b`."""
    return b.score - a.score if pair["measure"] == "nats" else a.score - b.score


def _best(
    every: Mapping[tuple[str, float, str, str], Found],
    name: str,
    ratio: float,
    pair: Mapping[str, Any],
    title: str,
) -> Found | None:
    """The best that fits a column; what did not come near the asked work only where nothing did."""
    start, repair = COLUMNS[title]
    fitting = [
        found
        for (own, at, method, repaired), found in every.items()
        if (own, at, repaired) == (name, ratio, repair) and method.startswith(start)
    ]
    near = [found for found in fitting if found.removed > ratio - FAR]
    best: Found | None = None
    for found in near or sorted(fitting, key=lambda one: -one.removed)[:1]:
        if best is None or _gain(found, best, pair) > 0:
            best = found
    return best


def _cell(found: Found | None, pair: Mapping[str, Any], ratio: float) -> str:
    if found is None:
        return "-"
    if found.removed < FAR:
        return "removes nothing"
    score = f"{found.score:.1f}" if pair["measure"] == "dB" else f"{found.score:.3f}"
    kind = found.method.partition(" ")[2]
    notes = [kind] if kind else []
    notes += [f"only {found.removed:.0%} less"] if found.removed < ratio - FAR else []
    notes += [f"{found.removed:.0%} less"] if found.removed > ratio + FAR else []
    return f"{score} ({', '.join(notes)})" if notes else score


def _losses(
    name: str, asked: float, columns: Mapping[str, Found | None], pair: Mapping[str, Any]
) -> list[str]:
    """A line for each rival that is better than the default at the same work."""
    default = columns["**default**"]
    assert default is not None
    return [
        f"- {name} at {asked:.0%}: {title} is better by {_gain(found, default, pair):.3f} {pair['measure']}"
        for title, found in columns.items()
        if found is not None and found.removed > asked - FAR and _gain(found, default, pair) > 0
    ]


def _matrix(
    every: Mapping[tuple[str, float, str, str], Found], name: str, pair: Mapping[str, Any]
) -> list[str]:
    """As cut -> after `reconstruct`, for every method at every ratio."""
    own = {key[1:]: found for key, found in every.items() if key[0] == name and ":" in key[2]}
    methods = list(dict.fromkeys(method for _, method, _ in own))
    ratios = sorted({ratio for ratio, _, _ in own})
    if len(methods) < 3:
        return []
    shares = " | ".join(f"{ratio:.0%} less" for ratio in ratios)
    lines = ["", f"{_title(name, pair)}, as cut → repaired:", "", f"| criterion, allocator | {shares} |"]
    lines.append("|---" * (len(ratios) + 1) + "|")
    for method in methods:
        pairs = [(own.get((r, method, "none")), own.get((r, method, "reconstruct"))) for r in ratios]
        cells = " | ".join(_change(before, after) for before, after in pairs)
        lines.append(f"| {method.replace(':', ', ')} | {cells} |")
    return lines


def _change(before: Found | None, after: Found | None) -> str:
    return " → ".join(_mean(found) for found in (before, after)) if before or after else ""


def _mean(found: Found | None) -> str:
    if found is None:
        return "-"
    return f"{found.score:.3f}" + (f" ± {found.spread:.3f}" if found.spread is not None else "")


def draw(stored: Mapping[str, Any], file: Path) -> None:
    """Quality against the share of the work that went, one field per pair; other methods are grey."""
    plots = importlib.import_module("matplotlib.pyplot")
    every = _by_method(stored["rows"])
    names = list(stored["pairs"])
    figure, fields = plots.subplots(1, len(names), figsize=(4.2 * len(names), 3.6), squeeze=False)
    for field, name in zip(fields[0], names, strict=True):
        _draw_one(field, every, name, stored["pairs"][name])
    fields[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file)
    plots.close(figure)


def _draw_one(
    field: Any, every: Mapping[tuple[str, float, str, str], Found], name: str, pair: Mapping[str, Any]
) -> None:
    own = {key[1:]: found for key, found in every.items() if key[0] == name}
    ratios = sorted({ratio for ratio, _, _ in own})
    for method, repair in dict.fromkeys((method, repair) for _, method, repair in own):
        points = [own[r, method, repair] for r in ratios if (r, method, repair) in own]
        field.plot([p.removed for p in points], [p.score for p in points], color="0.85", linewidth=0.7)
    for title in COLUMNS:
        best = [p for p in (_best(every, name, ratio, pair, title) for ratio in ratios) if p is not None]
        field.plot(
            [p.removed for p in best],
            [p.score for p in best],
            marker="o",
            markersize=3,
            label=title.strip("*"),
        )
    if pair["measure"] != "dB":
        field.axhline(pair["dense"], color="black", linewidth=0.5, linestyle=":")
    field.set(title=name, xlabel="share of multiply-accumulates removed", ylabel=pair["measure"])
