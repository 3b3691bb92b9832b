"""Whether compiling again gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsecc.bundle.folder import Bundle
from sparsecc.bundle.recipe import load_recipe, names_code
from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.system.versions import versions

MEASURED = {"report.json", "report.html", "recipe.yaml"}
"""Files that hold measurements, or whether there were any."""


def reproduced(bundle: Bundle, original: Path, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """One check: compile the original by the recipe of the bundle and compare what is not measured.

    InputError where the recipe is not one of ours, or names code to run: a bundle comes from a stranger.
    """
    from sparsecc.tasks.compile import compile_model

    options = {**options_in(bundle.folder / "recipe.yaml"), "measure": False}
    with temporary_folder("scratch") as scratch:
        request = {"model": str(original), "output": f"{scratch}/out", "options": options}
        compile_model(request, emit)
        again = Bundle.open(Path(scratch) / "out").manifest["files"]
    before = bundle.manifest["files"]
    other = [n for n in sorted({*before, *again} - MEASURED) if _hash(before, n) != _hash(again, n)]
    if not other:
        return {"check": "reproduce", "ok": True, "detail": f"{len(again)} files are the same again"}
    detail = f"{', '.join(quoted(n) for n in other)} came out different"
    if bundle.manifest.get("versions") != versions():
        detail += "; it was compiled with other versions, see its manifest"
    return {"check": "reproduce", "ok": False, "detail": detail}


def _hash(files: dict[str, Any], name: str) -> object:
    return files[name].get("sha256") if isinstance(files.get(name), dict) else None


def options_in(path: Path) -> dict[str, Any]:
    """The options that a bundle's recipe holds. InputError when it holds none, or names code to run."""
    recipe = load_recipe(str(path))
    if not all(isinstance(name, str) for name in recipe):
        raise InputError(f"{path.name} holds no options: compile again")
    for name, value in recipe.items():
        if names_code(value):
            raise InputError(
                f"{path.name} names code to run in {quoted(name)}, which nothing runs unasked: "
                "compile again with that option and compare the hashes of the two manifests"
            )
    return recipe
