"""The inputs and outputs of a decoder after layers went: their caches go too, those that stay are numbered anew."""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx_ir as ir

from sparsecc.graph.caches import caches, left_out

_NUMBERED = re.compile(r"(\D*)(\d+)(.*)", re.DOTALL)
"""What stands before and behind the number of a layer in the name of a cache: its first number."""


def close_ports(model: ir.Model) -> tuple[set[str], dict[str, str]]:
    """Remove the caches of attentions that were left out, in place, and close the gaps in the numbers of the others.

    (names of inputs and outputs that are gone, old name -> new name). Runtimes count layers from 0 on: a number is as
    large as the number of layers before it. Names without a number stay.
    """
    graph = model.graph
    pairs = left_out(model)
    gone = {value.name or "" for pair in pairs for value in pair}
    for past, present in pairs:
        carrier = present.producer()
        assert carrier is not None
        graph.outputs.remove(present)
        graph.remove(carrier, safe=True)
        if not past.uses():
            graph.inputs.remove(past)
        else:
            gone.discard(past.name or "")
    living = [value for cache in caches(model) for value in (cache.past, cache.present)]
    renamed = _closed({value.name or "" for value in living}, gone)
    for value in living:
        value.name = renamed.get(value.name or "", value.name)
    return gone, renamed


def _closed(living: Iterable[str], gone: Iterable[str]) -> dict[str, str]:
    """New names where the numbers of the living have gaps that the gone have left."""
    layers: dict[tuple[str, str], set[int]] = {}
    for name in gone:
        if match := _NUMBERED.fullmatch(name):
            layers.setdefault((match[1], match[3]), set()).add(int(match[2]))
    renamed = {}
    for name in living:
        match = _NUMBERED.fullmatch(name)
        lost = layers.get((match[1], match[3]), set()) if match else set()
        if match and (before := sum(number < int(match[2]) for number in lost)):
            renamed[name] = f"{match[1]}{int(match[2]) - before}{match[3]}"
    return renamed
