"""Model-local functions: who calls whom, and how many nodes inlining everything would give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.loading.scopes import FunctionKey


def inlined_nodes(
    plain: Mapping[FunctionKey | None, int], calls: Mapping[FunctionKey | None, Counter[FunctionKey]]
) -> int:
    """Nodes of the main graph with every call inlined. `plain` counts the nodes that are no calls, `calls`
    the calls, both by the function they stand in (None: the main graph). InputError for a circle of calls.
    """
    sizes: dict[FunctionKey | None, int] = {}
    entered: set[FunctionKey | None] = set()
    stack: list[FunctionKey | None] = [*plain, None]
    while stack:
        caller = stack[-1]
        callees = calls.get(caller, Counter())
        missing = [callee for callee in callees if callee not in sizes]
        if caller in sizes:
            stack.pop()
        elif not missing:
            sizes[caller] = plain.get(caller, 0) + sum(n * sizes[callee] for callee, n in callees.items())
            stack.pop()
        elif caller in entered:
            name = quoted(caller[1]) if caller else "?"
            raise InputError(
                f"function {name} calls itself, directly or through others: inline it before export"
            )
        else:
            entered.add(caller)
            stack.extend(missing)
    return sizes[None]
