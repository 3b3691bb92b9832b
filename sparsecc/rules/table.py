"""The table of rules: one row per operator.

A row says how axes flow through an operator (`follow`) and, where the operator carries sizes of its own,
how these are mended after slots were removed (`fix`). Most rows are a line of text: a letter is an axis,
the same letter is the same axis, `*` stands for any axes, `!x` is pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sparsecc.axes.algebra import Axis
from sparsecc.rules.edit import Edit
from sparsecc.rules.site import CannotFollowError, Site

Follow = Callable[[Site], None]
Fix = Callable[[Edit], None]


@dataclass(frozen=True)
class Rule:
    """How one operator is treated."""

    follow: Follow
    fix: Fix | None = None
    summary: str = ""


RULES: dict[tuple[str, str], Rule] = {}
"""(domain, operator) -> rule. The default domain is the empty string."""


def rule(
    operators: str | Iterable[str], fix: Fix | None = None, domain: str = "", summary: str = ""
) -> Callable[[Follow], Follow]:
    """Register a function as the `follow` of one or several operators."""

    def register(follow: Follow) -> Follow:
        names = operators.split() if isinstance(operators, str) else operators
        text = summary or (follow.__doc__ or "").strip().split("\n")[0]
        for name in names:
            RULES[domain, name] = Rule(follow, fix, text)
        return follow

    return register


def row(operators: str, spec: str, domain: str = "", reason: str = "a fixed axis") -> None:
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
        RULES[domain, name] = Rule(follow, None, spec)


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


PINNED: dict[tuple[str, str], str] = {}
"""Operators known to us that are pinned on purpose: (domain, operator) -> why."""


def pinned(operators: str, reason: str, domain: str = "") -> None:
    """Register operators whose operands and results can lose nothing, with the reason shown to users."""
    for name in operators.split():
        PINNED[domain, name] = reason


def rule_for(domain: str, operator: str) -> Rule | None:
    """The rule of an operator, or None where it has none and its axes are to be pinned."""
    domain = "" if domain == "ai.onnx" else domain
    return RULES.get((domain, operator))


def reason_for_pin(domain: str, operator: str) -> str:
    """Why an operator without a rule pins its axes."""
    domain = "" if domain == "ai.onnx" else domain
    known = PINNED.get((domain, operator))
    shown = f"{domain}.{operator}" if domain else operator
    return known or f"no rule for operator {shown}"
