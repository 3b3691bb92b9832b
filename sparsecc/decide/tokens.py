"""Fewer tokens from a third of the layers on, where `--tokens` asks for it: which site, and the proof.

A number is fixed, which tokens they are is decided for every image: so shapes stay static.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsecc.cost import summary
from sparsecc.decide.layers import Depth, require_same, samples_for
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.token_sites import CannotReduceError, TokenSite, find_site
from sparsecc.graph.zero_masks import idle_masks
from sparsecc.ir.save import write
from sparsecc.passes.base import PassContext, Skip
from sparsecc.passes.drop_blocks import drop
from sparsecc.passes.reduce_tokens import ReduceTokens
from sparsecc.plan import Plan
from sparsecc.reference.hidden_tokens import unseen
from sparsecc.runtime.numerics import fidelity
from sparsecc.runtime.session import open_session
from sparsecc.targets import target_named

if TYPE_CHECKING:
    from sparsecc.tasks.compile import Job
    from sparsecc.verify.prove import Probes


def thin(job: Job, analysis: Analysis, depth: Depth, probes: Probes) -> tuple[Analysis, Depth]:
    """Leave tokens out where that was asked for; analyse what is left anew.

    Where the model has no site for it the report says why. InternalError where the model is not the one in
    which later attention does not see these tokens.
    """
    share, model = job.options.tokens, analysis.model
    if share is None:
        return analysis, depth
    before = depth.before or summary.costs(analysis, {})["before"]
    macs, nodes = _macs(analysis), len(model.graph)
    if idle := idle_masks(analysis):
        drop(model, idle)
        analysis = probes.analysed(model)
    try:
        site = find_site(analysis)
    except CannotReduceError as e:
        job.skipped.append((ReduceTokens.name, Skip(e.where, e.reason)))
        job.warnings.append(f"--tokens {share:g} left out none: {e.reason}")
        return analysis, replace(depth, added=len(model.graph) - nodes)
    kept = max(1, round(share * site.patches))
    tokens = _cut(job, analysis, site, kept, probes)
    left = probes.analysed(model)
    metric = "params" if job.options.metric == "params" else "macs"
    removed = 1 - summary.costs(left, {})["before"][metric] / (before[metric] or 1)
    added = len(model.graph) - nodes
    return left, replace(depth, tokens=tokens, removed=removed, before=before, macs=macs, added=added)


def _macs(analysis: Analysis) -> dict[str, int]:
    return {row["name"]: row["macs_before"] for row in summary.layers(analysis, {})}


def _cut(job: Job, analysis: Analysis, site: TokenSite, kept: int, probes: Probes) -> dict[str, Any]:
    """Run the pass, hold its result against attention that does not see the others; what the plan says of it."""
    model, options = analysis.model, job.options
    stream, attention = site.stream.name or "", site.attention.name or ""
    tokens: dict[str, Any] = {
        "stream": stream,
        "attention": attention,
        "later": [n.name or "" for n in site.later],
    }
    tokens |= {"first": site.first, "patches": site.patches, "kept": kept}
    path = write(unseen(model, tokens), job.scratch / "unseen" / "model.onnx")
    reference = open_session(path, threads=options.threads, level="none")
    one = ReduceTokens(stream, attention, site.first, site.patches, kept)
    context = PassContext(
        target_named(options.target), job.scratch, seed=options.seed, analysed=probes.analysed
    )
    result = one.run(model, Plan({}), context)
    path = write(model, job.scratch / "fewer" / "model.onnx")
    fewer = open_session(path, threads=options.threads, level="none")
    probes.rest_on(reference)
    worst = require_same(reference, fewer, probes, f"the model of {kept} tokens")
    samples = samples_for(options, model, probes)
    close = _mean([fidelity(probes.runner.run(f), fewer.run(f)) for f in samples])
    facts = {"layer": site.layer, "layers": site.layers, "max_relative_error": worst, "fidelity": close}
    job.seconds.append({"name": str(one), "facts": {**result.facts, **facts}})
    return tokens


def _mean(found: list[dict[str, Any]]) -> Mapping[str, float]:
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]} if found else {}
