"""Which slices of constants to zero in the dense model so that it computes what the pruned one does.

Wherever an operator sums over an axis that lost slots, one of its operands must be zero there. For a
convolution or a linear layer that is its own weight; for a product of two activations (attention scores) it is
the producer of one of them, found by walking back through operators that keep zeros zero.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from sparsecc.axes import Atom, Axis, atoms_of
from sparsecc.graph.analysis import Analysis
from sparsecc.rules.site import Reduction

Use = tuple[ir.Node, int]

_PASS = frozenset(
    """Identity Cast Reshape Transpose Flatten Squeeze Unsqueeze Expand Slice Split Gather Neg Abs Relu LeakyRelu
    Tanh Gelu HardSwish Sqrt Sign Dropout Mish Erf Swish Elu Selu Celu MaxPool AveragePool GlobalAveragePool Tile
    DepthToSpace SpaceToDepth Resize FastGelu QuickGelu ReduceSum ReduceMean GlobalMaxPool Pad""".split()
)
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Mul", "Div", "FusedMatMul"})
_SUMS = frozenset({"Add", "Sub", "Concat", "Sum"})
_NORMS = frozenset({"BatchNormalization", "LayerNormalization", "RMSNormalization", "InstanceNormalization"})


def zeroable(analysis: Analysis, lost: set[Atom]) -> tuple[dict[Use, set[int]], set[Atom]]:
    """(slices to zero: use -> axes, atoms for which no such slices were found)."""
    finder = _Finder(analysis)
    zeroed: dict[Use, set[int]] = {}
    unclear: set[Atom] = set()
    for (_, atoms, _), reductions in _by_product(analysis, lost).items():
        found = next((f for f in (finder.trace(r, atoms) for r in reductions) if f is not None), None)
        if found is None:
            unclear.update(atoms)
            continue
        for use, axes in found.items():
            zeroed.setdefault(use, set()).update(axes)
    return zeroed, unclear


_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
"""Operators of two products, with W and with R: a zero is needed in both."""

Product = tuple[ir.Node, frozenset[Atom], int]


def _by_product(analysis: Analysis, lost: set[Atom]) -> dict[Product, list[Reduction]]:
    """The reductions over lost slots; the operands of one product are alternatives, constants first."""
    found: dict[Product, list[Reduction]] = {}
    for reduction in analysis.record.reductions:
        axes = _operand_axes(analysis, reduction.node, reduction.operand)
        atoms = frozenset(a for p in reduction.positions for a in atoms_of(axes[p]) if a in lost)
        if atoms:
            product = reduction.operand if reduction.node.op_type in _RECURRENT else 0
            found.setdefault((reduction.node, atoms, product), []).append(reduction)
    for reductions in found.values():
        reductions.sort(key=lambda r: r.node.inputs[r.operand] not in analysis.record.constant)
    return found


def _operand_axes(analysis: Analysis, node: ir.Node, operand: int) -> list[Axis]:
    if (node, operand) in analysis.record.uses:
        return analysis.record.uses[node, operand]
    value = node.inputs[operand]
    return analysis.record.axes.get(value, []) if value is not None else []


class _Finder:
    """Walks back from an operand to the constants whose slices make it zero."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis

    def trace(self, reduction: Reduction, atoms: frozenset[Atom]) -> dict[Use, set[int]] | None:
        found: dict[Use, set[int]] = {}
        seen: set[Use] = set()
        pending = [(reduction.node, reduction.operand)]
        while pending:
            use = pending.pop()
            if use in seen:
                continue
            seen.add(use)
            if use in self.analysis.record.uses:
                found.setdefault(use, set()).update(self._axes_with(use, atoms))
                continue
            following = self._behind(use, atoms)
            if following is None:
                return None
            pending.extend(following)
        return found

    def _behind(self, use: Use, atoms: frozenset[Atom]) -> list[Use] | None:
        """The operands that must be zero for this one to be; None where zeros do not come through."""
        value = use[0].inputs[use[1]]
        node = value.producer() if value is not None else None
        if node is None:
            return None
        holding = [
            i for i in range(len(node.inputs)) if node.inputs[i] is not None and self._has(node, i, atoms)
        ]
        if node.op_type in _PASS:
            return [(node, 0)] if holding else None
        if node.op_type in _SUMS:
            return [(node, i) for i in holding] if len(holding) == len(node.inputs) else None
        if node.op_type in _NORMS:
            affine: list[Use] = [(node, i) for i in (1, 2) if i in holding]
            return affine if affine and len(affine) == min(len(node.inputs) - 1, 2) else None
        if node.op_type in _PRODUCTS:
            return self._factor(node, holding)
        return None

    def _factor(self, node: ir.Node, holding: list[int]) -> list[Use] | None:
        """One zero factor is enough; a bias must be zero as well."""
        factors = [i for i in holding if i < 2 and not (node.op_type == "Div" and i == 1)]
        if not factors:
            return None
        constant = [i for i in factors if node.inputs[i] in self.analysis.record.constant]
        chosen = [(node, (constant or factors)[0])]
        if (
            node.op_type in ("Gemm", "Conv", "ConvTranspose")
            and len(node.inputs) > 2
            and node.inputs[2] is not None
        ):
            if 2 not in holding:
                return None
            chosen.append((node, 2))
        return chosen

    def _has(self, node: ir.Node, operand: int, atoms: Iterable[Atom]) -> bool:
        axes = _operand_axes(self.analysis, node, operand)
        return any(a in atoms for axis in axes for a in atoms_of(axis))

    def _axes_with(self, use: Use, atoms: frozenset[Atom]) -> set[int]:
        axes = self.analysis.record.uses[use]
        return {i for i, axis in enumerate(axes) if any(a in atoms for a in atoms_of(axis))}
