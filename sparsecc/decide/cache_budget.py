"""A decoder's cache within so many bytes a token (`--kv-bytes`): it shrinks before any other budget is spent, by whole
layers where they may go, then by heads of keys and values and their widths.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparsecc.compilation import Compilation
from sparsecc.cost.model import cache_model
from sparsecc.decide.channels import Dead, choose
from sparsecc.decide.limits import Bounds, Limits
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group


def share_to_go(compilation: Compilation, analysis: Analysis) -> float:
    """The share of its cache that a model, as it stands, must lose for `--kv-bytes`; 0 where it fits, and without that
    option. InputError where the dense model has no caches."""
    asked = compilation.options.kv_bytes
    if asked is None:
        return 0.0
    cache = cache_model(analysis)
    if not cache.terms and not compilation.caches:  # layers may have taken them all
        raise InputError("--kv-bytes: the model has no caches of keys and values: take --size or --ratio")
    return max(0.0, 1 - asked / cache.total({})) if cache.terms else 0.0


def within_cache(
    compilation: Compilation, analysis: Analysis, groups: list[Group], dead: Dead, limits: Limits
) -> Limits:
    """The limits of groups, with the slots gone that the cache loses for `--kv-bytes`."""
    share = share_to_go(compilation, analysis)
    if not share:
        return limits
    options = replace(compilation.options, metric="kv", ratio=share)
    choice = choose(compilation.again(options, compilation.emit), analysis, groups, share, dead, limits)
    facts = {"kv_before": round(choice.before), "kv_after": round(choice.after)}
    compilation.note("cache", {**choice.method, **facts})
    if not choice.reached:
        least = f"{choice.after:,.0f} bytes a token is the least that it can be"
        compilation.warnings.append(f"--kv-bytes {options.kv_bytes:,.0f} was not reached: {least}")
    found = dict(limits.of)
    for atom, stays in choice.keep.items():
        none = np.zeros(len(stays), dtype=bool)
        bounds = found.get(atom) or Bounds(none, none)
        found[atom] = replace(bounds, gone=bounds.gone | ~stays)
    return replace(limits, of=found)
