"""The sizes of a decoder that its runtime's configuration repeats: layers, heads, widths, words."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from sparsecc.graph.caches import Cache, caches


@dataclass(frozen=True)
class DecoderSizes:
    """What a configuration says of a decoder; None is what its graph does not say. `heads` and `kv_heads` are those of
    each layer with a cache, in order, without any those of each attention; `sliding` are the numbers of those that
    read the last positions alone."""

    layers: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    width: int | None
    hidden: int | None
    words: int | None
    sliding: tuple[int, ...]

    @staticmethod
    def of(model: ir.Model) -> DecoderSizes:
        """Read from a model's caches, norms and logits."""
        found = caches(model)
        keys = _one_of_each_layer(found)
        widths = {size for cache in found if (size := _dim(cache.past, cache.width)) is not None}
        alone = [] if found else [node for node in model.graph if "num_heads" in node.attributes]
        counts = [node.attributes.get_int("num_heads", 0) for node in alone]
        logits = next((v for v in model.graph.outputs if v not in {c.present for c in found}), None)
        return DecoderSizes(
            layers=len(keys) or len(alone),
            heads=(*(c.node.attributes.get_int("num_heads", 0) for c in keys), *counts),
            kv_heads=(*(_dim(c.past, c.heads) or 0 for c in keys), *counts),
            width=max(widths, default=None),
            hidden=_hidden(model),
            words=_dim(logits, -1) if found and logits is not None else None,
            sliding=tuple(
                number
                for number, cache in enumerate(keys)
                if cache.node.attributes.get_int("local_window_size", -1) > 0
            ),
        )


def _one_of_each_layer(found: list[Cache]) -> list[Cache]:
    """The caches of keys. Where a Concat joins them nothing says which these are: every other one then."""
    joined = [cache for cache in found if cache.node.op_type == "Concat"]
    first = {cache.node: cache for cache in reversed(found)}
    return joined[::2] if joined else [*reversed(first.values())]


def _dim(value: ir.Value, place: int) -> int | None:
    size = value.shape[place] if value.shape is not None and len(value.shape) else None
    return size if isinstance(size, int) else None


def _hidden(model: ir.Model) -> int | None:
    """The width of the residual stream: that of the first norm over the last axis."""
    for node in model.graph:
        if node.op_type.endswith(("LayerNormalization", "RMSNormalization")):
            scale = next((v for v in node.inputs[1:] if v is not None and v.const_value is not None), None)
            if scale is not None and scale.const_value is not None and len(scale.const_value.shape) == 1:
                return int(scale.const_value.size)
    return None
