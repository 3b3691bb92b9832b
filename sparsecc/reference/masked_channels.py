"""The dense model as it would be had the removed slots never been there, at dense shapes.

Wherever the dense model sums over an axis, the removed slots are replaced by zeros just before; operators that
mix an axis (means, norms, maxima) are replaced by forms that leave those slots out. The result must equal the
compiled model up to the order of floating-point additions. It shares neither the slicing nor the mending of
sizes with the rewriting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Axis, Keep, atoms_of, mask
from sparsecc.graph.analysis import Analysis
from sparsecc.ir.constants import add_constant
from sparsecc.ir.subgraphs import name_values, show
from sparsecc.ir.switches import in_full_precision, with_switches
from sparsecc.rules.site import Reduction

_ORACLE = "oracle."


def masked(analysis: Analysis, keep: Keep, probe: int = 0, shown: Sequence[str] = ()) -> ir.Model:
    """A copy of the analysed (still dense) model with the removed slots masked wherever they are mixed.

    It runs at the input sizes of `probe` (`analysis.shapes.inputs[probe]`). The values named in `shown` are outputs
    too, behind its own; its branches can be turned (`sparsecc.ir.switches`).
    """
    keep = {atom: slots for atom, slots in keep.items() if not slots.all()}
    model = analysis.model.clone()
    twins = dict(zip(analysis.model.graph.all_nodes(), model.graph.all_nodes(), strict=True))
    in_full_precision(model)
    with_switches(model)
    show(model, shown)
    done: set[tuple[ir.Node, tuple[Axis, ...]]] = set()
    for reduction in analysis.record.reductions:
        axes = _axes(analysis, reduction)
        lost = {p: _mask(axes[p], keep, probe) for p in reduction.positions if _lost(axes[p], keep)}
        if not lost:
            continue
        if reduction.kind == "sum":  # masking one operand of a product is enough
            key = (reduction.node, tuple(axes[p] for p in lost))
            if reduction.node.op_type != "Einsum" and key in done:
                continue
            done.add(key)
        value = reduction.node.inputs[reduction.operand]
        assert value is not None
        dtype = value.dtype or analysis.shapes.dtype(value) or ir.DataType.FLOAT
        _Masker(twins[reduction.node], model.graph, reduction, lost, axes, dtype).apply()
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    name_values(model)
    return model


def masked_at(
    analysis: Analysis, keep: Keep, probes: int, shown: Sequence[str] = ()
) -> tuple[ir.Model, list[dict[str, np.ndarray]]]:
    """One masked model for the input sizes of all probes, and for each of them what is fed besides its inputs: the
    constants of the masks that are others at other sizes."""
    model = masked(analysis, keep, 0, shown)
    others = [
        {} if _same_masks(analysis, keep, probe) else _oracle_constants(masked(analysis, keep, probe))
        for probe in range(1, probes)
    ]
    first, graph = _oracle_constants(model), model.graph
    moving = [n for n in first if any(o and not np.array_equal(o[n], first[n]) for o in others)]
    for name in moving:
        value = graph.initializers.pop(name)
        value.const_value, value.shape = None, None
        graph.inputs.append(value)
    return model, [{name: (found or first)[name] for name in moving} for found in (first, *others)]


def _same_masks(analysis: Analysis, keep: Keep, probe: int) -> bool:
    """Whether the masks at a probe are those of the first."""
    axes = (axis for reduction in analysis.record.reductions for axis in _axes(analysis, reduction))
    lost = {axis for axis in axes if _lost(axis, keep)}
    return all(np.array_equal(_mask(axis, keep, 0), _mask(axis, keep, probe)) for axis in lost)


def _oracle_constants(model: ir.Model) -> dict[str, np.ndarray]:
    """What masking added, by name; the same names whatever the probe."""
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if name.startswith(_ORACLE) and value.const_value is not None
    }


def _axes(analysis: Analysis, reduction: Reduction) -> list[Axis]:
    value = reduction.node.inputs[reduction.operand]
    assert value is not None
    key = (reduction.node, reduction.operand)
    return analysis.record.uses[key] if key in analysis.record.uses else analysis.record.axes[value]


def _lost(axis: Axis, keep: Keep) -> bool:
    return any(atom in keep for atom in atoms_of(axis))


def _mask(axis: Axis, keep: Keep, probe: int) -> np.ndarray:
    found = mask(axis, keep, probe)
    assert found is not None
    return found


_SUMS_FIRST: dict[str, tuple[int, tuple[int, ...]]] = {
    "SkipLayerNormalization": (3, (2, 3)),
    "SkipSimplifiedLayerNormalization": (3, (2,)),
    "EmbedLayerNormalization": (2, (5, 6)),
}
"""Operators that normalise a sum of theirs: the output that holds that sum, and the operands of scale and bias."""


class _Masker:
    """Masks one reduction of one node, which may be in a body; constants go to the main graph."""

    def __init__(
        self,
        node: ir.Node,
        main: ir.Graph,
        reduction: Reduction,
        lost: dict[int, np.ndarray],
        axes: list[Axis],
        dtype: ir.DataType,
    ) -> None:
        self.node = node
        self.operand = reduction.operand
        self.kind = reduction.kind
        self.fill = reduction.fill
        self.positions = reduction.positions
        self.axes = axes
        self.kept = np.ones([1] * len(axes), dtype=bool)
        for position, slots in lost.items():
            shape = [1] * len(axes)
            shape[position] = len(slots)
            self.kept = self.kept & slots.reshape(shape)
        value = node.inputs[self.operand]
        assert value is not None
        assert isinstance(node.graph, ir.Graph)
        self.value, self.graph, self.main = value, node.graph, main
        self.dtype = dtype.numpy()

    def apply(self) -> None:
        fill = {"max": -np.inf, "min": np.inf}.get(self.kind, 0)
        if self.kind in ("sum", "max", "min"):
            empty = self.node.inputs[self.fill] if self.fill is not None else None
            self.node.replace_input_with(self.operand, self._where(self.value, fill, empty))
        elif self.kind == "mean":
            self.node.replace_input_with(self.operand, self._where(self.value, 0))
            share = self.kept.size / max(int(self.kept.sum()), 1)
            self._replace(self._make("Mul", self._after(), self._constant(share)))
        elif self.kind == "groupnorm":
            self._replace(self._group_norm())
        else:
            self._replace(self._norm())

    def _norm(self) -> ir.Value:
        """LayerNormalization, RMSNormalization and InstanceNormalization over the kept slots only."""
        value, axes = self.value, self._ints(list(self.positions))
        if self.node.op_type in _SUMS_FIRST:
            value, axes = self._after(_SUMS_FIRST[self.node.op_type][0]), self._ints([-1])
        centred = value
        if self.kind != "rmsnorm":
            centred = self._make("Sub", value, self._mean(value, axes))
        scale, bias = self._affine()
        return self._scaled(centred, axes, scale, bias)

    def _scaled(
        self, centred: ir.Value, axes: ir.Value, scale: ir.Value | None, bias: ir.Value | None
    ) -> ir.Value:
        variance = self._mean(self._make("Mul", centred, centred), axes)
        default = 1e-12 if self.node.op_type in _SUMS_FIRST else 1e-5
        epsilon = self.node.attributes.get_float("epsilon", default)
        deviation = self._make("Sqrt", self._make("Add", variance, self._constant(epsilon)))
        result = self._make("Div", centred, deviation)
        result = self._make("Mul", result, scale) if scale is not None else result
        return self._make("Add", result, bias) if bias is not None else result

    def _affine(self) -> tuple[ir.Value | None, ir.Value | None]:
        _, at = _SUMS_FIRST.get(self.node.op_type, (0, (1, 2)))
        operands = [self.node.inputs[i] if i < len(self.node.inputs) else None for i in at]
        if len(operands) == 1:
            return operands[0], None
        if self.kind != "instancenorm":
            return operands[0], operands[1]
        shape = self._ints([-1] + [1] * (len(self.axes) - 2))
        scale, bias = (self._make("Reshape", v, shape) if v is not None else None for v in operands)
        return scale, bias

    def _group_norm(self) -> ir.Value:
        """Channels as (groups, width), normalised over the kept slots of each group and over space."""
        groups = self.node.attributes.get_int("num_groups", 1)
        width = math.prod([self._size(1)]) // groups
        shape = self._ints([0, groups, width, -1])
        self.kept = self.kept.reshape(1, groups, width, 1)
        flat = self._make("Reshape", self.value, shape)
        axes = self._ints([2, 3])
        mean = self._mean(flat, axes)
        result = self._scaled(self._make("Sub", flat, mean), axes, None, None)
        for operator, operand in (("Mul", self.node.inputs[1]), ("Add", self.node.inputs[2])):
            assert operand is not None
            per_group = operand.const_value is not None and operand.const_value.size == groups
            affine = self._ints([1, groups, 1, 1] if per_group else [1, groups, width, 1])
            result = self._make(operator, result, self._make("Reshape", operand, affine))
        return self._make("Reshape", result, self._make("Shape", self.value))

    def _size(self, position: int) -> int:
        size = self.axes[position].size
        assert isinstance(size, int)
        return size

    def _mean(self, value: ir.Value, axes: ir.Value) -> ir.Value:
        masked_value = self._where(value, 0)
        cell = tuple(int(i) for i in axes.const_value.numpy()) if axes.const_value is not None else None
        counts = self.kept.sum(axis=cell, keepdims=True)  # equal in every cell that anything is left of
        share = self.kept.size / counts.size / max(int(counts.max()), 1)
        old = self._opset() < 18
        attributes: dict[str, object] = {"keepdims": 1}
        if old:
            assert axes.const_value is not None
            attributes["axes"] = axes.const_value.numpy().tolist()
        mean = self._make("ReduceMean", masked_value, *([] if old else [axes]), **attributes)
        return self._make("Mul", mean, self._constant(share))

    def _opset(self) -> int:
        return self.main.opset_imports.get("", 18)

    def _where(self, value: ir.Value, fill: float, empty: ir.Value | None = None) -> ir.Value:
        """The value with its removed slots set to `empty` where given, else to `fill`."""
        if fill == 0 and empty is None and self._opset() < 9:  # before Where there was only the product
            return self._make("Mul", value, self._initializer(self.kept.astype(self.dtype)))
        condition = self._initializer(self.kept)
        return self._make("Where", condition, value, empty if empty is not None else self._constant(fill))

    def _constant(self, number: float) -> ir.Value:
        return self._initializer(np.asarray(number).astype(self.dtype))

    def _ints(self, values: list[int]) -> ir.Value:
        return self._initializer(np.asarray(values, dtype=np.int64))

    def _initializer(self, array: np.ndarray) -> ir.Value:
        return add_constant(self.main, f"{_ORACLE}{len(self.main.initializers)}", array)

    def _make(self, operator: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        made = ir.node(operator, list(inputs), attributes=attributes or None)  # type: ignore[arg-type]
        self.graph.insert_before(self.node, made)
        return made.outputs[0]

    def _after(self, output: int = 0) -> ir.Value:
        """One of the node's own results, computed again ahead of the node so that it can be replaced."""
        attributes = dict(self.node.attributes)
        twin = ir.node(
            self.node.op_type, list(self.node.inputs), domain=self.node.domain, attributes=attributes,
            num_outputs=output + 1,
        )  # fmt: skip
        self.graph.insert_before(self.node, twin)
        return twin.outputs[output]

    def _replace(self, new: ir.Value) -> None:
        old = self.node.outputs[0]
        if old.is_graph_output():
            self._rename(old, new)
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    @staticmethod
    def _rename(old: ir.Value, new: ir.Value) -> None:
        name, old.name = old.name, f"{old.name}.dense"
        new.name, new.type, new.shape = name, old.type, old.shape
