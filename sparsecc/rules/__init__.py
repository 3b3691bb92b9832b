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
    select_nd,
    shape,
    simple,
)
from sparsecc.rules.table import (
    PINNED,
    RULES,
    Rule,
    caches_of,
    operators_with,
    reason_for_pin,
    rule_for,
    shapes_of,
    traits_of,
    weights_of,
)
from sparsecc.rules.traits import Trait

__all__ = [
    "PINNED",
    "RULES",
    "Rule",
    "Trait",
    "caches_of",
    "operators_with",
    "reason_for_pin",
    "rule_for",
    "shapes_of",
    "traits_of",
    "weights_of",
]
