"""The other jobs of a worker: inspect, profile, compare, verify."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.bundle.folder import SIGNATURE, Bundle
from sparsecc.bundle.plan_file import read_plan, require_fits
from sparsecc.bundle.signing import signature_check
from sparsecc.cost.model import macs_model, params_model
from sparsecc.data.random_inputs import random_feeds
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.explain import explain
from sparsecc.graph.groups import Group, find_groups, known_names, nodes_holding
from sparsecc.graph.patterns import require_matches
from sparsecc.graph.residual_blocks import ResidualBlock, find_blocks
from sparsecc.ir.save import write
from sparsecc.loading.identity import identity_of, is_same
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loading.private_copy import private_copy
from sparsecc.options import CompileOptions, are_sizes
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.report.assemble import pinned_reasons
from sparsecc.report.inspect_page import topology
from sparsecc.runtime.numerics import QUANTIZED, is_quantized, tolerance_of, worst_error
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.session import open_session
from sparsecc.system import memory
from sparsecc.system.files import size_of
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.tasks.inputs import model_file
from sparsecc.tasks.reproduce import reproduced
from sparsecc.verify.plan_check import zeroed

Emit = Callable[[dict[str, Any]], None]


def inspect(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Groups, members, what can go, and what is pinned and why."""
    path, options = Path(request["model"]), CompileOptions.of(request["options"])
    emit({"stage": "load", "share": 0.0})
    model = normalise(load_ir(path))
    emit({"stage": "analyse", "share": 0.4})
    analysis = analyse(model, options.dims, prune_io=options.prune_io)
    groups = find_groups(analysis, keep=options.keep, only=options.only)
    blocks = find_blocks(analysis, len(groups), keep=options.keep, only=options.only)
    require_matches(options.keep, options.only, known_names(analysis, groups), len(groups) + len(blocks))
    nodes = nodes_holding(analysis)
    macs, params = macs_model(analysis), params_model(analysis)
    half = {g.atom: 1 for g in groups if g.is_free}
    found: dict[str, Any] = {
        "schema": "sparsecc.inspect/1",
        "model": _model_facts(path, analysis) | {"macs": macs.total({}), "params": params.total({})},
        "prunable": {
            "macs_share": 1 - macs.total(half) / (macs.total({}) or 1),
            "params_share": _share_in_free_groups(analysis, groups),
        },
        "groups": [
            *(_group_facts(g, macs.at_stake(g.atom), nodes.get(g.atom, g.nodes)) for g in groups),
            *map(_block_facts, blocks),
        ],
        "pins": pinned_reasons(groups),
        "unknown_ops": _unfollowed(analysis),
        "counted_once": [node.name for node in analysis.record.counted_once],
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
        "members": [list(m) for m in group.members],
        "nodes": list(nodes),
        "macs": macs,
        "params": group.params,
        "mixes": group.mixes,
    }


def _block_facts(block: ResidualBlock) -> dict[str, Any]:
    """A layer as a group of one slot, from the value at its entry to that at its exit."""
    return {
        "id": block.id,
        "kind": block.kind,
        "size": 1,
        "prunable": block.is_free,
        "pinned": block.pinned,
        "members": [[name, 0] for name in block.members],
        "nodes": [node.name for node in block.nodes],
        "macs": block.macs,
        "params": block.params,
        "mixes": False,
        "entry": block.entry,
        "exit": block.exit,
    }


def _share_in_free_groups(analysis: Analysis, groups: list[Group]) -> float:
    names = {name for g in groups if g.is_free for name, _ in g.members}
    initializers = analysis.model.graph.initializers
    tensors = {n: t for n, v in initializers.items() if (t := v.const_value) is not None and len(t.shape) > 0}
    floats = {
        n: int(t.size) for n, t in tensors.items() if t.dtype.is_floating_point() or t.dtype.bitwidth <= 8
    }
    return sum(size for n, size in floats.items() if n in names) / (sum(floats.values()) or 1)


def _unfollowed(analysis: Analysis) -> list[dict[str, Any]]:
    found = Counter((n.op_type, reason) for n, reason in analysis.record.unfollowed.items())
    return [{"op": op, "nodes": number, "reason": reason} for (op, reason), number in found.most_common()]


