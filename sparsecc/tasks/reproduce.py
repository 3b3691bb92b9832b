"""Whether compiling again gives the same bytes, or, on a processor of another type, the same up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparsecc.bundle.folder import Bundle
from sparsecc.bundle.foreign import not_given_again, read_recipe
from sparsecc.errors import InputError
from sparsecc.escaping import one_line, quoted
from sparsecc.options.builder_keys import LeftOut, all_left_out
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.system.versions import versions
from sparsecc.verify.rounding import difference
from sparsecc.verify.stored_probes import PROBES

MEASURED = {"report.json", "report.html", "recipe.yaml", PROBES}
"""Files that hold measurements, or whether there were any."""

UNSEEN = frozenset({"evaluate", "device"})
"""Options whose traces are in measured files alone."""


def reproduced(
    bundle: Bundle, original: Path, given: Mapping[str, Any], emit: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """One check: compile the original by the recipe of the bundle and compare what is not measured.

    `given` are the user's own options, which stand above those of the recipe: where samples and the metric come
    from. InputError where the recipe is not one of ours, or needs what no file may name and is not given.
    """
    from sparsecc.tasks.compile import compile_model

    options, left = options_in(bundle.folder / "recipe.yaml")
    build = dict(given.get("build", {}))
    missing = not_given_again(left, given)
    if needed := [one for one in missing if one.option not in UNSEEN]:
        raise InputError(all_left_out("recipe.yaml", needed))
    added = sorted(given.keys() - UNSEEN - {"build"} - options.keys() - {one.option for one in left})
    options |= {**given, "build": {**options.get("build", {}), **build}, "measure": False}
    with temporary_folder("scratch") as scratch:
        request = {"model": str(original), "output": f"{scratch}/out", "options": options}
        compile_model(request, emit)
        without = "".join(f", without '{one.option}' of its recipe" for one in missing)
        ok, detail = _compared(bundle, Bundle.open(scratch / "out"))
    more = "".join(f"; it was compiled without '{name}', which is given here" for name in added)
    return {"check": "reproduce", "ok": ok, "detail": detail + (without if ok else more)}


def _compared(bundle: Bundle, made: Bundle) -> tuple[bool, str]:
    """Whether what was made again is the bundle, and how that was found: by its bytes, or within rounding."""
    before, again = bundle.manifest["files"], made.manifest["files"]
    other = [n for n in sorted({*before, *again} - MEASURED) if _hash(before, n) != _hash(again, n)]
    if not other:
        return True, f"{len(again)} files are the same again, byte by byte"
    detail = f"{', '.join(quoted(n) for n in other)} came out different"
    there, here = bundle.manifest.get("processor"), made.manifest["processor"]
    if bundle.manifest.get("versions") != versions():
        return False, f"{detail}; it was compiled with other versions, see its manifest"
    if there == here:
        return False, detail
    apart = difference(bundle.folder, made.folder, other)
    types = f"it was compiled on a processor of another type ({_told(there)}; here {_told(here)})"
    if apart is None:
        return False, f"{detail}, by more than rounding; {types}"
    count = len(again) - len(other)
    return (
        True,
        f"{count} files are the same byte by byte, {len(other)} within rounding ({apart:.1g}): {types}",
    )


def _told(processor: object) -> str:
    """Its parts; a manifest may come from anyone."""
    parts = processor.values() if isinstance(processor, dict) else ()
    return one_line(" ".join(str(part) for part in parts if part) or "not recorded", 80)


def _hash(files: dict[str, Any], name: str) -> object:
    return files[name].get("sha256") if isinstance(files.get(name), dict) else None


def options_in(path: Path) -> tuple[dict[str, Any], list[LeftOut]]:
    """(the options that a bundle's recipe may set, what was left out). InputError where it holds none."""
    options, left, _ = read_recipe(str(path))
    return options, left
