"""docs/half.md, from the code: `python -m sparsecc.passes.quantize.half_page > docs/half.md` (`make half`)."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Iterator

import onnx

from sparsecc.passes.quantize.float16 import (
    HALF_TYPES,
    KEEP_TYPE,
    KEPT_FLOAT,
    TYPE_NAMES,
    half_variables,
)
from sparsecc.passes.quantize.float16_range import DEEPEST
from sparsecc.targets import TARGETS, Target

OPSET = 22
"""The operator set of the lists: the first in which bf16 is whole."""
HEAD = f"""# What stays in float32 in fp16 and bf16

Made from the code by `make half`; a test keeps it so. Of ONNX at operator set {OPSET}; `--quantize fp16` and `bf16`,
and `rest=`, put casts around these. Besides, node by node:

- what `exclude` names, with its bodies; what goes in and comes out of bodies (If, Loop, Scan); other domains;
- sums of {DEEPEST} numbers and more (ReduceMean, ReduceSum, ReduceL1), and who reads such a sum;
- in fp16 constants above 65504 or so small that they would be zero, and what reads a value of that size; batch norms
  whose variances are so small are written in numbers that fit; with samples, nodes whose values pass 30000;
- Concat and what only moves numbers, where all of these stay float32 anyway.
"""


def page() -> str:
    """The document."""
    parts = [HEAD]
    for type_ in HALF_TYPES:
        parts.append(f"\n## {type_}\n\n| operators | on | why |\n|---|---|---|\n")
        parts += [f"| {operators} | {where} | {why} |\n" for operators, where, why in _rows(type_)]
    return "".join(parts)


def _rows(type_: str) -> Iterator[tuple[str, str, str]]:
    yield _words(KEPT_FLOAT), "all targets", "their range, or kernels that are missing where it matters"
    yield _words(KEEP_TYPE), "all targets", "they name the type of their result themselves"
    without = {schema.name for schema in _float_schemas() if not half_variables(schema, TYPE_NAMES[type_])}
    yield _words(without - KEPT_FLOAT - KEEP_TYPE), "all targets", f"ONNX has no {type_} form of them"
    lacking: dict[str, list[str]] = defaultdict(list)
    for target in _targets(type_):
        for (kind, operator), _ in sorted(target.no_kernel.items()):
            if kind == type_ and operator not in without | KEPT_FLOAT:
                lacking[operator].append(target.name)
    by_targets: dict[str, list[str]] = defaultdict(list)
    for operator, names in lacking.items():
        by_targets[", ".join(names)].append(operator)
    for names_of, operators in sorted(by_targets.items()):
        yield _words(operators), names_of, "the builder takes no such node, found by building each"


def _targets(type_: str) -> list[Target]:
    return [target for target in TARGETS.values() if type_ in target.types]


def _float_schemas() -> Iterator[onnx.defs.OpSchema]:
    """The newest schema at OPSET of every operator that takes or gives float32 numbers."""
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    for name in sorted(names):
        if not onnx.defs.has(name, OPSET, ""):
            continue
        schema = onnx.defs.get_schema(name, OPSET, "")
        types = {text for constraint in schema.type_constraints for text in constraint.allowed_type_strs}
        fixed = {one.type_str for one in (*schema.inputs, *schema.outputs)}
        if not schema.deprecated and "tensor(float)" in types | fixed:
            yield schema


def _words(operators: Collection[str]) -> str:
    return ", ".join(sorted(operators)) or "none"


if __name__ == "__main__":
    sys.stdout.write(page())
