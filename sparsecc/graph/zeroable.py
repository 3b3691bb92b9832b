"""Which slices of constants to zero in the dense model so that it computes what the pruned one does.

Wherever an operator sums over an axis that lost slots, one of its operands must be zero there. For a
convolution or a linear layer that is its own weight; for a product of two activations (attention scores) it is
the producer of one of them, found by walking back through operators that keep zeros zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, atoms_of
from sparsecc.graph.analysis import Analysis
from sparsecc.ir.subgraphs import bodies_of, has_body
from sparsecc.rules import Trait, traits_of
from sparsecc.rules.site import Reduction

Use = tuple[ir.Node, int]
Place = tuple[ir.Node, int]
"""A node with a body, and which of the body's inputs."""


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


Product = tuple[ir.Node, frozenset[Atom], int]


def _by_product(analysis: Analysis, lost: set[Atom]) -> dict[Product, list[Reduction]]:
    """The reductions over lost slots; the operands of one product are alternatives, constants first."""
    found: dict[Product, list[Reduction]] = {}
    for reduction in analysis.record.reductions:
        axes = _operand_axes(analysis, reduction.node, reduction.operand)
        atoms = frozenset(a for p in reduction.positions for a in atoms_of(axes[p]) if a in lost)
        if atoms:
            # a recurrent layer is two products, with W and with R: a zero is needed in both
            product = reduction.operand if traits_of(reduction.node) & Trait.RECURRENT else 0
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
    """Walks back from an operand to the constants whose slices make it zero, into bodies and out of them."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.inputs: dict[ir.Value, Place] = {}
        for node in analysis.model.graph.all_nodes():
            for body in bodies_of(node):
                self.inputs.update((value, (node, i)) for i, value in enumerate(body.inputs))

    def trace(self, reduction: Reduction, atoms: frozenset[Atom]) -> dict[Use, set[int]] | None:
        found: dict[Use, set[int]] = {}
        seen: set[Use | ir.Value] = set()
        pending: list[Use | ir.Value] = [(reduction.node, reduction.operand)]
        while pending:
            top = pending.pop()
            if top in seen:  # also the state of a loop, which is zero if it starts so and iterations keep it
                continue
            seen.add(top)
            if isinstance(top, tuple) and top in self.analysis.record.uses:
                found.setdefault(top, set()).update(self._axes_with(top, atoms))
                continue
            value = top[0].inputs[top[1]] if isinstance(top, tuple) else top
            following = self._behind(value, atoms) if value is not None else None
            if following is None:
                return None
            pending.extend(following)
        return found

    def _behind(self, value: ir.Value, atoms: frozenset[Atom]) -> Sequence[Use | ir.Value] | None:
        """What must be zero for this value to be; None where zeros do not come through."""
        if value in self.inputs:
            return self._behind_input(*self.inputs[value])
        node = value.producer()
        if node is None:
            return None
        if has_body(node):
            return self._behind_body(node, value.index() or 0)
        return self._behind_node(node, atoms)

    def _behind_input(self, node: ir.Node, place: int) -> Sequence[Use | ir.Value] | None:
        """An input of a body: what the node hands in, and for a state what an iteration leaves."""
        body = node.attributes["body"].as_graph()
        if node.op_type == "Loop":
            return [(node, place), body.outputs[place - 1]] if place >= 2 else None
        carried = len(node.inputs) - node.attributes.get_int("num_scan_inputs", 0)
        return [(node, place), body.outputs[place]] if place < carried else [(node, place)]

    def _behind_body(self, node: ir.Node, output: int) -> Sequence[Use | ir.Value] | None:
        """An output of a node with bodies: what these hand out, and a state as it was at first."""
        if node.op_type == "If":
            return [body.outputs[output] for body in bodies_of(node)]
        if node.op_type not in ("Loop", "Scan"):
            return None
        shift = 1 if node.op_type == "Loop" else 0
        scanned = node.attributes.get_int("num_scan_inputs", 0) if shift == 0 else 0
        carried = len(node.inputs) - 2 * shift - scanned
        inner = node.attributes["body"].as_graph().outputs[output + shift]
        return [(node, output + 2 * shift), inner] if output < carried else [inner]

    def _behind_node(self, node: ir.Node, atoms: frozenset[Atom]) -> list[Use] | None:
        holding = [
            i for i in range(len(node.inputs)) if node.inputs[i] is not None and self._has(node, i, atoms)
        ]
        traits = traits_of(node)
        if Trait.KEEPS_ZEROS in traits:
            return [(node, 0)] if holding else None
        if Trait.ADDS in traits:
            return [(node, i) for i in holding] if len(holding) == len(node.inputs) else None
        if Trait.NORMALISES in traits:
            affine: list[Use] = [(node, i) for i in (1, 2) if i in holding]
            return affine if affine and len(affine) == min(len(node.inputs) - 1, 2) else None
        if Trait.MULTIPLIES in traits:
            return self._factor(node, holding)
        return None

    def _factor(self, node: ir.Node, holding: list[int]) -> list[Use] | None:
        """One zero factor is enough; a bias must be zero as well."""
        factors = [i for i in holding if i < 2 and not (node.op_type == "Div" and i == 1)]
        if not factors:
            return None
        constant = [i for i in factors if node.inputs[i] in self.analysis.record.constant]
        chosen = [(node, (constant or factors)[0])]
        if node.op_type != "Einsum" and len(node.inputs) > 2 and node.inputs[2] is not None:
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
