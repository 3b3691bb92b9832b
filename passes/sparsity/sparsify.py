"""The pass behind `--sparsity`: 2:4 and other patterns along the axis that the hardware needs."""

from __future__ import annotations

import itertools
import math
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import InputError, InternalError
from sparsecc.graph.linear_layers import SINGLE_OR_HALF, LinearLayer
from sparsecc.graph.patterns import nodes_named, require_nodes
from sparsecc.ir.graph_editor import GraphEditor, prepare
from sparsecc.ir.mapped import Spool
from sparsecc.passes.base import Pass, PassResult, Patterned, require_data
from sparsecc.passes.sparsity.masks import magnitude_order, wanda_scores
from sparsecc.passes.sparsity.pattern import Pattern, parse_pattern
from sparsecc.passes.sparsity.permute import reorder
from sparsecc.passes.sparsity.refit import refit_rows
from sparsecc.passes.sparsity.sparsegpt import sparsegpt
from sparsecc.passes.sparsity.validity import invalid_groups
from sparsecc.passes.weights.fidelity import float_outputs
from sparsecc.passes.weights.input_moments import MULTIPLE, InputMoments, output_error, walk_inputs
from sparsecc.passes.weights.linear_layers import constant_array, find_layers
from sparsecc.passes.weights.low_rank import Paths, require_share
from sparsecc.remarks import Remark
from sparsecc.runtime.numerics import sqnr

if TYPE_CHECKING:
    from sparsecc.plan import Plan
    from sparsecc.targets import Target

METHODS = ("auto", "magnitude", "wanda", "sparsegpt", "refit")
MASKS = ("magnitude", "wanda")
"""Methods that make up for nothing; they look at the dense model's inputs."""
REFIT_LIMIT = 1024
"""`auto` repairs exactly up to this reduction length; one solve per row costs its cube."""

BLOCK = 1 << 22
"""Elements of a weight looked at in one go."""

LEAST_SQNR = 60.0
"""In dB: what rounding leaves of the outputs when channels only changed places."""

SPEED = 2.0
"""How much faster than dense multiply-accumulates those of 2:4 are at best."""

PAYS_FROM = 256
"""Channels from which sparse tensor cores usually win (NVIDIA's guidance)."""


