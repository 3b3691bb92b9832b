"""How axes flow through every operator: one table, filled by one file per family."""

from sparsecc.rules import (  # noqa: F401
    attention,
    control,
    elementwise,
    experts,
    fused,
    fused_attention,
    linear,
    normalize,
    quantized,
    recurrent,
    rotary,
    select,
    shape,
    simple,
)
from sparsecc.rules.table import PINNED, RULES, Rule, reason_for_pin, rule_for

__all__ = ["PINNED", "RULES", "Rule", "reason_for_pin", "rule_for"]
