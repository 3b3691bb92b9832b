"""What the files of a package hand each other: by their names, and by what its configuration calls them."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sparsecc.errors import InputError
from sparsecc.escaping import one_line, quoted
from sparsecc.loading.models import load_ir
from sparsecc.loading.package import Package, package_at
from sparsecc.shapes.dynamic_dims import is_fixed

MOST = 16
"""Files that are opened to see whether one of them is of a package."""
_HUGGING_FACE = (
    ("encoder_hidden_states", "last_hidden_state"),
    (r"past_key_values(\..*)", r"present\1"),
    (r"past_key_values(\..*)", r"present_key_values\1"),
)
"""What an input is called, and the output of another file that it takes, where the names are not the same."""


def require_whole_pairs(file: Path, names: Container[str]) -> None:
    """InputError where the inputs and outputs `names` of a file are those of another file of its package, which would
    no longer fit."""
    try:
        package = package_at(file.parent)
    except InputError:
        return
    if package is None or file not in package.models or not 1 < len(package.models) <= MOST:
        return
    models = {path.name: load_ir(path) for path in package.models}
    for (taker, name), (giver, output) in handed(package, models).items():
        mine = name if taker == file.name else output if giver == file.name else None
        if mine is not None and mine in names:
            raise InputError(
                f"output {quoted(output)} of {one_line(giver)} is input {quoted(name)} of {one_line(taker)}: cut in "
                "one of them they no longer fit: compile their folder, which cuts both, or leave it out of --prune-io"
            )


def handed_names(package: Package, name: str) -> Iterator[str]:
    """The outputs of other files that an input of this name may take, likeliest first."""
    yield name
    if package.is_genai:
        yield from _by_configuration(package.settings, name)
        return
    for pattern, output in _HUGGING_FACE if package.config else ():
        if match := re.fullmatch(pattern, name):
            yield match.expand(output)


def is_cross(package: Package, output: str) -> bool:
    """Whether the output of an encoder is the cache of its decoder's cross attention: onnxruntime-genai 0.18 makes
    room for all layers by one number."""
    parts = package.settings["model"].values() if package.is_genai else ()
    outputs = [about.get("outputs") for about in parts if isinstance(about, dict)]
    templates = [
        template
        for names in outputs
        for key, template in (names.items() if isinstance(names, dict) else ())
        if key.startswith("cross_present") and isinstance(template, str)
    ]
    return any(re.fullmatch(re.escape(t).replace("%d", r"\d+"), output) for t in templates)


def _by_configuration(settings: Mapping[str, Any], name: str) -> Iterator[str]:
    """What `genai_config.json` calls an output that an input of this name takes: both stand under keys that are the
    same, or say past and present."""
    sides: dict[str, list[tuple[str, str]]] = {"inputs": [], "outputs": []}
    for about in settings["model"].values():
        for side, found in sides.items():
            names = about.get(side) if isinstance(about, dict) else None
            pairs = names.items() if isinstance(names, dict) else ()
            found += [(key, template) for key, template in pairs if isinstance(template, str)]
    for key, template in sides["inputs"]:
        match = re.fullmatch(re.escape(template).replace("%d", r"(\d+)"), name)
        for other, output in sides["outputs"] if match else ():
            if other.replace("present", "past") == key:
                yield output.replace("%d", match[1]) if match and match.groups() else output


def handed(package: Package, models: Mapping[str, ir.Model]) -> dict[tuple[str, str], tuple[str, str]]:
    """(file, input) -> (file, output) that it takes. InputError where several files give it."""
    outputs = {name: {v.name or "": v for v in model.graph.outputs} for name, model in models.items()}
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for name, model in models.items():
        for value in model.graph.inputs:
            if value.is_initializer() or not value.uses():
                continue
            for wanted in handed_names(package, value.name or ""):
                giving = [other for other in models if other != name and wanted in outputs[other]]
                giving = [other for other in giving if _fits(outputs[other][wanted], value)]
                if len(giving) > 1:
                    both = one_line(" and ".join(giving), 200)
                    raise InputError(
                        f"{quoted(value.name or '')} of {one_line(name)} is given by {both}: name one file, and only "
                        "what is its own will be cut"
                    )
                if giving:
                    found[name, value.name or ""] = giving[0], wanted
                    break
    return found


def _fits(output: ir.Value, value: ir.Value) -> bool:
    """Whether one may be handed on as the other: of one type and rank, and of the sizes that both declare."""
    if output.dtype != value.dtype:
        return False
    if output.shape is None or value.shape is None:
        return True
    pairs = zip(output.shape, value.shape, strict=False)
    return len(output.shape) == len(value.shape) and all(
        a == b for a, b in pairs if is_fixed(a) and is_fixed(b)
    )


def in_order(
    package: Package, models: Mapping[str, ir.Model], taken: Mapping[tuple[str, str], tuple[str, str]]
) -> list[str]:
    """The files, each behind those that it takes from. InputError where that is no order, or one stands alone."""
    needs = {name: {giver for (taker, _), (giver, _) in taken.items() if taker == name} for name in models}
    alone = [
        name for name in models if not needs[name] and not any(name in others for others in needs.values())
    ]
    if alone:
        raise InputError(
            f"{one_line(str(package.folder), 120)}: {one_line(', '.join(alone), 200)} and the other files hand each "
            "other nothing that bears one name: name one file, and only what is its own will be cut"
        )
    order: list[str] = []
    while len(order) < len(models):
        ready = [name for name in models if name not in order and needs[name] <= {*order}]
        if not ready:
            raise InputError(
                f"{one_line(str(package.folder), 120)}: its files take from each other in a circle: name one file, "
                "and only what is its own will be cut"
            )
        order += ready
    return order
