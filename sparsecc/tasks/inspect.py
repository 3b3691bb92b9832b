"""The groups of a model: what can go, and what is pinned and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.axes.algebra import atoms_of, mask
from sparsecc.cost import summary
from sparsecc.cost.model import macs_model
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.explain import explain
from sparsecc.graph.groups import Group, find_groups, known_names, nodes_holding, pinned_reasons, reason_of
from sparsecc.graph.patterns import require_matches
from sparsecc.graph.residual_blocks import ResidualBlock, find_blocks
from sparsecc.loading.chain import Chain
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loading.package import is_bundle_of_one, model_file, package_at
from sparsecc.loading.skip_norms import split_skip_norms
from sparsecc.loss.answers import named_io
from sparsecc.options import CompileOptions
from sparsecc.report.inspect_page import topology

Emit = Callable[[dict[str, Any]], None]


def inspect(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Groups, members, what can go, and what is pinned and why."""
    path, options = Path(request["model"]), CompileOptions.of(request["options"])
    emit({"stage": "load", "share": 0.0})
    package = None if is_bundle_of_one(path) else package_at(path)
    if package is not None and package.is_chain:
        model = Chain.of(package).model
    else:
        path = model_file(path)
        model = normalise(load_ir(path))
    split_skip_norms(model)
    emit({"stage": "analyse", "share": 0.4})
    analysis = analyse(model, options.dims, prune_io=named_io(model, options.prune_io)[0])
    groups = find_groups(analysis, keep=options.keep, only=options.only)
    blocks = find_blocks(analysis, len(groups), keep=options.keep, only=options.only)
    asked = {"keep": options.keep, "only": options.only}
    require_matches(asked, known_names(analysis, groups), len(groups) + len(blocks))
    nodes = nodes_holding(analysis)
    macs, batch = macs_model(analysis), summary.batch_of(analysis)
    can_go, kept, total = _elements(analysis, groups)
    half = {g.atom: 1 for g in groups if g.is_free}
    found: dict[str, Any] = {
        "schema": "sparsecc.inspect/1",
        "model": _model_facts(path, analysis) | summary.costs(analysis, {})["before"],
        "counted": summary.counted_at(analysis),
        "prunable": {
            "macs_share": 1 - macs.total(half) / (macs.total({}) or 1),
            "params_share": can_go / (total or 1),
            "no_channels_share": kept.get("", 0.0) / (total or 1),
        },
        "groups": [
            *(_group_facts(g, macs.at_stake(g.atom) / batch, nodes.get(g.atom, g.nodes)) for g in groups),
            *(_block_facts(block, block.macs / batch) for block in blocks),
        ],
        "pins": _pins(groups, kept, total),
        "unknown_ops": _unfollowed(analysis),
        "graph": topology(model),
    }
    if request.get("why"):
        found["why"] = explain(analysis, request["why"])
    return found


def _model_facts(path: Path, analysis: Analysis) -> dict[str, Any]:
    graph = analysis.model.graph
    outside = {"inputs": graph.inputs, "outputs": graph.outputs}
    described = {
        side: [
            {"name": v.name, "shape": [str(d) for d in v.shape or ()], "type": str(v.dtype)} for v in values
        ]
        for side, values in outside.items()
    }
    return {"path": path.name, "nodes": len(graph), "opset": analysis.version, **described}


def _group_facts(group: Group, macs: float, nodes: Sequence[str]) -> dict[str, Any]:
    return {
        "id": group.id,
        "kind": group.kind,
        "size": group.size,
        "prunable": group.is_free,
        "pinned": group.pinned,
        "members": [list(m) for m in group.in_file],
        "modules": group.modules,
        "nodes": list(nodes),
        "macs": macs,
        "params": group.params,
        "mixes": group.mixes,
    }


def _block_facts(block: ResidualBlock, macs: float) -> dict[str, Any]:
    """A layer as a group of one slot, from the value at its entry to that at its exit."""
    return {
        "id": block.id,
        "kind": block.kind,
        "size": 1,
        "prunable": block.is_free,
        "pinned": block.pinned,
        "members": [[name, 0] for name in block.members],
        "nodes": [node.name for node in block.nodes],
        "macs": macs,
        "params": block.params,
        "mixes": False,
        "entry": block.entry,
        "exit": block.exit,
    }


def _elements(analysis: Analysis, groups: Sequence[Group]) -> tuple[float, dict[str, float], int]:
    """How many elements of weights lie in a free slot of any of their axes, how many stay, by the reason of the first
    of their axes that is pinned, and how many there are. What has no channels (tables of positions) has no reason."""
    free = {g.atom: np.zeros(g.size, dtype=bool) for g in groups if g.is_free}
    reasons = {g.atom: reason_of(g) for g in groups if not g.is_free}
    stays: dict[str, tuple[float, str]] = {}
    for value, axes in analysis.weights():
        left = [slots.mean() for axis in axes if (slots := mask(axis, free)) is not None]
        found = (reasons[atom] for axis in axes for atom in atoms_of(axis) if atom in reasons)
        now = float(np.prod(left)), next(found, "")
        stays[value.name or ""] = min(stays.get(value.name or "", now), now)
    initializers = analysis.model.graph.initializers
    tensors = {n: t for n, v in initializers.items() if (t := v.const_value) is not None and len(t.shape) > 0}
    floats = {
        n: int(t.size) for n, t in tensors.items() if t.dtype.is_floating_point() or t.dtype.bitwidth <= 8
    }
    kept: dict[str, float] = {}
    for name, size in floats.items():
        share, reason = stays.get(name, (1.0, ""))
        kept[reason] = kept.get(reason, 0.0) + size * share
    total = sum(floats.values())
    return total - sum(kept.values()), kept, total


def _pins(groups: Sequence[Group], kept: Mapping[str, float], total: int) -> list[dict[str, Any]]:
    """Reasons for pins, with the parameters that stay for each and for no other: with those that can go, all."""
    rows = [row | {"params": round(kept.get(row["reason"], 0.0))} for row in pinned_reasons(groups)]
    return [row | {"share": kept.get(row["reason"], 0.0) / (total or 1)} for row in rows]


def _unfollowed(analysis: Analysis) -> list[dict[str, Any]]:
    found = Counter((n.op_type, reason) for n, reason in analysis.record.unfollowed.items())
    return [{"op": op, "nodes": number, "reason": reason} for (op, reason), number in found.most_common()]
