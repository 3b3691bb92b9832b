"""Verify a bundle: each check is ok, failed, or not checked with the reason; it is sound where all were ok."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.bundle.folder import SIGNATURE, Bundle
from sparsecc.bundle.rechecked import WAYS, not_by_zeroing
from sparsecc.bundle.signing import signature_check
from sparsecc.data.plan_file import read_plan, require_fits
from sparsecc.data.random_inputs import random_feeds
from sparsecc.data.samples import CalibrationSet
from sparsecc.errors import InputError
from sparsecc.loading.identity import identity_of, is_same
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loading.package import GENAI, HUGGING_FACE, model_file
from sparsecc.loading.private_copy import private_copy
from sparsecc.loading.skip_norms import split_skip_norms
from sparsecc.loss.judge import worst_quality
from sparsecc.loss.quality import told
from sparsecc.options import CompileOptions, are_sizes
from sparsecc.reference.gated_layers import dropped_branches
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.runtime.numerics import QUANTIZED, is_quantized, tolerance_of, worst_error
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.session import open_graph, open_session
from sparsecc.system import memory
from sparsecc.system.files import size_of
from sparsecc.system.scratch import Scratch
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.tasks.chain import as_one_file
from sparsecc.tasks.fewer_words import WORDS, with_fewer_words
from sparsecc.tasks.reproduce import reproduced
from sparsecc.verify.plan_check import zeroed
from sparsecc.verify.probes import RANDOM
from sparsecc.verify.stored_probes import PROBES, compared, inputs_of

Emit = Callable[[dict[str, Any]], None]
Check = dict[str, Any]
"""{"check", "ok", "status", "detail"}; `ok` is None where it was not checked."""

AGAIN_DB = 2.0
"""By how much the quality on samples given again may fall short of what was told: they may be others."""


def verify(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Check a bundle: manifest, signature, that it gives what it gave; with the original, plan and numerics."""
    bundle = Bundle.open(Path(request["bundle"]))
    problems = list(bundle.verify_manifest())
    checks = [_checked("manifest", not problems, "; ".join(problems) or "every hash matches")]
    if not problems and (request.get("key") or (bundle.folder / SIGNATURE).exists()):
        signed = signature_check(bundle, request.get("key"))
        checks.append(_checked("signature", signed["ok"], signed["detail"]))
    if any(check["ok"] is False for check in checks):
        return _verified(checks)  # what is not what it says is not opened
    emit({"stage": "load", "share": 0.2})
    with temporary_folder("scratch") as scratch:
        return _verified(checks + _opened_checks(bundle, request, emit, Scratch(scratch)))


def _checked(name: str, ok: bool | None, detail: str) -> Check:
    status = {True: "ok", False: "failed", None: "not checked"}[ok]
    return {"check": name, "ok": ok, "status": status, "detail": detail}


def _verified(checks: list[Check]) -> dict[str, Any]:
    """`ok` where nothing failed, `is_sound` where everything was checked."""
    return {
        "schema": "sparsecc.verify/1",
        "ok": all(c["ok"] is not False for c in checks),
        "is_sound": all(c["ok"] is True for c in checks),
        "checks": checks,
    }


def _opened_checks(bundle: Bundle, request: dict[str, Any], emit: Emit, scratch: Scratch) -> list[Check]:
    """What takes opening the model, which passes the front door first."""
    compiled = as_one_file(bundle.folder, scratch.chain_of_result)
    by_parts = not memory.fits(size_of(bundle.folder))
    runner = (
        PartedRunner(load_ir(compiled)) if by_parts else open_session(private_copy(compiled, scratch.folder))
    )
    how = "is read by parts: it is too large to load whole" if by_parts else "loads in ONNX Runtime"
    checks = [_checked("loads", True, f"{compiled.name} {how}"), _on_stored_probes(bundle, runner)]
    if not request.get("model"):
        missing = "give the model it was compiled from with --model"
        return [*checks, *(_checked(name, None, missing) for name in ("original", "numerics"))]
    emit({"stage": "compare", "share": 0.5})
    named = Path(request["model"])
    original = as_one_file(named, scratch.chain)
    whole = named if original == scratch.chain else original
    plan = read_plan(bundle.plan)
    checks.append(_is_original(plan, whole))
    if not checks[-1]["ok"]:
        return checks
    dense = original
    if (bundle.folder / WORDS).is_file():
        asked = CompileOptions.of({"vocabulary": str(bundle.folder / WORDS)})
        dense = model_file(with_fewer_words(Path(request["model"]), asked, scratch).model)
    given = request.get("options") or {}
    against = _Against(bundle, plan, dense, runner)
    numerics = against.zeroing()
    if given.get("calib") and against.was_told_on_samples and numerics["ok"] is not False:
        numerics = against.samples(str(given["calib"]))
    if {GENAI, HUGGING_FACE} & bundle.manifest["files"].keys() and whole is original:
        whole = original.parent
    again = [reproduced(bundle, whole, given, emit)] if request.get("reproduce") else []
    if again and numerics["ok"] is None and again[0]["ok"]:
        numerics = _checked("numerics", True, "by compiling again")
    return [*checks, numerics, *(_checked("reproduce", one["ok"], one["detail"]) for one in again)]


