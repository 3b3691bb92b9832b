"""Which passes a compile runs after pruning, in order."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sparsecc.errors import InputError
from sparsecc.options import SWITCHES, CompileOptions
from sparsecc.targets import target_named

if TYPE_CHECKING:
    from sparsecc.passes.base import Pass


def passes_for(options: CompileOptions) -> list[Pass]:
    """Patterns first, then types: zeros stay exact zeros through quantization."""
    target = target_named(options.target)
    passes: list[Pass] = []
    for given, option in ((options.sparsity_options, "sparsity"), (options.quantize_options, "quantize")):
        if given and not getattr(options, option):
            raise InputError(
                f"--{option}-option {next(iter(given))} does nothing without --{option}: give it too"
            )
    if options.sparsity:
        from sparsecc.passes.sparsity import Sparsify

        settings = pass_options(Sparsify, "--sparsity-option", options.sparsity_options, "pattern")
        passes.append(Sparsify(pattern=options.sparsity, **settings))
    if options.quantize:
        if options.type not in target.types and not options.mixes_types:
            known = ", ".join(sorted(target.types))
            raise InputError(f"target {target.name} does not run {options.type}: it has {known}")
        from sparsecc.passes.quantize import Quantize

        settings = pass_options(
            Quantize, "--quantize-option", options.quantize_options, "type", "only_what_pays"
        )
        if options.mixes_types and options.size is not None:
            settings |= {"size": options.size}
        passes.append(Quantize(type=options.type or "", only_what_pays=options.only_what_pays, **settings))
    return passes


def require_passes(options: CompileOptions) -> None:
    """InputError for passes that the target or missing samples make impossible, before anything is loaded."""
    for one in passes_for(options):
        has_data = options.data is not None or options.ranges is not None
        one.require(target_named(options.target), has_data=has_data)


def pass_options(kind: type[Pass], option: str, given: Mapping[str, str], *taken: str) -> dict[str, Any]:
    """Fields of a pass from KEY=VALUE texts. `taken` are the fields that other options set.

    InputError names the key with the closest one there is, or the value with what is wanted.
    """
    hints = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind) if f.name not in taken]
    read = {}
    for key, text in given.items():
        name = key.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"keys are {', '.join(known)}"
            raise InputError(f"{option} has no key '{key}': {hint}")
        read[name] = _typed(f"{option} {key}", text, hints[name])
    return read


def _typed(what: str, text: str, hint: Any) -> Any:
    """A text as the type of a field: switches, numbers, names joined by commas, text."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(k for k in kinds if k is not type(None))
    if kind is bool:
        if text.lower() not in SWITCHES:
            raise InputError(f"{what}={text}: write true or false")
        return SWITCHES[text.lower()]
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return kind(text)
    except ValueError as e:
        wanted = "a whole number" if kind is int else "a number"
        raise InputError(f"{what}={text}: write {wanted}") from e
