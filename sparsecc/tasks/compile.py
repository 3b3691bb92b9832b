"""Compile a model into a bundle. It runs inside a worker process; `sparsecc.api` is the face."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sparsecc.bundle.folder import BundleWriter
from sparsecc.bundle.package import carry
from sparsecc.compilation import Compilation
from sparsecc.data.texts import TOKENIZER
from sparsecc.decide.channels import require_methods
from sparsecc.decide.passes import require_passes
from sparsecc.errors import GoalError
from sparsecc.graph.decoder_sizes import DecoderSizes
from sparsecc.loading.package import Package
from sparsecc.options import CompileOptions
from sparsecc.plan import Plan
from sparsecc.report import assemble
from sparsecc.report.verdict import refusal
from sparsecc.system.files import size_of
from sparsecc.system.processor import processor
from sparsecc.system.progress import Emit
from sparsecc.system.scratch import Scratch
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.system.versions import versions
from sparsecc.tasks.chain import write_files
from sparsecc.tasks.fewer_words import WORDS, compilation_of
from sparsecc.tasks.stages import DECIDING, Work, walk
from sparsecc.verify.stored_probes import PROBES


def compile_model(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Compile `request["model"]` with `request["options"]` into the bundle `request["output"]`.

    Where the caller made a folder for it, `request["folder"]`, the files are written there, and the caller publishes
    them with the "facts" of the result.
    """
    options = CompileOptions.of(request["options"])
    require_methods(options)  # what cannot be done is refused before anything is loaded
    require_passes(options)
    with temporary_folder("scratch") as scratch:
        return compiled(compilation_of(Path(request["model"]), options, Scratch(scratch), emit), request)


def compiled(compilation: Compilation, request: Mapping[str, Any]) -> dict[str, Any]:
    """A compile with all its stages into `request["output"]`, or with `request["dry_run"]` what it would decide."""
    if request.get("dry_run"):
        work = walk(Work(compilation), DECIDING)
        report = assemble.report(compilation, work.decision, {}, {}, None)
        return {"bundle": None, "report": report, "plan": work.decision.plan.to_json()}
    output, force = Path(request["output"]), bool(request.get("force"))
    with BundleWriter(output, force=force, folder=request.get("folder")) as bundle:
        work = Work(compilation, bundle.folder)
        work.backend.require(work.backend.build_options(compilation.options))
        walk(work)
        chained = write_files(work) if compilation.chain is not None else {}
        plan = work.decision.plan
        report = assemble.report(compilation, work.decision, work.verification, _figures(work), work.accuracy)
        options = compilation.options
        if refused := refusal(report, options.min_quality, options.min_agreement):
            advice = report["verdict"]["advice"] or "lower it, or take less with a lower --ratio"
            raise GoalError(f"nothing was written: {refused}: {advice}")
        if compilation.package is not None:
            report["package"] = chained | _carry(compilation.package, work)
        if compilation.vocabulary is not None:
            report["vocabulary"] = {n: v for n, v in compilation.vocabulary.items() if n != "kept"}
        work.probes.keep(work.backend, work.compiled, bundle.folder / PROBES)
        write_bundle(compilation, bundle, plan, report)
    made = {"bundle": str(bundle.destination), "report": report, "plan": plan.to_json()}
    return {**made, "facts": bundle.facts}


def _carry(package: Package, work: Work) -> dict[str, Any]:
    """Write what stands beside the model in its package."""
    chain, dense = work.compilation.chain, work.compilation.decoder
    if chain is not None:
        sizes = {name: (chain.dense[name], left) for name, left in chain.left.items()}
        return carry(package, work.folder, sizes, cross=chain.cross)
    assert dense is not None  # of a package
    both = dense, DecoderSizes.of(work.analysis.model)
    return carry(package, work.folder, {package.model.name: both}, work.artefact.main)


def _figures(work: Work) -> dict[str, Any]:
    """What was measured, with sizes and what the backend says of its build; no time in a compile that measures
    nothing."""
    is_timed = work.compilation.options.measure
    built = {k: v for k, v in work.artefact.facts.items() if is_timed or k != "build_seconds"}
    chain = work.compilation.chain
    before = work.compilation.dense.bytes if chain is None else chain.bytes
    sizes = {"before": before, "after": size_of(work.folder)}
    figures = {**work.measured, "bytes": sizes, "built": built}
    if work.artefact.weights is not None:
        figures["weights"] = {"before": work.compilation.dense.weights, "after": work.artefact.weights}
    return figures


def _kept_beside(compilation: Compilation, folder: Path) -> dict[str, str]:
    """Copy the files that say which slots go, which ranges hold and which words stay into the bundle: the recipe names
    them there."""
    options, kept = compilation.options, {}
    if compilation.vocabulary is not None:
        kept["vocabulary"] = WORDS
        (folder / WORDS).write_text(json.dumps(compilation.vocabulary["kept"].tolist()) + "\n")
        tokenizer = compilation.file.parent / TOKENIZER
        if compilation.package is None and tokenizer.is_file():
            shutil.copyfile(tokenizer, folder / TOKENIZER)
    for name, source in (("slots", options.slots), ("plan", options.plan), ("ranges", options.ranges)):
        if source is not None:
            kept[name] = f"given_{name}{Path(source).suffix.lower()}"
            shutil.copyfile(source, folder / kept[name])
    return kept


def write_bundle(compilation: Compilation, bundle: BundleWriter, plan: Plan, report: dict[str, Any]) -> None:
    """Everything beside the artefact: plan, report, page, recipe; the manifest follows by itself."""
    from sparsecc.report.html import compile_page

    options = compilation.options
    recipe = yaml.safe_dump(
        options.settled(compilation.measured_options).to_recipe() | _kept_beside(compilation, bundle.folder),
        sort_keys=True,
    )
    original = {name: plan.model[name] for name in ("sha256", "data") if name in plan.model}
    about = {"input": original, "versions": versions(), "seed": options.seed}
    bundle.facts = {**about, "processor": processor()}
    bundle.write_json("plan.json", plan.to_json())
    bundle.write_json("report.json", report)
    (bundle.folder / "recipe.yaml").write_text(recipe)
    command = f"sparsecc compile {(compilation.original or compilation.file).name}"
    page = compile_page(report, plan.to_json(), recipe=recipe, command=command)
    (bundle.folder / "report.html").write_text(page, encoding="utf-8")
