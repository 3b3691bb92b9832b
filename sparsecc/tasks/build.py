"""Finish a bundle that `--emit onnx` left: build the engine and replace the bundle, all or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsecc.backends import backend_named
from sparsecc.backends.base import Backend, with_switches
from sparsecc.bundle.folder import MANIFEST, SIGNATURE, Bundle, BundleWriter
from sparsecc.errors import InputError
from sparsecc.loading.private_copy import require_sound
from sparsecc.targets import target_named

Emit = Callable[[dict[str, Any]], None]

_OF_THE_MANIFEST = {"schema", "files", "versions"}


def build(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Build the bundle `request["bundle"]` on `request["device"]`; what was built, and how.

    InputError for a bundle whose target has nothing left to build, GoalError for one that was changed,
    UnavailableError where the engine cannot be built. The bundle is then as it was.
    """
    bundle = Bundle.open(Path(request["bundle"]))
    bundle.require_intact()
    report, plan = bundle.report, bundle.plan
    backend = _backend(bundle, report)
    require_sound(bundle.folder / "model.onnx")  # NVIDIA's parser reads what a stranger may have written
    facts = {key: value for key, value in bundle.manifest.items() if key not in _OF_THE_MANIFEST}
    with BundleWriter(bundle.folder, force=True) as writer:
        writer.facts = facts
        shutil.copytree(
            bundle.folder,
            writer.folder,
            ignore=shutil.ignore_patterns(MANIFEST, SIGNATURE),
            dirs_exist_ok=True,
        )
        artefact = backend.finish(
            writer.folder,
            lambda what, share: emit({"stage": what, "share": share}),
            device=request.get("device"),
            own=with_switches(request.get("options") or {}),
        )
        report["build"] = artefact.facts
        if not isinstance(report.get("after"), dict):
            raise InputError(f"{bundle.folder}: report.json is not one of ours: compile again")
        report["after"]["engine_bytes"] = (writer.folder / artefact.main).stat().st_size
        writer.write_json("report.json", report)
        _write_page(writer.folder, report, plan)
    engine = writer.destination / artefact.main
    return {
        "schema": "sparsecc.build/1",
        "bundle": str(writer.destination),
        "target": report["target"]["name"],
        "artefact": artefact.main,
        "files": list(artefact.files),
        "bytes": engine.stat().st_size,
        "facts": artefact.facts,
    }


def _backend(bundle: Bundle, report: dict[str, Any]) -> Backend:
    name = str((report.get("target") or {}).get("name"))
    backend = backend_named(target_named(name).backend)
    if not backend.is_unfinished(bundle.folder):
        raise InputError(
            f"{bundle.folder}: nothing is left to build for target {name}: "
            "build finishes what compile --target tensorrt --emit onnx wrote"
        )
    return backend


def _write_page(folder: Path, report: dict[str, Any], plan: dict[str, Any]) -> None:
    from sparsecc.report.html import compile_page

    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    command = f"sparsecc compile {report['model']['name']}"
    page = compile_page(report, plan, recipe=recipe, command=command)
    (folder / "report.html").write_text(page, encoding="utf-8")
