"""Traits are true of the operators that have them, and stand nowhere else."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from sparsecc.rules import PINNED, RULES, Trait, operators_with, shapes_of, traits_of, weights_of
from sparsecc.rules.elementwise import (
    OTHER_BROADCAST,
    OTHER_UNARY,
    ZERO_AT_ZERO,
    ZERO_OF_ONE_ZERO,
    ZERO_OF_ZEROS,
)

OPSET = 21
ON_BITS = frozenset({"BitCast", "BitShift", "BitwiseNot", "BitwiseAnd", "BitwiseOr", "BitwiseXor"})
ON_BOOLEANS = frozenset({"And", "Not", "Or", "Xor"})
NEWER = frozenset({"BitCast", "Swish", "SwiGLU"})
"""Operators behind opset 21."""

SEPARATE = {
    "sparsecc/graph/vocabulary.py": "moves that may take the place of the last position elsewhere",
    "sparsecc/ir/lower_opset.py": "whose axis meant all behind it before version 13",
    "sparsecc/calibrate/mixtures.py": "operators that pick by number",
    "sparsecc/data/random_inputs.py": "operators with an operand that is a size",
    "sparsecc/loading/maxpool_padding.py": "results that are never negative",
    "sparsecc/runtime/kernel_census.py": "kernels of one runtime: into which it fuses an activation or a product",
    "sparsecc/graph/constant_channels.py": "operators that give one number for each channel",
    "passes/quantize/float16_range.py": "operators on whose result a tiny or a huge operand has a bounded effect",
    "sparsecc/shapes/demands.py": "what each operator asks of the sizes of its operands",
    "sparsecc/decide/data_free.py": "models that keep the same share everywhere where nothing can be tried",
    "passes/quantize/expand_qoperators.py": "integer operators that one function takes apart",
    "passes/quantize/lift.py": "readers whose weights are kept small, and results that are never negative",
    "passes/quantize/select_layers.py": "kernels of one runtime: on integers of one scale",
    "sparsecc/graph/linear_layers.py": "layers that are one matrix",
    "sparsecc/verify/layers_in_type.py": "layers, and which axis of their result is the channels'",
}
"""Files with a list of operators that lies inside a trait and is still another fact."""


def run(operator: str, *arrays: np.ndarray) -> np.ndarray:
    """The first result of one operator of the standard, by its reference implementation."""
    feeds = {f"x{i}": array for i, array in enumerate(arrays)}
    node = onnx.helper.make_node(operator, list(feeds), ["y"])
    infos = [onnx.helper.make_tensor_value_info(n, 1, None) for n in feeds]
    for info, array in zip(infos, arrays, strict=True):
        info.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    graph = onnx.helper.make_graph([node], "g", infos, [onnx.helper.make_tensor_value_info("y", 1, None)])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    (found,) = ReferenceEvaluator(model).run(None, feeds)
    return np.asarray(found)


def numbers(operator: str, shape: tuple[int, ...], *, zero: bool) -> np.ndarray:
    """An operand of a type that the operator takes."""
    dtype = np.uint8 if operator in ON_BITS else np.bool_ if operator in ON_BOOLEANS else np.float32
    return np.zeros(shape, dtype) if zero else np.full(shape, 1, dtype)


@pytest.mark.parametrize("operator", sorted({*ZERO_AT_ZERO.split(), *OTHER_UNARY.split()} - NEWER))
def test_zero_stays_zero_where_the_row_says_so(operator: str) -> None:
    if operator == "IsNaN" or operator == "IsInf" or operator == "Shrink":
        pytest.skip("false is no number, and what Shrink gives at zero depends on its attributes")
    with np.errstate(all="ignore"):
        is_zero = bool((run(operator, numbers(operator, (2,), zero=True)) == 0).all())
    assert is_zero is (Trait.KEEPS_ZEROS in RULES["", operator].traits)


@pytest.mark.parametrize("operator", sorted({*ZERO_OF_ZEROS.split(), *ZERO_OF_ONE_ZERO.split()}))
def test_zeros_meet_as_the_row_says(operator: str) -> None:
    zero, other = (numbers(operator, (2,), zero=z) for z in (True, False))
    if operator == "BitShift":
        pytest.skip("it needs a direction")
    traits = RULES["", operator].traits
    if Trait.ADDS in traits:
        assert (run(operator, zero, zero) == 0).all()
        assert not (run(operator, other, zero) == 0).all() or operator == "Min"
    else:
        assert (run(operator, zero, other) == 0).all()
        assert operator == "Div" or (run(operator, other, zero) == 0).all()


def test_others_make_numbers_of_zeros() -> None:
    assert not Trait.ADDS & RULES["", "Equal"].traits
    known = {name: RULES["", name].traits for name in OTHER_BROADCAST.split()}
    assert not [n for n, traits in known.items() if traits & (Trait.ADDS | Trait.MULTIPLIES)]


@pytest.mark.parametrize(
    ("operator", "more"),
    [
        *(("Flatten", ()), ("Identity", ()), ("Transpose", ()), ("Squeeze", ())),
        *(("Reshape", ([4, 1],)), ("Unsqueeze", ([0],)), ("CastLike", (np.zeros(1, np.float64),))),
        *(("Expand", ([3, 4],)), ("Tile", ([2, 2],)), ("Gather", ([0, 0],)), ("GatherND", ([[0]],))),
        *(("GatherElements", ([[0, 0, 0, 0]],)), ("Slice", ([0], [1], [1])), ("Split", ([1],))),
    ],
)
def test_what_moves_makes_no_numbers(operator: str, more: tuple[list[int], ...]) -> None:
    data = np.array([[3.0, 5.0, 7.0, 9.0]], np.float32)
    operands = [np.asarray(m) if isinstance(m, np.ndarray) else np.asarray(m, np.int64) for m in more]
    found = run(operator, data, *operands)
    traits = RULES["", operator].traits
    assert Trait.MOVES in traits
    assert set(found.ravel()) <= set(data.ravel())
    if Trait.KEEPS_SIZE in traits:
        assert sorted(found.ravel()) == sorted(data.ravel())


def test_size_and_zeros_are_kept_by_what_moves() -> None:
    rows = [row.traits for row in RULES.values()]
    assert all(Trait.KEEPS_ZEROS in traits for traits in rows if Trait.MOVES in traits)
    assert all(Trait.MOVES in traits for traits in rows if Trait.KEEPS_SIZE in traits)
    assert all(Trait.INTEGER in traits for traits in rows if Trait.ROUNDS in traits)


def test_weights_are_operands_of_their_operator() -> None:
    for (domain, name), row in RULES.items():
        if row.weights and name != "SimplifiedLayerNormalization":
            assert max(row.weights) < onnx.defs.get_schema(name, OPSET + 2, domain).max_input


def test_a_row_is_found_by_both_names_of_the_default_domain() -> None:
    for domain in ("", "ai.onnx"):
        node = ir.Node(domain, "Conv", [ir.Value(name="x"), ir.Value(name="w")])
        assert traits_of(node) & Trait.CONVOLUTION
        assert weights_of(node) == (1, 2)
    assert traits_of(ir.Node("org.example", "Conv", [])) is Trait.NONE
    assert (
        shapes_of("com.microsoft", "QEmbedLayerNormalization")
        is PINNED["com.microsoft", "QEmbedLayerNormalization"].shapes
    )


def lists_of_operators(path: Path, known: frozenset[str]) -> Iterator[tuple[int, frozenset[str]]]:
    """(line, names) of what is written as a set, tuple, list, dictionary or text of at least three operators."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Set | ast.Tuple | ast.List):
            parts = [e.value for e in node.elts if isinstance(e, ast.Constant)]
        elif isinstance(node, ast.Dict):
            parts = [k.value for k in node.keys if isinstance(k, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = list(node.value.split())
        else:
            continue
        if len(set(parts)) >= 3 and all(part in known for part in parts):
            yield node.lineno, frozenset(map(str, parts))


def product_files(root: Path) -> Iterator[Path]:
    for top in ("sparsecc", "passes", "backends"):
        for parent, _, names in os.walk(root / top):
            yield from (Path(parent, name) for name in names if name.endswith(".py"))


def test_no_list_of_operators_says_what_a_trait_says(root: Path) -> None:
    """Any list of three or more that lies inside one trait is that trait written again, or another fact: then its
    file stands in SEPARATE with the fact."""
    known = frozenset(name for _, name in (*RULES, *PINNED))
    traits = [operators_with(trait) for trait in Trait if trait is not Trait.NONE]
    again: dict[str, int] = {}
    for path in product_files(root):
        label = str(path.relative_to(root))
        if label.startswith(("sparsecc/rules/", "sparsecc/torch/onnx_ops/")):
            continue
        for line, names in lists_of_operators(path, known):
            if any(names <= trait for trait in traits):
                again[label] = line
    unexplained = [f"{label}:{line}" for label, line in again.items() if label not in SEPARATE]
    assert unexplained == [], "ask the rule's row for a trait, or say what differs"
    assert sorted(SEPARATE.keys() - again.keys()) == []
