"""Whether the types that were asked for are the types that run, and whether a combination beats its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sparsecc.remarks import Remark
from sparsecc.report.numbers import size

_INTEGER = frozenset({"int8", "int8-dynamic", "int8-weights", "int4"})


def type_warnings(
    asked: str | None,
    passes: Iterable[Mapping[str, Any]],
    census: Mapping[str, Any] | None,
    remarks: Iterable[tuple[str, Remark]],
) -> list[str]:
    """Sentences for the first screen: the asked type is not used, or not everywhere, where and why.

    `passes` are the rows of the report; `census` is that of the compiled model, None without its runtime.
    """
    if asked is None:
        return []
    facts = [one["facts"] for one in passes if (one.get("facts") or {}).get("type") == asked]
    if facts and not any(one.get("nodes") for one in facts):
        why = Counter(skip.reason for name, skip in remarks if name == "quantize").most_common(1)
        because = f" ({why[0][0]})" if why else ""
        return [f"--quantize {asked} changed no layer{because}: the model runs in the type it had"]
    if asked not in _INTEGER or census is None:
        return []
    return _left_in_float(asked, census, [skip for name, skip in remarks if name == "quantize"])


def _left_in_float(asked: str, census: Mapping[str, Any], remarks: list[Remark]) -> list[str]:
    """The reasons of the pass where it had any: they name nodes of the model, the census fused ones."""
    integers, floats = sum(census["integer"].values()), sum(census["float"].values())
    if not integers:
        return [
            f"--quantize {asked} was asked for and no kernel runs on integers: see the census in the report"
        ]
    if not census["in_float"]:
        return []
    left = remarks or [Remark(one["node"], one["reason"]) for one in census["in_float"]]
    reason, number = Counter(skip.reason for skip in left).most_common(1)[0]
    example = next(skip.where for skip in left if skip.reason == reason)
    return [
        f"{asked}: {floats} of {floats + integers} kernels that multiply stay in float, "
        f"{number} because: {reason} (for example '{example}')"
    ]


def outside_blocks(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[str]:
    """A warning where more convolutions than in the original have channel counts that the runtime's fast layout does
    not take; the censuses are of both models, None without their runtime."""
    found, known = (_outside(before), _outside(after))
    if len(known) <= len(found):
        return []
    example = f"'{known[0]['node']}': {known[0]['reason']}"
    return [
        f"{len(known)} convolutions are outside the runtime's fast layout, {len(found)} in the original (for example "
        f"{example}): --align 8 rounds channel counts, --only leaves such layers alone"
    ]


def _outside(census: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    return [conv for conv in (census or {}).get("misaligned") or () if conv["effect"] == "outside"]


def slower_than(other: str, speedup: Mapping[str, Any], advice: str) -> list[str]:
    """A warning when a model is surely slower than another, from the ratio of that to it, with what to do."""
    low, high = speedup["ci95"]
    if high >= 1:
        return []
    interval = f"95 % interval {1 / high:.2f} to {1 / low:.2f}"
    return [f"{1 / speedup['estimate']:.2f}x slower than {other} ({interval}): {advice}"]


def advice_for(quantize: str | None) -> str:
    """What to do where a compiled model is slower than the original."""
    if quantize is not None and quantize.endswith("!"):
        return f"--quantize {quantize[:-1]} leaves in float what is slower in integers"
    if quantize is not None:
        return (
            f"{quantize} makes it smaller here, not faster: leave --quantize out where latency is what counts"
        )
    return "--speedup TIMES instead of --ratio measures while it chooses"


def larger_than(sizes: Mapping[str, int], weights: Mapping[str, int]) -> list[str]:
    """A warning, with why, where a result takes at least 1 % more bytes than the model: of files, and of their
    weights."""
    if sizes["after"] < 1.01 * sizes["before"]:
        return []
    rest = {side: max(0, sizes[side] - weights[side]) for side in ("before", "after")}
    parts = (("weights", weights), ("nodes and their names", rest))
    why = ", ".join(
        f"{what} take {size(part['after'])} instead of {size(part['before'])}" for what, part in parts
    )
    return [
        f"the result is larger than the model, {size(sizes['after'])} instead of {size(sizes['before'])}: {why}"
    ]
