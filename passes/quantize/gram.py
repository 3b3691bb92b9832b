"""X^T X of what a site multiplies, over the calibration set: for every method that minimises output error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.passes.base import PassContext
from sparsecc.passes.quantize.calibrate import Observer
from sparsecc.passes.quantize.sites import Site, constant_array, int_attribute, ints_attribute

ROWS_PER_RUN = 2048
_DOUBLE_LIMIT = 2048


@dataclass
class Moments:
    """Sums over `rows` samples: `gram` (group, k, k) of x x^T and `total` (group, k) of x.

    k is the reduction length of one group, in the column order of `Site.matrix`.
    """

    gram: np.ndarray
    total: np.ndarray
    rows: int = 0

    @property
    def mean(self) -> np.ndarray:
        """(group, k)."""
        return np.asarray(self.total / max(1, self.rows))

    @property
    def root_mean_square(self) -> np.ndarray:
        """(group, k): how large each input is."""
        diagonal = np.einsum("gkk->gk", self.gram)
        return np.asarray(np.sqrt(np.maximum(diagonal, 0) / max(1, self.rows)))


def collect_moments(
    model: ir.Model,
    sites: Iterable[Site],
    context: PassContext,
    *,
    keep: Callable[[Site], bool] = lambda site: True,
) -> dict[str, Moments]:
    """Moments of every kept site by node name. Sites that read the same rows share one object."""
    wanted = [site for site in sites if keep(site)]
    by_value: dict[str, list[Site]] = {}
    for site in wanted:
        by_value.setdefault(site.data.name or "", []).append(site)
    if not by_value:
        return {}
    rng = np.random.default_rng(context.seed)
    observer = Observer(model, list(by_value), context.scratch)
    shared: dict[tuple[object, ...], Moments] = {}
    for index, feeds in enumerate(context.calibration):
        for name, array in observer.values(feeds):
            _add_value(by_value[name], array, shared, rng)
        context.progress("calibrating", (index + 1) / len(context.calibration))
    return {site.name: shared[_geometry(site)] for site in wanted if _geometry(site) in shared}


def _geometry(site: Site) -> tuple[object, ...]:
    """Sites with the same key multiply the same rows."""
    name = site.data.name or ""
    if site.op_type != "Conv":
        return (name,)
    node = site.node
    keys = ("strides", "pads", "dilations")
    kernel = tuple(constant_array(site.weight).shape[2:])
    auto = node.attributes.get("auto_pad")
    padding = auto.as_string() if auto is not None else ""
    return (name, site.group, kernel, padding, *(tuple(ints_attribute(node, key) or ()) for key in keys))


def _add_value(
    sites: Sequence[Site],
    array: np.ndarray,
    shared: dict[tuple[object, ...], Moments],
    rng: np.random.Generator,
) -> None:
    done: set[tuple[object, ...]] = set()
    for site in sites:
        key = _geometry(site)
        if key in done:
            continue
        done.add(key)
        rows = input_rows(site, array.astype(np.float32, copy=False), rng)
        moments = shared.get(key)
        if moments is None:
            groups, length = rows.shape[0], rows.shape[2]
            kind = np.float64 if length <= _DOUBLE_LIMIT else np.float32
            moments = Moments(np.zeros((groups, length, length), kind), np.zeros((groups, length)))
            shared[key] = moments
        moments.gram += np.matmul(rows.transpose(0, 2, 1), rows)
        moments.total += rows.sum(axis=1, dtype=np.float64)
        moments.rows += rows.shape[1]


def input_rows(site: Site, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(group, n, k): up to ROWS_PER_RUN random rows that the site's matrix multiplies."""
    if site.op_type != "Conv":
        if int_attribute(site.node, "transA", 0):
            array = array.T
        rows = array.reshape(-1, array.shape[-1])
        if len(rows) > ROWS_PER_RUN:
            rows = rows[np.sort(rng.choice(len(rows), ROWS_PER_RUN, replace=False))]
        return rows[None]
    return _patches(site, array, rng)


def _patches(site: Site, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kernel = constant_array(site.weight).shape[2:]
    rank = len(kernel)
    strides = ints_attribute(site.node, "strides") or [1] * rank
    dilations = ints_attribute(site.node, "dilations") or [1] * rank
    spans = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    before, after = conv_padding(site.node, array.shape[2:], spans, strides)
    padded = np.pad(array, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    whole = (slice(None), slice(None))
    by_stride: tuple[slice, ...] = (*whole, *(slice(None, None, stride) for stride in strides))
    by_dilation: tuple[slice, ...] = tuple(slice(None, None, dilation) for dilation in dilations)
    positions = tuple(slice(None) for _ in strides)
    index: tuple[slice, ...] = (*whole, *positions, *by_dilation)
    windows = windows[by_stride][index]
    places = windows.shape[0] * int(np.prod(windows.shape[2 : 2 + rank]))
    picked = np.arange(places)
    if places > ROWS_PER_RUN:
        picked = np.sort(rng.choice(places, ROWS_PER_RUN, replace=False))
    sample, *position = np.unravel_index(picked, (windows.shape[0], *windows.shape[2 : 2 + rank]))
    picks: tuple[Any, ...] = (sample, slice(None), *position)
    rows = windows[picks]
    groups, channels = site.group, array.shape[1] // site.group
    rows = rows.reshape(len(picked), groups, channels, -1)
    return np.ascontiguousarray(rows.transpose(1, 0, 3, 2)).reshape(groups, len(picked), -1)


def conv_padding(
    node: ir.Node, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis, with auto_pad resolved."""
    rank = len(spans)
    auto = node.attributes.get("auto_pad")
    mode = auto.as_string() if auto is not None else "NOTSET"
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max(0, (-(-size // stride) - 1) * stride + span - size)
            for size, span, stride in zip(sizes, spans, strides, strict=True)
        ]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return (small, large) if mode == "SAME_UPPER" else (large, small)
    pads = ints_attribute(node, "pads") if mode == "NOTSET" else None
    pads = pads or [0] * (2 * rank)
    return pads[:rank], pads[rank:]


def damped(gram: np.ndarray, share: float = 0.01) -> np.ndarray:
    """A gram matrix made safely invertible: `share` of its mean diagonal added, dead inputs set to one."""
    result = gram.astype(np.float64, copy=True)
    diagonal = np.einsum("kk->k", result)
    mean = float(diagonal.mean()) if diagonal.size else 0.0
    diagonal[diagonal <= 0] = mean or 1.0
    diagonal += share * (mean or 1.0)
    return result


def output_error(change: np.ndarray, weight: np.ndarray, gram: np.ndarray) -> float:
    """Relative output error of a changed weight: tr(D H D^T) / tr(W H W^T), for matrices (out, k)."""
    noise = float(np.einsum("ok,ok->", change @ gram, change))
    power = float(np.einsum("ok,ok->", weight @ gram, weight))
    return max(noise, 0.0) / power if power > 0 else 0.0
