"""The words of a model: the input that holds their numbers, the tables they are looked up in, what scores them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.ir.constants import add_constant
from sparsecc.rules import Trait, traits_of

IDS = "input_ids"
"""What the input is called where several hold integers."""
_PASS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Expand"})
"""Hand the numbers on as they are."""
_NOWHERE = -1
"""The number that no word has: what a word that went is compared with."""


@dataclass(frozen=True)
class _Use:
    """A constant of a node in which words are slots of the axis."""

    node: ir.Node
    operand: int
    axis: int
    runs: int = 1
    """Elements of the axis that one word has, side by side."""


@dataclass
class Vocabulary:
    """`number` words: where they stand in the constants of a graph, and the outputs that score them."""

    ids: ir.Value
    number: int
    uses: list[_Use] = field(default_factory=list)
    compared: list[_Use] = field(default_factory=list)
    """Constants that hold numbers of words."""
    sized: list[ir.Node] = field(default_factory=list)
    """Nodes whose attribute N counts the words."""
    scores: list[ir.Value] = field(default_factory=list)
    """Values whose last axis they are; graph outputs among them."""

    def keep(self, kept: np.ndarray) -> None:
        """Leave the words with these numbers, ascending int64; each then has its place among them as its number."""
        graph = self.ids.graph
        assert isinstance(graph, ir.Graph)
        made: dict[tuple[str, int, int], ir.Value] = {}
        for use in self.uses:
            old = _constant(use.node, use.operand)
            key = (old.name or "", use.axis, use.runs)
            if key not in made:
                made[key] = add_constant(graph, f"{old.name}.words", _sliced(old, use, kept))
            use.node.replace_input_with(use.operand, made[key])
        for use in self.compared:
            old = _constant(use.node, use.operand)
            assert old.const_value is not None
            numbers = old.const_value.numpy()
            places = np.minimum(np.searchsorted(kept, numbers), len(kept) - 1)
            new = np.where(kept[places] == numbers, places, _NOWHERE).astype(numbers.dtype)
            use.node.replace_input_with(use.operand, add_constant(graph, f"{old.name}.words", new))
        for node in self.sized:
            node.attributes["N"] = ir.AttrInt64("N", len(kept))
        for value in self.scores:
            if value.shape is not None:
                value.shape = ir.Shape([*list(value.shape)[:-1], len(kept)])
        for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
            del graph.initializers[name]
        for (name, *_), value in made.items():
            if name not in graph.initializers:  # the first of those that were made of it
                value.name = name


def vocabulary_of(model: ir.Model) -> Vocabulary:
    """The vocabulary of a model in its normal form. InputError where words are read in another way than by tables."""
    tables = [found for value in _candidates(model) if (found := _looked_up(value)) is not None]
    if not tables:
        raise InputError("--vocabulary: no input of the model is looked up in a table of words: leave it out")
    found = next((one for one in tables if one.ids.name == IDS), tables[0])
    if found.number in {size for use in found.uses if use.operand == 0 for size in _shape(use)[1:]}:
        raise InputError(
            f"--vocabulary: there are as many words as numbers of each one ({found.number}), and nothing "
            "tells them apart: leave it out"
        )
    for output in model.graph.outputs:
        size = output.shape[-1] if output.shape is not None and len(output.shape) else None
        if size == found.number:
            _add_head(found, output)
    found.uses = list(dict.fromkeys(found.uses))  # several outputs may come out of one product
    scored = {use.node for use in found.uses}
    for node in model.graph:
        if traits_of(node) & Trait.PRODUCT and node not in scored and any(_of_head(node, found.number)):
            raise InputError(
                f"--vocabulary: {quoted(node.name or node.op_type)} scores words, but its scores are no output: "
                "what is chosen by them would have the numbers before, leave it out"
            )
    return found


def product_of(value: ir.Value) -> tuple[ir.Node, list[ir.Node]] | None:
    """(the product with constant weights that makes a value, the nodes between, the last first).

    What lies between works slot by slot with constants. None where there is no such product, or others read it too.
    """
    between: list[ir.Node] = []
    node = value.producer()
    while node is not None and not traits_of(node) & Trait.PRODUCT:
        data = [v for v in node.inputs if v is not None and v.const_value is None]
        is_slotwise = bool(traits_of(node) & (Trait.SLOTWISE | Trait.ADDS | Trait.MULTIPLIES | Trait.MOVES))
        if not is_slotwise or node.op_type in ("Transpose", "Reshape", "Gather", "Slice") or len(data) != 1:
            return None
        between.append(node)
        node = data[0].producer()
    if node is None or node.inputs[1] is None or node.inputs[1].const_value is None:
        return None
    return (node, between) if len(node.outputs[0].uses()) <= 1 else None


def _candidates(model: ir.Model) -> Iterator[ir.Value]:
    for value in model.graph.inputs:
        if value.dtype in (ir.DataType.INT64, ir.DataType.INT32) and not value.is_initializer():
            yield value


def _looked_up(ids: ir.Value) -> Vocabulary | None:
    """The tables that an input is looked up in; None where it is no number of a word."""
    found, waiting, others = Vocabulary(ids, 0), [ids], []
    while waiting:
        value = waiting.pop()
        for node, operand in value.uses():
            if node.op_type in _PASS and operand == 0:
                waiting.append(node.outputs[0])
            elif node.op_type in ("Gather", "GatherBlockQuantized") and operand == 1 and _is_table(node):
                found.uses += [_Use(node, place, 0) for place in (0, 2, 3) if _is_given(node, place)]
            elif node.op_type == "Equal" and _is_given(node, 1 - operand):
                found.compared.append(_Use(node, 1 - operand, 0))
            elif not traits_of(node) & Trait.COUNTS:
                others.append(node)
    sizes = {shape[0] for use in found.uses if use.operand == 0 and (shape := _shape(use))}
    if not sizes:
        return None
    if len(sizes) > 1 or others:
        how = (
            f"by {quoted(others[0].name or others[0].op_type)} too"
            if others
            else "in tables of unlike length"
        )
        raise InputError(
            f"--vocabulary: the numbers in {quoted(ids.name or '')} are read {how}: leave it out"
        )
    found.number = sizes.pop()
    return found


def _is_table(node: ir.Node) -> bool:
    axis = node.attributes.get_int("axis" if node.op_type == "Gather" else "gather_axis", 0)
    return axis == 0 and _is_given(node, 0) and len(_shape(_Use(node, 0, 0))) == 2


def _is_given(node: ir.Node, operand: int) -> bool:
    value = node.inputs[operand] if operand < len(node.inputs) else None
    return value is not None and value.const_value is not None


def _shape(use: _Use) -> tuple[int, ...]:
    held = _constant(use.node, use.operand).const_value
    return tuple(held.shape.numpy()) if held is not None else ()


def _constant(node: ir.Node, operand: int) -> ir.Value:
    value = node.inputs[operand]
    assert value is not None
    return value


def _add_head(found: Vocabulary, output: ir.Value) -> None:
    """Take in the product that scores the words. InputError where there is none that is understood."""
    made = product_of(output)
    if made is None:
        raise InputError(
            f"--vocabulary: output {quoted(output.name or '')} scores words, but comes out of no product with "
            "weights: leave it out"
        )
    head, between = made
    for node in between:
        for place, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None and _last(node, place) == found.number:
                found.uses.append(_Use(node, place, len(_shape(_Use(node, place, 0))) - 1))
    uses = list(_of_head(head, found.number))
    if not uses:
        raise InputError(
            f"--vocabulary: {quoted(head.name or head.op_type)} has no axis of words: leave it out"
        )
    found.uses += uses
    found.sized += [head] if head.op_type == "MatMulNBits" else []
    found.scores += [output, head.outputs[0], *(node.outputs[0] for node in between)]


def _of_head(head: ir.Node, words: int) -> Iterator[_Use]:
    """The constants of the product, with the axis of the words in each."""
    if not _is_given(head, 1):
        return
    if head.op_type == "MatMulNBits":
        if _shape(_Use(head, 1, 0))[0] != words:
            return
        for place in (1, 2, 3, 5):
            if _is_given(head, place):
                size = _shape(_Use(head, place, 0))[0]
                yield _Use(head, place, 0, max(1, size // words) if place in (2, 3) else 1)
        return
    turned = head.op_type == "Gemm" and head.attributes.get_int("transB", 0) != 0
    axis = 0 if turned else len(_shape(_Use(head, 1, 0))) - 1
    if head.op_type not in ("Gemm", "MatMul") or _shape(_Use(head, 1, axis))[axis] != words:
        return
    yield _Use(head, 1, axis)
    if head.op_type == "Gemm" and _is_given(head, 2) and _last(head, 2) == words:
        yield _Use(head, 2, len(_shape(_Use(head, 2, 0))) - 1)


def _last(node: ir.Node, place: int) -> int:
    shape = _shape(_Use(node, place, 0))
    return shape[-1] if shape else 0


def _sliced(value: ir.Value, use: _Use, kept: np.ndarray) -> np.ndarray:
    assert value.const_value is not None
    array = value.const_value.numpy()
    slots = (kept[:, None] * use.runs + np.arange(use.runs)).ravel()
    return np.ascontiguousarray(np.take(array, slots, axis=use.axis))
