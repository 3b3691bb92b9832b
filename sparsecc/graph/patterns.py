"""What the user's patterns name: groups, blocks, tensors, nodes, and whole modules by their path."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_ir as ir

from sparsecc.errors import InputError
from sparsecc.escaping import quoted

OF_TYPE = "type:"
"""What a pattern begins with that means all nodes of an operator."""
NODE = "node:"
"""What one begins with that means nodes by their own names alone."""
NEAREST = 3
"""Names that an error suggests at most."""
WILD = re.compile(r"[*?\[]")
"""What makes a pattern a glob."""


def module_of(node: str) -> str:
    """The dotted path of the module that a node stands in, as exporters spell it in the node's name; "" without one.

    `/layer4/layer4.0/conv1/Conv` is in `layer4.0.conv1`: children of a container repeat its name.
    """
    path: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def with_modules(names: Iterable[str]) -> list[str]:
    """Names of nodes and tensors, and the modules that they stand in."""
    found = dict.fromkeys(names)
    found.update(dict.fromkeys(module for name in (*found,) if (module := module_of(name))))
    return list(found)


def matches(name: str, pattern: str) -> bool:
    """Whether a shell pattern matches a name; one without wildcards names its module with all that is below, too."""
    if name == pattern or fnmatch.fnmatchcase(name, pattern):
        return True
    return not WILD.search(pattern) and name.startswith((f"{pattern}.", f"{pattern}/"))


def held(names: Iterable[str], keep: Sequence[str], only: Sequence[str]) -> str | None:
    """Why what goes by these names stays, by the user's patterns; None where it may go."""
    if not keep and not only:
        return None
    known = with_modules(names)
    for pattern in keep:
        if any(matches(n, pattern) for n in known):
            return f"kept by --keep '{pattern}'"
    if only and not any(matches(n, p) for n in known for p in only):
        return "outside --only"
    return None


def require_matches(
    asked: Mapping[str, Iterable[str]], names: Iterable[str], groups: int, spelt: str = "--"
) -> None:
    """InputError for a pattern that names nothing, with the nearest names; `asked` has the patterns by option, and
    `groups` is the number of `group:ID`.

    `spelt` is what stands before the options' names where the user writes them.
    """
    given = [(option, pattern) for option, patterns in asked.items() for pattern in patterns]
    if not given:
        return
    known, numbered = with_modules(names), [f"group:{i}" for i in range(groups)]
    for option, pattern in given:
        word, _, number = pattern.partition(":")
        if word == "group" and number.isdigit():
            if int(number) >= groups:
                raise InputError(
                    f"there is no {pattern}: groups are 0 to {groups - 1}, see 'sparsecc inspect'"
                )
        elif not any(matches(n, pattern) for n in (*known, *numbered)):
            flag = option.replace("_", "-") if spelt == "--" else option
            raise InputError(f"{spelt}{flag} {quoted(pattern)} matches nothing: {_nearest(pattern, known)}")


def _nearest(pattern: str, known: Sequence[str]) -> str:
    """The names closest to a pattern: of whole modules and tensors, and of the parts that such names begin with."""
    text = WILD.sub("", pattern).strip("./")
    heads = {
        name[:end]
        for name in known
        for end in (name.find("."), name.find(".", name.find(".") + 1))
        if end > 0
    }
    close = difflib.get_close_matches(text, sorted({*known, *heads}), n=NEAREST, cutoff=0.2)
    if close:
        return f"the nearest names are {', '.join(map(quoted, close))}"
    return "'sparsecc inspect' lists what there is"


def nodes_named(model: ir.Model, patterns: Sequence[str]) -> list[str]:
    """The names of the nodes that patterns name: by their own name (`node:` by nothing else), their module, a constant
    that they read, or as `type:Gemm` by their operator."""
    if not patterns:
        return []
    return [
        node.name or ""
        for node in model.graph.all_nodes()
        if any(_names_node(pattern, node, names) for names in [_names_of(node)] for pattern in patterns)
    ]


def require_nodes(model: ir.Model, option: str, patterns: Sequence[str]) -> None:
    """InputError for a pattern that names no node, with the nearest names."""
    if not patterns:
        return
    named = [(node, _names_of(node)) for node in model.graph.all_nodes()]
    for pattern in patterns:
        if not any(_names_node(pattern, node, names) for node, names in named):
            if pattern.startswith(OF_TYPE):
                known, text = [OF_TYPE + node.op_type for node, _ in named], pattern
            else:
                known, text = [name for _, names in named for name in names], pattern
            raise InputError(
                f"{option} {quoted(pattern)} matches nothing: {_nearest(text, list(dict.fromkeys(known)))}"
            )


def exactly(name: str, others: Collection[str]) -> str:
    """The pattern that names this node and none of the others, without a comma."""
    pattern = re.sub(r"([*?\[])", r"[\1]", name).replace(",", "?")
    if pattern == name and any(other.startswith((f"{name}.", f"{name}/")) for other in others):
        return NODE + pattern
    return pattern


def _names_of(node: ir.Node) -> list[str]:
    constants = [
        value.name or "" for value in node.inputs if value is not None and value.const_value is not None
    ]
    return [name for name in (node.name or "", module_of(node.name or ""), *constants) if name]


def _names_node(pattern: str, node: ir.Node, names: Iterable[str]) -> bool:
    if pattern.startswith(OF_TYPE):
        return fnmatch.fnmatchcase(node.op_type, pattern.removeprefix(OF_TYPE))
    if pattern.startswith(NODE):
        return fnmatch.fnmatchcase(node.name or "", pattern.removeprefix(NODE))
    return any(matches(name, pattern) for name in names)
