"""What a quantized model's outputs lost against the float model's, on calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.loss.judge import lowest_agreement, use_of
from sparsecc.loss.measure import Outputs
from sparsecc.loss.quality import told
from sparsecc.runtime.runner import Feeds
from sparsecc.runtime.session import open_session

WARNED_DB = 20.0
"""A hundredth of the energy is lost."""
FEEDS = 32
"""Sets of calibration inputs that outputs are compared on at most."""


def spread(feeds: Sequence[Feeds], number: int) -> list[Feeds]:
    """At most so many sets, at equal distances over all: the first may be all of one kind."""
    return list(feeds[:: max(1, -(-len(feeds) // number))])


def float_outputs(model: ir.Model, compilation: Compilation, *, rounds: bool = False) -> list[Outputs]:
    """Outputs for sets of calibration inputs; empty without calibration. With `rounds` every half precision
    tensor is rounded, as GPUs do."""
    if not compilation.pass_feeds:
        return []
    runner = open_session(model, level="basic", rounds=rounds)
    return [runner.run(feeds) for feeds in spread(compilation.pass_feeds, FEEDS)]


def fidelity(
    model: ir.Model, before: Sequence[Outputs], compilation: Compilation, advice: str
) -> dict[str, Any]:
    """Decibels of every part of the outputs, and a warning with `advice` where the worst is of doubtful use, or keeps
    less than WARNED_DB; None where ONNX Runtime cannot run the model.

    An output whose size follows from values, as a list of what was found, may have another size now: that is said
    instead.
    """
    if not before:
        return {}
    try:
        after = float_outputs(model, compilation, rounds=compilation.target.device == "gpu")
    except InputError:
        return {"output_quality_db": None}
    pairs = list(zip(before, after, strict=True))
    resized = [name for name in before[0] if any(a[name].shape != b[name].shape for a, b in pairs)]
    warnings = [_resized(name, before[0][name], after[0][name]) for name in resized]
    kept = [{name: array for name, array in batch.items() if name not in resized} for batch in before]
    parts = tuple(part for part in compilation.judged_parts if part.output in kept[0])
    asked = tuple(question for question in compilation.judged_answers if question.part.output in kept[0])
    close = told(kept, after, parts, asked) if kept[0] else {}
    worst = close.get("worst", {})
    if use_of(close) != "usable" or worst.get("quality_db", WARNED_DB) < WARNED_DB:
        answers = close.get("agreement", ())
        same = f", and {lowest_agreement(close):.1%} of the answers" if answers else ""
        warnings.append(
            f"after this, output '{worst.get('part')}' keeps {worst.get('quality_db', 0.0):.1f} dB{same}: {advice}"
        )
    return {"output_quality_db": dict(close.get("parts", {})), "warnings": warnings}


def _resized(name: str, exact: np.ndarray, rough: np.ndarray) -> str:
    sizes = " instead of ".join("x".join(map(str, array.shape)) for array in (rough, exact))
    return f"output '{name}' is {sizes} on the first sample: what it keeps is not known"