@dataclass(frozen=True)
class Sparsify(Pass):
    """Zero weights in a pattern.

    pattern: 2:4, N:M, unstructured@share, blockRxC@share. method: magnitude (no data), wanda, sparsegpt,
    refit (Wanda's mask, then exact least squares), auto (refit, or sparsegpt for long reductions; magnitude
    without data). permute: reorder input channels first where that is exact. eora: the share of a layer's time that a
    low-rank path beside it may add. min_channels: layers with fewer
    inputs or outputs stay dense; 0 takes the target's. exclude: the layers left dense (see
    `nodes_named`).
    """

    name: ClassVar[str] = "sparsify"

    pattern: str = "2:4"
    method: str = "auto"
    permute: bool = False
    eora: float = 0.0
    min_channels: int = 0
    exclude: tuple[str, ...] = ()

    def require(self, target: Target, *, has_data: bool) -> None:
        pattern = parse_pattern(self.pattern)
        if self.method not in METHODS:
            raise InputError(f"sparsity: unknown method '{self.method}': it is one of {', '.join(METHODS)}")
        if not target.any_pattern and pattern.text not in target.patterns:
            has = ", ".join(sorted(target.patterns)) or "none"
            raise InputError(
                f"sparsity: target '{target.name}' runs no '{pattern.text}' pattern faster (it has: {has}): "
                "use --target tensorrt or tensorrt-rtx, or --target onnx for the bare zeros"
            )
        require_share(self.eora)
        if self.method in ("wanda", "sparsegpt", "refit") or self.eora:
            require_data(f"sparsity with {'eora' if self.eora else self.method}", has_data=has_data)

    def require_names(self, model: ir.Model) -> None:
        require_nodes(model, "--sparsity-option exclude", self.exclude)

    def run(self, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        """Zero in place. InputError when the target runs no such pattern faster."""
        self.require(compilation.target, has_data=bool(compilation.pass_feeds))
        pattern = parse_pattern(self.pattern)
        prepare(model)
        layers, remarks = find_layers(model, SINGLE_OR_HALF)
        named = replace(self, exclude=tuple(nodes_named(model, self.exclude)))
        job = _Job(named, pattern, model, compilation)
        chosen = []
        for layer in layers:
            reason = job.why_not(layer)
            if reason:
                remarks.append(Remark(layer.name, reason))
            else:
                chosen.append(layer)
        if self.permute and pattern.is_grouped:
            remarks.extend(job.reorder(chosen))
        unzeroed = model.clone()
        zeroed = job.zero(chosen)
        for layer in chosen:
            plan.patterns[layer.weight.name or ""] = {"pattern": pattern.text, "axis": layer.in_axis}
        model.graph.sort()
        remarks.extend(job.paths.left)
        facts: dict[str, Any] = {"pattern": pattern.text, "method": job.method, "layers": zeroed}
        patterned = Patterned(unzeroed, model.clone(), job.method, job.checksums)
        return PassResult(facts, tuple(remarks), patterned=patterned)


@dataclass
class _Job:
    options: Sparsify
    pattern: Pattern
    model: ir.Model
    compilation: Compilation
    spool: Spool = field(init=False)
    paths: Paths = field(init=False)
    checksums: dict[str, int] = field(default_factory=dict)
    """Of the weights as they were made, by name."""

    def __post_init__(self) -> None:
        self.spool = Spool(self.compilation.scratch.folder)
        self.paths = Paths(GraphEditor(self.model, self.spool), self.options.eora, SPEED)

    @property
    def method(self) -> str:
        if self.options.method == "auto" and not self.compilation.pass_feeds:
            return "magnitude"
        return self.options.method

    def why_not(self, layer: LinearLayer) -> str:
        """The reason why a layer stays dense, or nothing."""
        if layer.name in self.options.exclude:
            return "left dense"
        others = [node for node, index in layer.weight.uses() if node is not layer.node]
        if others:
            return f"its weight is also read by '{others[0].name}'"
        inputs, outputs = layer.shape[layer.in_axis], layer.shape[layer.out_axis]
        if not self.pattern.is_grouped:
            return ""
        if inputs % self.pattern.m:
            return f"{inputs} input channels per group: no multiple of {self.pattern.m}"
        least = self.options.min_channels
        if not least:
            least = (
                self.compilation.target.gemm_multiple
                if self.compilation.target.device == "gpu"
                else self.pattern.m
            )
        if min(inputs, outputs // layer.group) < least:
            return f"{inputs} inputs and {outputs // layer.group} outputs: fewer than {least}"
        return ""

    def reorder(self, chosen: list[LinearLayer]) -> list[Remark]:
        """Move input channels where their whole group can follow; layers whose channels stay are named."""
        before = float_outputs(self.model, self.compilation)
        reasons = reorder(self.model, chosen, self.pattern, self.compilation.options.seed, self.spool)
        after = float_outputs(self.model, self.compilation)
        for old, new in zip(before, after, strict=True):
            if any(a.dtype.kind == "f" and sqnr(a, new[name]) < LEAST_SQNR for name, a in old.items()):
                raise InternalError("sparsity: reordering channels changed the outputs: leave permute out")
        return [Remark(name, f"channels not reordered: {reason}") for name, reason in reasons.items()]

    def zero(self, chosen: list[LinearLayer]) -> dict[str, dict[str, Any]]:
        """Write the pattern into every chosen weight; what each layer kept and lost.

        With data, what makes up for zeros does so for what the layers before, with their zeros, give.
        """
        if not self.compilation.pass_feeds or (self.method == "magnitude" and not self.options.eora):
            return {layer.name: self._zero_by_magnitude(layer) for layer in chosen}
        layers, multiple = {}, math.lcm(MULTIPLE, self.pattern.m or 1)
        sparse = []
        for inputs in walk_inputs(self.model, chosen, self.compilation):
            seen = inputs.moments(multiple)
            for layer in inputs.layers:
                before, dense = layer.weight.const_value, layer.matrix(layer.array())
                layers[layer.name] = self._zero_by_output(layer, seen)
                sparse.append((layer.weight, layer.weight.const_value))
                if self.method in MASKS and not self.options.eora:
                    layer.weight.const_value = before
                if self.options.eora:
                    now = layer.matrix(layer.array())
                    self._see_path(layer, self.paths.make(layer, dense, now, seen, inputs.places()))
        for weight, tensor in sparse:
            weight.const_value = tensor
        self.paths.add()
        return {layer.name: layers[layer.name] | self.paths.facts.get(layer.name, {}) for layer in chosen}

    def _see_path(self, layer: LinearLayer, added: np.ndarray | None) -> None:
        """Let the layers behind see what a path adds, until it is really there."""
        if added is not None:
            whole = layer.from_matrix(layer.matrix(layer.array()) + added).astype(
                layer.dtype.numpy(), copy=False
            )
            layer.weight.const_value = self.spool.keep(ir.Tensor(whole, name=layer.weight.name))

    def _zero_by_magnitude(self, layer: LinearLayer) -> dict[str, Any]:
        """Write the pattern into one weight, without data."""
        if self.pattern.is_grouped:
            weight, kept_share = by_magnitude(constant_array(layer.weight), layer.in_axis, self.pattern)
            return self._stored(layer, weight, kept_share)
        dense = layer.matrix(layer.array())
        mask = np.concatenate([self.pattern.mask(np.abs(part)) for part in np.split(dense, layer.group)])
        return self._stored(layer, layer.from_matrix(np.where(mask, dense, 0.0)), _kept(dense, mask))

    def _stored(self, layer: LinearLayer, weight: np.ndarray, kept_share: float) -> dict[str, Any]:
        """Put the new weight in its place; the facts about it."""
        stored = np.ascontiguousarray(weight.astype(layer.dtype.numpy(), copy=False))
        self.checksums[layer.weight.name or ""] = zlib.crc32(stored.data)
        layer.weight.const_value = self.spool.keep(ir.Tensor(stored, name=layer.weight.name))
        wide = min(layer.shape[layer.in_axis], layer.shape[layer.out_axis]) >= PAYS_FROM
        facts: dict[str, Any] = {
            "weight": layer.weight.name,
            "axis": layer.in_axis,
            "kept_saliency": round(kept_share, 4),
            "large_enough_to_pay": wide,
        }
        return facts | (self._validity(layer, weight) if self.pattern.is_grouped else {})

    def _zero_by_output(self, layer: LinearLayer, seen: InputMoments) -> dict[str, Any]:
        """Write the pattern into one weight by what its inputs are, group by group and block by block."""
        dense = layer.matrix(layer.array()).astype(np.float64)
        new, mask, errors = np.zeros_like(dense), np.zeros(dense.shape, bool), []
        rows = len(dense) // layer.group
        for group, block in itertools.product(range(layer.group), seen.blocks):
            place = slice(group * rows, (group + 1) * rows), block.columns
            part, gram = dense[place], block.gram[group]
            new[place], mask[place] = self._zero_matrix(
                part, gram, seen.root_mean_square[group, block.columns]
            )
            errors.append(output_error(new[place] - part, part, gram))
        facts = self._stored(layer, layer.from_matrix(new), _kept(dense, mask))
        return facts | {"output_error": float(np.mean(errors))}

    def _validity(self, layer: LinearLayer, weight: np.ndarray) -> dict[str, int]:
        invalid, groups = invalid_groups(weight, layer.in_axis, self.pattern.n, self.pattern.m)
        if invalid:
            raise InternalError(
                f"sparsity: '{layer.weight.name}' has {invalid} of {groups} groups off the pattern"
            )
        return {"groups": groups, "invalid_groups": invalid}

    def _zero_matrix(
        self, matrix: np.ndarray, gram: np.ndarray, size: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.method == "magnitude":
            mask = self.pattern.mask(np.abs(matrix))
            return np.where(mask, matrix, 0.0), mask
        long = self.method == "auto" and matrix.shape[1] > REFIT_LIMIT
        if self.method == "sparsegpt" or long:
            return sparsegpt(matrix, gram, self.pattern)
        mask = self.pattern.mask(wanda_scores(matrix, size))
        if self.method == "wanda":
            return np.where(mask, matrix, 0.0), mask
        return refit_rows(matrix, mask, gram), mask


def _kept(dense: np.ndarray, mask: np.ndarray) -> float:
    """The share of a matrix's magnitude that a mask keeps."""
    return float(np.abs(dense[mask]).sum() / max(np.abs(dense).sum(), 1e-30))


def by_magnitude(weight: np.ndarray, axis: int, pattern: Pattern) -> tuple[np.ndarray, float]:
    """A float weight with all but the largest numbers of every group along `axis` zero, and the share of its
    magnitude that is left."""
    result, order = np.empty(weight.shape, weight.dtype), np.dtype(f"u{weight.dtype.itemsize}")
    lines, new = np.moveaxis(weight, axis, 0), np.moveaxis(result, axis, 0)
    step = pattern.m * max(1, BLOCK * len(lines) // (pattern.m * weight.size or 1))
    before = after = 0.0
    for start in range(0, len(lines), step):
        block = np.ascontiguousarray(lines[start : start + step])
        kept = (block.view(order) * pattern.mask(magnitude_order(block), axis=0)).view(block.dtype)
        new[start : start + step] = kept
        before += float(np.abs(block.astype(np.float32, copy=False)).sum(dtype=np.float64))
        after += float(np.abs(kept.astype(np.float32, copy=False)).sum(dtype=np.float64))
    return result, after / max(before, 1e-30)
