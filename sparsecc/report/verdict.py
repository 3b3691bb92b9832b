"""Whether a result is still of use, and what was lost, in the words of the first screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sparsecc.report.numbers import plural

Judgement = Literal["usable", "doubtful", "useless", "not judged"]

USELESS_DB, DOUBTFUL_DB = 8.0, 14.0
"""Quality of the worst part, in dB, below which results were of no use, or doubtful (docs/accuracy.md)."""
USELESS_AGREEMENT, DOUBTFUL_AGREEMENT = 0.8, 0.9
"""Share of answers that stay the same, likewise."""
TENTH = 0.1
"""A metric that fell by more than this share of what it was is that of a useless result."""


@dataclass(frozen=True)
class Verdict:
    """`lost` stands beside what was gained; `advice` is the next step where one is needed."""

    judgement: Judgement
    lost: str
    advice: str = ""


def verdict(report: Mapping[str, Any]) -> Verdict:
    """What a compile lost: by the user's metric where there is one, else by outputs and answers."""
    facts: Mapping[str, Any] = report.get("fidelity") or {}
    accuracy = report.get("accuracy")
    judged_on_data = bool(facts) and facts.get("data") != "random inputs"
    lost = _lost(report, facts)
    if accuracy is not None and accuracy.get("before") is not None:
        fell = accuracy["before"] - accuracy["after"]
        useless = fell > TENTH * abs(accuracy["before"])
        return Verdict("useless" if useless else "usable", lost, _advice(report) if useless else "")
    if not facts or not _changed(report):
        return Verdict("usable" if facts else "not judged", lost)
    worst, agrees = _worst(facts), lowest_agreement(facts)
    if worst < USELESS_DB or agrees < USELESS_AGREEMENT:
        return Verdict("useless" if judged_on_data else "not judged", lost, _advice(report))
    if not judged_on_data:
        return Verdict(
            "not judged", lost, "give samples with --calib: they repair what is kept, and judge it"
        )
    doubtful = worst < DOUBTFUL_DB or agrees < DOUBTFUL_AGREEMENT
    return Verdict("doubtful" if doubtful else "usable", lost, _advice(report) if doubtful else "")


def _changed(report: Mapping[str, Any]) -> bool:
    """Whether anything was done that can lose something."""
    return bool((report.get("removed") or {}).get("share")) or _worst(report.get("fidelity") or {}) < 100


def _worst(facts: Mapping[str, Any]) -> float:
    return float((facts.get("worst") or {}).get("quality_db", facts.get("quality_db", 200.0)))


def _lost(report: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """`accuracy 0.99 to 0.98; outputs 31 dB on 40 held-out samples (29 to 33), worst part out[:, 4:84] 18 dB`."""
    texts = []
    if accuracy := report.get("accuracy"):
        texts.append(
            f"{accuracy.get('metric') or 'accuracy'} {accuracy['before']:.4g} → {accuracy['after']:.4g}"
        )
    if "quality_db" in facts:
        texts.append(_outputs(facts))
    for answer in facts.get("agreement", ()):
        where = f" of {answer['part']}" if len(facts["agreement"]) > 1 else ""
        texts.append(f"{answer['share']:.1%} of {_ANSWERS[answer['kind']]}{where} the same")
    if not texts:
        return "what was lost was not measured"
    return "; ".join(texts)


_ANSWERS = {"classes": "answers", "labels": "labels", "embedding": "nearest neighbours"}


def _outputs(facts: Mapping[str, Any]) -> str:
    data = facts.get("data", "")
    number = (
        f"{facts['samples']} "
        if data.endswith("samples") and "the " not in data and "samples" in facts
        else ""
    )
    text = f"outputs {_db(facts['quality_db'])} on {number}{data}"
    if "interval_db" in facts:
        low, high = facts["interval_db"]
        text += f" ({low:.0f} to {high:.0f})"
    worst = facts.get("worst")
    if worst and len(facts.get("parts", ())) > 1:
        text += f", worst part {worst['part']} {_db(worst['quality_db'])}"
    if constant := facts.get("constant"):
        text += f"; {plural(len(constant), 'part')} the same on all of them ({constant[0]})"
    return text


def _db(value: float) -> str:
    return "equal" if value >= 100 else f"{value:.0f} dB"


def _advice(report: Mapping[str, Any]) -> str:
    """What is most likely to help, by what was not done yet."""
    asked = report.get("asked") or {}
    data = (report.get("fidelity") or {}).get("data")
    steps = []
    if data == "random inputs" or data is None:
        steps.append("give samples with --calib")
    if ratio := asked.get("ratio"):
        steps.append(f"a lower --ratio than {ratio:g}")
    if ratio and not asked.get("quantize"):
        steps.append("--quantize int8 instead of so much pruning")
    if ratio and data not in (None, "random inputs"):
        steps.append("--recover distill")
    return ("try " + ", ".join(steps)) if steps else "measure it with --evaluate"


def lowest_agreement(facts: Mapping[str, Any]) -> float:
    """The least share of answers that are the same, over all parts that are asked; 1 where none is."""
    return min((answer["share"] for answer in facts.get("agreement", ())), default=1.0)