def verify(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Check a bundle: manifest, that it runs, and, with the original, its plan and numerics."""
    bundle = Bundle.open(Path(request["bundle"]))
    problems = list(bundle.verify_manifest())
    checks = [
        {"check": "manifest", "ok": not problems, "detail": "; ".join(problems) or "every hash matches"}
    ]
    if not problems and (request.get("key") or (bundle.folder / SIGNATURE).exists()):
        checks.append(signature_check(bundle, request.get("key")))
    if any(check["ok"] is False for check in checks):
        return _verified(checks)  # what is not what it says is not opened
    emit({"stage": "load", "share": 0.2})
    with temporary_folder("scratch") as scratch:
        return _verified(checks + _opened_checks(bundle, request, emit, Path(scratch)))


def _verified(checks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schema": "sparsecc.verify/1", "ok": all(c["ok"] is not False for c in checks), "checks": checks}


def _opened_checks(
    bundle: Bundle, request: dict[str, Any], emit: Emit, scratch: Path
) -> list[dict[str, Any]]:
    """What takes opening the model, which passes the front door first."""
    compiled = model_file(bundle.folder)
    by_parts = not memory.fits(size_of(bundle.folder))
    runner = PartedRunner(load_ir(compiled)) if by_parts else open_session(private_copy(compiled, scratch))
    how = "is read by parts: it is too large to load whole" if by_parts else "loads in ONNX Runtime"
    checks = [{"check": "loads", "ok": True, "detail": f"{compiled.name} {how}"}]
    if request.get("model"):
        checks += _against_original(bundle, Path(request["model"]), runner, emit)
    if request.get("reproduce"):
        checks.append(reproduced(bundle, Path(request["model"]), request.get("options") or {}, emit))
    return checks


def _against_original(bundle: Bundle, original: Path, runner: Any, emit: Emit) -> list[dict[str, Any]]:
    """The outsider's check: zero what the plan says in the original, and compare outputs."""
    plan = read_plan(bundle.plan)
    found = identity_of(original)
    same = is_same(plan["model"], found)
    detail = "is the model that was compiled" if same else "is not the model that was compiled"
    if same and "data" in found and "data" not in plan["model"]:
        detail += ", by its file; an older version recorded no hash of its external data"
    checks = [{"check": "original", "ok": same, "detail": f"{original.name} {detail}"}]
    if not same:
        return checks
    emit({"stage": "compare", "share": 0.5})
    mixed = [g["id"] for g in plan["groups"] if g["mixes"] and g["kept"] < g["size"]]
    if mixed or plan["quantization"] or plan["patterns"] or plan["repaired"]:
        what = (
            f"{len(mixed)} removed groups are mixed by an operator"
            if mixed
            else "the weights were changed after removal"
        )
        return [
            *checks,
            {"check": "numerics", "ok": True, "detail": f"not exactly checkable by zeroing: {what}"},
        ]
    with temporary_folder("scratch") as scratch:
        model = normalise(load_ir(original))
        in_integers = is_quantized(model)
        require_fits(plan, model)
        sizes = _compared_sizes(bundle)
        cut = zeroed(model, plan)
        feeds = random_feeds(model, seed=1, sizes=sizes, sample=_compared_integers(bundle))
        narrowed = Narrowed.from_json(plan["io"])
        if memory.fits(memory.weight_bytes(cut)):
            path = write(cut, Path(scratch) / "zeroed" / "model.onnx")
            dense = open_session(path, level="none").run(feeds)
        else:
            dense = PartedRunner(cut).run(feeds)
        try:
            wanted, smaller = narrowed.wanted(dense), narrowed.feeds(feeds)
        except (KeyError, IndexError) as e:
            raise InputError("plan.json keeps slots of inputs or outputs that the model does not have") from e
        error = worst_error(wanted, runner.run(smaller))
    ok = error <= (QUANTIZED if in_integers else 16 * tolerance_of(wanted))
    return [*checks, {"check": "numerics", "ok": ok, "detail": f"largest relative error {error:.2g}"}]


def _compared_sizes(bundle: Bundle) -> dict[str, list[int]]:
    """The input sizes that the compile compared the models at. InputError when the report does not say."""
    found = bundle.report.get("verification")
    sizes = found.get("inputs") if isinstance(found, dict) else None
    first = sizes[0] if isinstance(sizes, list) and sizes else None
    if not isinstance(first, dict) or not all(map(are_sizes, first.values())):
        raise InputError("report.json does not say at which sizes the models were compared: compile again")
    return first


def _compared_integers(bundle: Bundle) -> dict[str, np.ndarray]:
    """The integers that the compile took from a sample. InputError where the report holds anything else."""
    found = bundle.report["verification"].get("integers", {})
    arrays = {n: np.asarray(v, dtype=object) for n, v in found.items()} if isinstance(found, dict) else None
    if arrays is None or not all(
        type(x) is int and abs(x) < 1 << 63 for a in arrays.values() for x in a.ravel()
    ):
        raise InputError("report.json does not say at which integers the models were compared: compile again")
    return {name: array.astype(np.int64) for name, array in arrays.items()}
