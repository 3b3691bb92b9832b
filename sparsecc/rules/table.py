"""The table of rules: one row per operator, and all that is known of it.

A row says how axes flow through an operator (`follow`) and, where the operator carries sizes of its own,
how these are mended after slots were removed (`fix`); what it does whatever its axes are (`traits`), which of its
operands are weights, and what its outputs look like where onnx cannot tell (`shapes`). Most rules are a line of
text: a letter is an axis, the same letter is the same axis, `*` stands for any axes, `!x` is pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import onnx_ir as ir

from sparsecc.axes.algebra import Axis
from sparsecc.rules.edit import Edit
from sparsecc.rules.site import CannotFollowError, Site
from sparsecc.rules.traits import Trait
from sparsecc.shapes.contrib_ops import OutputShapes

Follow = Callable[[Site], None]
Fix = Callable[[Edit], None]


@dataclass(frozen=True)
class Rule:
    """How one operator is treated. `weights` are the operands that a layer's own constants come in; `caches` those
    that bring what it has kept so far, with the output that each leaves it as (operand -> output)."""

    follow: Follow
    fix: Fix | None = None
    summary: str = ""
    traits: Trait = Trait.NONE
    weights: tuple[int, ...] = ()
    shapes: OutputShapes | None = None
    caches: Mapping[int, int] = field(default_factory=dict)


RULES: dict[tuple[str, str], Rule] = {}
"""(domain, operator) -> rule. The default domain is the empty string."""


def rule(
    operators: str,
    fix: Fix | None = None,
    domain: str = "",
    *,
    traits: Trait = Trait.NONE,
    weights: tuple[int, ...] = (),
    shapes: OutputShapes | None = None,
    caches: Mapping[int, int] | None = None,
) -> Callable[[Follow], Follow]:
    """Register a function as the `follow` of one or several operators."""

    def register(follow: Follow) -> Follow:
        summary = (follow.__doc__ or "").strip().split("\n")[0]
        for name in operators.split():
            RULES[domain, name] = Rule(follow, fix, summary, traits, weights, shapes, caches or {})
        return follow

    return register


def row(
    operators: str,
    spec: str,
    domain: str = "",
    reason: str = "a fixed axis",
    shapes: OutputShapes | None = None,
) -> None:
    """Register operators whose axes flow as a line of text says, for example `n c *, c, c -> n c *`."""
    inputs, outputs = (_operands(side) for side in spec.split("->"))

    def follow(site: Site) -> None:
        bound: dict[str, Axis] = {}
        rest: list[Axis] = []
        for operand, letters in enumerate(inputs):
            if site.has(operand):
                rest = _match(site, site.axes(operand), letters, bound, rest, reason)
        for output, letters in enumerate(outputs[: site.outputs()]):
            site.set([a for t in letters for a in (rest if t == "*" else [bound[t.lstrip("!")]])], output)

    for name in operators.split():
        RULES[domain, name] = Rule(follow, None, spec, shapes=shapes)


def _operands(side: str) -> list[list[str]]:
    return [operand.split() for operand in side.split(",")]


def _match(
    site: Site, axes: list[Axis], letters: list[str], bound: dict[str, Axis], rest: list[Axis], reason: str
) -> list[Axis]:
    """Bind the letters of one operand to its axes; returns what `*` stands for."""
    free = len(axes) - sum(t != "*" for t in letters)
    if free < 0 or ("*" not in letters and free):
        raise CannotFollowError(f"an operand has rank {len(axes)}, expected {' '.join(letters)}")
    position = 0
    for token in letters:
        if token == "*":
            found = axes[position : position + free]
            if rest:
                for a, b in zip(rest, found, strict=True):
                    site.same(a, b)
            rest = rest or found
            position += free
            continue
        axis, name = axes[position], token.lstrip("!")
        bound[name] = site.same(bound[name], axis) if name in bound else axis
        if token.startswith("!"):
            site.pin(axis, reason)
        position += 1
    return rest


@dataclass(frozen=True)
class Pin:
    """An operator whose operands and results can lose nothing: the reason that users read, and its other columns."""

    reason: str
    traits: Trait = Trait.NONE
    shapes: OutputShapes | None = None


PINNED: dict[tuple[str, str], Pin] = {}
"""Operators known to us that are pinned on purpose, by (domain, operator)."""


def pinned(
    operators: str,
    reason: str,
    domain: str = "",
    *,
    traits: Trait = Trait.NONE,
    shapes: OutputShapes | None = None,
) -> None:
    """Register operators that are pinned on purpose."""
    for name in operators.split():
        PINNED[domain, name] = Pin(reason, traits, shapes)


def rule_for(domain: str, operator: str) -> Rule | None:
    """The rule of an operator, or None where it has none and its axes are to be pinned."""
    return RULES.get(_key(domain, operator))


def reason_for_pin(domain: str, operator: str) -> str:
    """Why an operator without a rule pins its axes."""
    key = _key(domain, operator)
    shown = f"{key[0]}.{operator}" if key[0] else operator
    return PINNED[key].reason if key in PINNED else f"no rule for operator {shown}"


def traits_of(node: ir.Node) -> Trait:
    """What a node's operator does whatever its axes are; no trait where it has no row."""
    known = _columns(node.domain, node.op_type)
    return known.traits if known is not None else Trait.NONE


def weights_of(node: ir.Node) -> tuple[int, ...]:
    """The operands in which a node reads a layer's own constants; none where it is no layer."""
    known = rule_for(node.domain, node.op_type)
    return known.weights if known is not None else ()


def caches_of(node: ir.Node) -> Mapping[int, int]:
    """The operands of a node that are caches, with the outputs that they leave it as; none for most."""
    known = rule_for(node.domain, node.op_type)
    return known.caches if known is not None else {}


def shapes_of(domain: str, operator: str) -> OutputShapes | None:
    """How the outputs of an operator are inferred that onnx does not infer; None for all others."""
    known = _columns(domain, operator)
    return known.shapes if known is not None else None


@cache
def operators_with(traits: Trait) -> frozenset[str]:
    """The names of the operators, of whatever domain, that have one of these traits: for those who know kernels by
    name alone. All families must be registered: import it from `sparsecc.rules`."""
    rows: tuple[Mapping[tuple[str, str], Rule | Pin], ...] = (RULES, PINNED)
    return frozenset(name for table in rows for (_, name), known in table.items() if known.traits & traits)


def _columns(domain: str, operator: str) -> Rule | Pin | None:
    key = _key(domain, operator)
    return RULES.get(key) or PINNED.get(key)


def _key(domain: str, operator: str) -> tuple[str, str]:
    """The default domain has two spellings, "" and "ai.onnx"."""
    return ("" if domain == "ai.onnx" else domain, operator)
