"""Regions that torch.export keeps apart (autocast, grad mode) are put back where they are called from."""

from __future__ import annotations

import operator

from torch import fx


def inline_regions(module: fx.GraphModule) -> None:
    """Inline every `wrap_with_autocast` and `wrap_with_set_grad_enabled` call, nested ones too, in place."""
    while True:
        call = next((n for n in module.graph.nodes if _is_region(n)), None)
        if call is None:
            break
        _inline(module, call)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _is_region(node: fx.Node) -> bool:
    return node.op == "call_function" and str(node.target).startswith("wrap_with_")


def _inline(module: fx.GraphModule, call: fx.Node) -> None:
    position = next(i for i, a in enumerate(call.args) if isinstance(a, fx.Node) and a.op == "get_attr")
    body_node = call.args[position]
    assert isinstance(body_node, fx.Node)
    body = module.get_submodule(str(body_node.target))
    assert isinstance(body, fx.GraphModule)
    given = iter(call.args[position + 1 :])
    copies: dict[fx.Node, fx.Node] = {}
    results: tuple[object, ...] = ()
    with module.graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                value = next(given)
                assert isinstance(value, fx.Node)
                copies[node] = value
            elif node.op == "output":
                results = tuple(node.args[0]) if isinstance(node.args[0], list | tuple) else (node.args[0],)
            else:
                copies[node] = module.graph.node_copy(node, lambda n: copies[n])
    for user in list(call.users):
        index = user.args[1] if user.target is operator.getitem else 0
        assert isinstance(index, int)
        found = results[index]
        assert isinstance(found, fx.Node)
        user.replace_all_uses_with(copies[found])
        module.graph.erase_node(user)
    module.graph.erase_node(call)