def _on_stored_probes(bundle: Bundle, runner: Any) -> Check:
    """What the compiled model gives for the inputs that the bundle keeps."""
    path = bundle.folder / PROBES
    if not path.is_file():
        return _checked("fidelity", None, f"the bundle keeps no {PROBES}: {WAYS}")
    feeds, stored = inputs_of(path)
    try:
        found = runner.run(feeds)
    except InputError as e:
        return _checked("fidelity", False, f"it does not run on {PROBES}: {e}")
    return _checked("fidelity", *compared(stored, found))


def _is_original(plan: Mapping[str, Any], original: Path) -> Check:
    found = identity_of(original)
    same = is_same(plan["model"], found)
    detail = "is the model that was compiled" if same else "is not the model that was compiled"
    if same and "data" in found and "data" not in plan["model"]:
        detail += ", by its file; an older version recorded no hash of its external data"
    return _checked("original", same, f"{original.name} {detail}")


@dataclass
class _Against:
    """The outsider's comparisons with the original."""

    bundle: Bundle
    plan: Mapping[str, Any]
    original: Path
    runner: Any

    @property
    def was_told_on_samples(self) -> bool:
        """Whether the quality in the report is one that samples can be held against: random inputs tell another."""
        return (self.bundle.report.get("fidelity") or {}).get("data") != RANDOM

    def zeroing(self) -> Check:
        """Zero what the plan says in the original, and compare outputs."""
        plan = self.plan
        if why := not_by_zeroing(plan):
            return _checked("numerics", None, why)
        model = normalise(load_ir(self.original))
        if dropped_branches(plan):
            split_skip_norms(model)
        in_integers = is_quantized(model)
        require_fits(plan, model)
        sizes = _compared_sizes(self.bundle)
        cut = zeroed(model, plan)
        feeds = random_feeds(
            model, seed=1, sizes=sizes, sample=_compared_integers(self.bundle), plain=_plain(self.bundle)
        )
        whole = memory.fits(memory.weight_bytes(cut))
        dense = (open_graph(cut) if whole else PartedRunner(cut)).run(feeds)
        wanted, smaller = self._narrowed(dense, feeds)
        error = worst_error(wanted, self.runner.run(smaller))
        ok = error <= (QUANTIZED if in_integers else 16 * tolerance_of(wanted))
        return _checked("numerics", ok, f"largest relative error {error:.2g}")

    def samples(self, spec: str) -> Check:
        """The quality on samples given again, beside that which was told."""
        fidelity = self.bundle.report.get("fidelity") or {}
        before = worst_quality(fidelity)
        if before is None:
            return _checked("numerics", None, "report.json tells no quality to compare with: compile again")
        model = normalise(load_ir(self.original))
        given = CalibrationSet(spec, model, beside=self.original.parent)
        judged = given.held_out if given.held_out.batches and "fits" not in fidelity else given.samples
        dense = open_graph(model)
        wanted, found = [], []
        for feeds in judged.batches:
            outputs, smaller = self._narrowed(dense.run(feeds), feeds)
            wanted.append(outputs)
            found.append(self.runner.run(smaller))
        after = worst_quality(told(wanted, found)) or 0.0
        detail = f"worst part {after:.1f} dB on {judged.number} of the samples, {before:.1f} dB was told"
        return _checked("numerics", after >= min(before, 100.0) - AGAIN_DB, detail)

    def _narrowed(
        self, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """(what is left of the original's outputs, of its inputs)."""
        narrowed = Narrowed.from_json(self.plan["io"], self.plan["ports"])
        try:
            return narrowed.wanted(outputs), narrowed.feeds(feeds)
        except (KeyError, IndexError) as e:
            raise InputError("plan.json keeps slots of inputs or outputs that the model does not have") from e


def _compared_sizes(bundle: Bundle) -> dict[str, list[int]]:
    """The input sizes that the compile compared the models at. InputError when the report does not say."""
    found = bundle.report.get("verification")
    sizes = found.get("inputs") if isinstance(found, dict) else None
    first = sizes[0] if isinstance(sizes, list) and sizes else None
    if not isinstance(first, dict) or not all(map(are_sizes, first.values())):
        raise InputError("report.json does not say at which sizes the models were compared: compile again")
    return first


def _plain(bundle: Bundle) -> int | None:
    """How random inputs were drawn, as `random_feeds` takes it."""
    found = bundle.report["verification"].get("plain")
    return found if type(found) is int and found in (0, 1) else None


def _compared_integers(bundle: Bundle) -> dict[str, np.ndarray]:
    """The integers that the compile took from a sample. InputError where the report holds anything else."""
    found = bundle.report["verification"].get("integers", {})
    arrays = {n: np.asarray(v, dtype=object) for n, v in found.items()} if isinstance(found, dict) else None
    if arrays is None or not all(
        type(x) is int and abs(x) < 1 << 63 for a in arrays.values() for x in a.ravel()
    ):
        raise InputError("report.json does not say at which integers the models were compared: compile again")
    return {name: array.astype(np.int64) for name, array in arrays.items()}
