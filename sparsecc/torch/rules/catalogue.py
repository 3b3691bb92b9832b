"""The table of ATen rules, filled: importing a family registers its rows."""

from sparsecc.torch.rules import (  # noqa: F401
    attention,
    elementwise,
    linear,
    normalize,
    recurrent,
    select,
    shape,
)
from sparsecc.torch.rules.table import ATEN, PINNED, AtenRule


def rule_for(operator: str) -> AtenRule | None:
    """The rule of an ATen operator, or None where its axes are to be pinned."""
    return ATEN.get({"Conv": "conv2d", "ConvTranspose": "conv_transpose2d"}.get(operator, operator))


def reason_for_pin(operator: str) -> str:
    """Why an operator without a rule pins its axes."""
    return PINNED.get(operator) or f"no rule for aten.{operator}"
