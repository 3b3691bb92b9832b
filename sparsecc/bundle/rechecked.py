"""How the numerics of a bundle can be checked again, against the original."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from sparsecc.options.table import NO_SAMPLES, SELF, SYNTHETIC

WAYS = "--reproduce, or --calib with the samples of the compile, checks them"


def not_by_zeroing(plan: Mapping[str, Any]) -> str | None:
    """Why zeroing what a plan removes in the original does not give what was compiled; None where it does."""
    mixed = [g["id"] for g in plan["groups"] if g["mixes"] and g["kept"] < g["size"]]
    if mixed:
        return (
            f"not exactly checkable by zeroing: {len(mixed)} removed groups are mixed by an operator; {WAYS}"
        )
    if plan["quantization"] or plan["patterns"] or plan["repaired"]:
        return f"not exactly checkable by zeroing: the weights were changed after removal; {WAYS}"
    return None


def command_for(bundle: str, model: str, plan: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The `sparsecc verify` that makes every check of what was compiled with these options of the command line."""
    words = ["sparsecc", "verify", bundle, "--model", model]
    samples = str(options.get("calib") or NO_SAMPLES)
    if not_by_zeroing(plan):
        has_samples = samples not in (SYNTHETIC, SELF, NO_SAMPLES)
        words += ["--calib", samples] if has_samples else ["--reproduce"]
    for library in options.get("custom_ops") or ():
        words += ["--custom-ops", str(library)]
    return shlex.join(words)
