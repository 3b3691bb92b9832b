"""Whether a result is still of use, and what was lost, in the words of the first screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sparsecc.loss.judge import TENTH, Use, lowest_agreement, use_of, use_of_text, worst_quality
from sparsecc.report.numbers import plural

Judgement = Use | Literal["not judged"]

EQUAL = 100.0
"""Decibels from which on outputs are equal for all that floats can tell."""
RANDOM = "random inputs"


@dataclass(frozen=True)
class Verdict:
    """`lost` stands beside what was gained; `advice` is the next step where one is needed."""

    judgement: Judgement
    lost: str
    advice: str = ""

    @property
    def is_good(self) -> bool:
        """Whether anything may be shown in green."""
        return self.judgement == "usable"

    @property
    def sentence(self) -> tuple[str, str]:
        """(what must be said beside what was lost, its style); ("", "") where the result may be used as it is."""
        if self.judgement == "useless":
            return f"Not usable: {self.advice}.", "bad"
        if self.judgement == "doubtful":
            return f"Doubtful: {self.advice}.", "warn"
        if self.judgement == "not judged":
            return f"Not judged: {self.advice or 'nothing was measured'}.", "warn"
        return "", ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def verdict(report: Mapping[str, Any]) -> Verdict:
    """What a compile lost: by the user's metric where there is one, by nats a token for language models, else by
    outputs and answers."""
    facts: Mapping[str, Any] = report.get("fidelity") or {}
    lost, accuracy = _lost(report, facts), report.get("accuracy")
    if accuracy is not None and accuracy.get("before") is not None:
        fell = accuracy["before"] - accuracy["after"]
        useless = fell > TENTH * abs(accuracy["before"])
        return Verdict("useless" if useless else "usable", lost, _advice(report) if useless else "")
    if not facts:
        return Verdict("not judged", lost)
    if not _changed(report):
        return Verdict("usable", lost)
    if facts.get("data") == RANDOM:
        far = "far from the original, as far as random inputs tell; " if use_of(facts) == "useless" else ""
        advice = f"{far}give samples with --calib: they repair what is kept, and judge it"
        return Verdict("not judged", lost, advice)
    text = report.get("text")
    use = (text and use_of_text(text)) or use_of(facts)
    return Verdict(use, lost, "" if use == "usable" else _advice(report))


def _changed(report: Mapping[str, Any]) -> bool:
    """Whether anything was done that can lose something."""
    return bool((report.get("removed") or {}).get("share")) or _worst(report.get("fidelity") or {}) < EQUAL


def _worst(facts: Mapping[str, Any]) -> float:
    worst = worst_quality(facts)
    return 200.0 if worst is None else worst


def refusal(report: Mapping[str, Any], min_quality: float | None, min_agreement: float | None) -> str:
    """Why a result may not be written by `--min-quality` and `--min-agreement`; "" where it may."""
    facts: Mapping[str, Any] = report.get("fidelity") or {}
    worst, number = worst_quality(facts), facts.get("samples")
    where = f"on {number} {facts.get('data')}" if number else f"on {facts.get('data')}"
    if min_quality is not None and worst is None:
        return f"no output holds floating-point numbers: --min-quality {min_quality:g}dB cannot be judged"
    if min_quality is not None and worst is not None and worst < min_quality:
        part = (facts.get("worst") or {}).get("part", "")
        return f"output {part} keeps {worst:.1f} dB {where}, less than --min-quality {min_quality:g}dB asks"
    if min_agreement is not None and not facts.get("agreement"):
        return f"no output is known to name classes: --min-agreement {min_agreement:g} cannot be judged"
    agrees = lowest_agreement(facts)
    if min_agreement is not None and agrees < min_agreement:
        return f"{agrees:.1%} of the answers are the same {where}, less than --min-agreement {min_agreement:g} asks"
    return ""


def _lost(report: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """`top1 0.99 → 0.98; outputs 31 dB on 40 held-out samples (29 to 33), worst part out[:, 4:84] (cls) 18 dB`."""
    texts = []
    if accuracy := report.get("accuracy"):
        texts.append(
            f"{accuracy.get('metric') or 'accuracy'} {accuracy['before']:.4g} → {accuracy['after']:.4g}"
        )
    if text := report.get("text"):
        whose = "of its own text" if text["is_own"] else "held out"
        figures = f"{text['before']:.3f} → {text['after']:.3f} nats a token"
        texts.append(f"{figures} on {plural(text['tokens'], 'token')} {whose}")
    shown = {n: fact for n, fact in facts.items() if n != "quality_db"} if text else facts
    texts += filter(None, [kept_text(shown)])
    return "; ".join(texts) if texts else "what was lost was not measured"


def kept_text(facts: Mapping[str, Any]) -> str:
    """What `quality.told` found, in words; "" where that is nothing."""
    texts = [_outputs(facts)] if "quality_db" in facts else []
    for answer in facts.get("agreement", ()):
        where = f" of {_named(answer['part'], facts)}" if len(facts["agreement"]) > 1 else ""
        texts.append(f"{answer['share']:.1%} of {_ANSWERS.get(answer['kind'], 'answers')}{where} the same")
    return "; ".join(texts)


_ANSWERS = {
    "classes": "answers",
    "detections": "detections",
    "labels": "labels",
    "embedding": "nearest neighbours",
}


def _outputs(facts: Mapping[str, Any]) -> str:
    data, number = facts.get("data", ""), ""
    if data.endswith("samples") and "the " not in data and "samples" in facts:
        number = f"{facts['samples']} "
    fits = f", each out of one of {facts['fits']} fits" if "fits" in facts else ""
    text = f"outputs {_db(facts['quality_db'])} on {number}{data}{fits}"
    if "interval_db" in facts and facts["quality_db"] < EQUAL:
        low, high = facts["interval_db"]
        text += f" ({low:.0f} to {high:.0f})"
    worst = facts.get("worst")
    if worst and len(facts.get("parts", ())) > 1:
        text += f", worst part {_named(worst['part'], facts)} {_db(worst['quality_db'])}"
    if constant := facts.get("constant"):
        text += f"; {plural(len(constant), 'part')} the same on all of them ({_named(constant[0], facts)})"
    return text


def _named(part: str, facts: Mapping[str, Any]) -> str:
    """A part with the layer that makes it: 'out[:, 4:84] (head.cls)'."""
    layer = facts.get("layers", {}).get(part)
    return f"{part} ({layer})" if layer else part


def _db(value: float) -> str:
    if value <= -EQUAL:
        return "beyond comparison"
    return "equal" if value >= EQUAL else f"{value:.0f} dB"


def _advice(report: Mapping[str, Any]) -> str:
    """What is most likely to help: what was tried and judged first, else what was not done yet."""
    asked = report.get("asked") or {}
    ratio, recover = asked.get("ratio"), asked.get("recover")
    steps: list[str] = []
    for wanted in ("usable", "doubtful"):
        if good := _tried(report, wanted):
            return f"try {', or '.join(good)}, as was measured on the same samples"
    tried = _tried(report, "useless")
    if tried:
        more = "" if recover == "distill" or not ratio else "; --recover distill was not tried"
        are = "is" if len(tried) == 1 else "are"
        return f"{' and '.join(tried)} {are} of no use either, as was measured on the same samples{more}"
    if ratio:
        steps.append(_lower(ratio, report.get("passes", ())))
        if not asked.get("quantize"):
            steps.append("--quantize int8 instead of so much pruning")
        if recover != "distill":
            steps.append("--recover distill")
    elif asked.get("quantize"):
        steps.append("--quantize fp16" if asked["quantize"] != "fp16" else "--quantize bf16")
    return ("try " + ", or ".join(steps)) if steps else "measure it with --evaluate"


def _tried(report: Mapping[str, Any], judgement: str) -> list[str]:
    """The next steps that were judged so, with what each keeps."""
    steps = report.get("next_steps", ())
    return [f"{step['flags']} ({_found(step)})" for step in steps if step["judgement"] == judgement]


def _found(step: Mapping[str, Any]) -> str:
    """`21 dB, 98.0% the same` of a next step, and where it is of no use either, that."""
    same = "" if step.get("agreement") is None else f", {step['agreement']:.1%} the same"
    kept = f"{step['nats']:.3f} nats a token" if "nats" in step else _db(step["quality_db"])
    use = {"usable": "", "doubtful": ", doubtful"}.get(step["judgement"], ", not usable")
    return f"{kept}{same}{use}"


def _lower(ratio: float, records: Sequence[Mapping[str, Any]]) -> str:
    """The ratio that measured loss curves advise, where there are some; else a lower one."""
    facts = next((one.get("facts") or {} for one in records if one.get("name") == "choose"), {})
    advised = facts.get("advised")
    if advised and advised < ratio:
        return f"--ratio {advised:g}, the most that loss curves foresee to be of use"
    return f"a lower --ratio than {ratio:g}"
