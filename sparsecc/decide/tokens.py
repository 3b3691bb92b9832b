"""Fewer tokens from a third of the layers on, where `--tokens` asks for it: which site, and the proof.

A number is fixed, which tokens they are is decided for every image: so shapes stay static.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparsecc.compilation import Compilation
from sparsecc.cost import summary
from sparsecc.decide.layers import Depth, require_same, samples_for
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.token_sites import CannotReduceError, TokenSite, find_site
from sparsecc.graph.zero_masks import idle_masks
from sparsecc.ir.save import write
from sparsecc.loss.quality import told
from sparsecc.passes.drop_blocks import drop
from sparsecc.passes.reduce_tokens import ReduceTokens
from sparsecc.plan import Plan
from sparsecc.reference.hidden_tokens import unseen
from sparsecc.remarks import Remark


def thin(compilation: Compilation, analysis: Analysis, depth: Depth) -> tuple[Analysis, Depth]:
    """Leave tokens out where that was asked for; analyse what is left anew.

    Where the model has no site for it the report says why. InternalError where the model is not the one in
    which later attention does not see these tokens.
    """
    share, model = compilation.options.tokens, analysis.model
    if share is None:
        return analysis, depth
    before = depth.before or summary.costs(analysis, {})["before"]
    macs, nodes = _macs(analysis), len(model.graph)
    if idle := idle_masks(analysis):
        drop(model, idle)
        analysis = compilation.analysed(model)
    try:
        site = find_site(analysis)
    except CannotReduceError as e:
        compilation.remarks.append((ReduceTokens.name, Remark(e.where, e.reason)))
        compilation.warnings.append(f"--tokens {share:g} left out none: {e.reason}")
        return analysis, replace(depth, added=len(model.graph) - nodes)
    kept = max(1, round(share * site.patches))
    tokens = _cut(compilation, analysis, site, kept)
    left = compilation.analysed(model)
    metric = "params" if compilation.options.metric == "params" else "macs"
    removed = 1 - summary.costs(left, {})["before"][metric] / (before[metric] or 1)
    added = len(model.graph) - nodes
    return left, replace(depth, tokens=tokens, removed=removed, before=before, macs=macs, added=added)


def _macs(analysis: Analysis) -> dict[str, int]:
    return {row["name"]: row["macs_before"] for row in summary.layers(analysis, {})}


def _cut(compilation: Compilation, analysis: Analysis, site: TokenSite, kept: int) -> dict[str, Any]:
    """Run the pass, hold its result against attention that does not see the others; what the plan says of it."""
    model, scratch = analysis.model, compilation.scratch
    stream, attention = site.stream.name or "", site.attention.name or ""
    tokens: dict[str, Any] = {
        "stream": stream,
        "attention": attention,
        "later": [n.name or "" for n in site.later],
    }
    tokens |= {"first": site.first, "patches": site.patches, "kept": kept}
    reference = compilation.opened(unseen(model, tokens))
    one = ReduceTokens(stream, attention, site.first, site.patches, kept)
    result = one.run(model, Plan({}), compilation)
    write(model, scratch.fewer)  # what repair compares with
    fewer = compilation.opened(model)
    compilation.rest_on(reference)
    worst = require_same(compilation, fewer, f"the model of {kept} tokens")
    dense = compilation.dense.runner
    judged = compilation.held_out.batches or samples_for(compilation)
    wanted, found = ([runner.run(feeds) for feeds in judged] for runner in (dense, fewer))
    close = told(wanted, found, compilation.parts, compilation.asked)
    facts = {"layer": site.layer, "layers": site.layers, "max_relative_error": worst, "fidelity": close}
    compilation.note(str(one), {**result.facts, **facts})
    return tokens
