"""Types that the user names layer by layer: `layers=head=float,encoder*=int8,type:Gemm=int4/32`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.graph.patterns import exactly, nodes_named

FLOAT = "float"


def read_layers(layers: Sequence[str]) -> list[tuple[str, str]]:
    """(pattern, form) of each. InputError where one is no PATTERN=TYPE."""
    found = []
    for text in layers:
        pattern, equals, form = text.rpartition("=")
        if not equals or not pattern or not form:
            raise InputError(
                f"quantize: layers {quoted(text)}: write PATTERN=TYPE, as in head=float,type:Gemm=int8"
            )
        found.append((pattern, form))
    return found


def forms_by_hand(
    model: ir.Model, layers: Sequence[str], forms: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Layer -> form; the last pattern that names a layer counts, and layers that none names stay in float.

    `forms` are those that each layer may have. InputError for a type that a layer named by itself cannot have; where a
    pattern names many, those that cannot stay in float.
    """
    choice = dict.fromkeys(forms, FLOAT)
    for pattern, form in read_layers(layers):
        named = [name for name in nodes_named(model, [pattern]) if name in forms]
        fitting = {
            name: next((f for f in forms[name] if form in (f, f.partition("/")[0])), None) for name in named
        }
        if not any(fitting.values()):
            known = sorted({f for name in named for f in forms[name]}) or [FLOAT]
            raise InputError(
                f"quantize: layers {quoted(pattern)} cannot be {form}: it may be {', '.join(known)}"
            )
        choice |= {name: found for name, found in fitting.items() if found is not None}
    return choice


def written_by_hand(choice: Mapping[str, str], names: Sequence[str]) -> str:
    """The text that makes this choice again; `names` are those of all nodes. Where all stay in float, one says so:
    an empty text is no choice."""
    said = [(name, form) for name, form in choice.items() if form != FLOAT] or list(choice.items())[:1]
    return ",".join(f"{exactly(name, names)}={form}" for name, form in said)
