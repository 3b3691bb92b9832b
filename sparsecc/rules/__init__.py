"""How axes flow through every operator: one table, filled by one file per family."""

from sparsecc.rules import elementwise, linear, normalize, select, shape, simple  # noqa: F401
from sparsecc.rules.table import PINNED, RULES, Rule, reason_for_pin, rule_for

__all__ = ["PINNED", "RULES", "Rule", "reason_for_pin", "rule_for"]
