"""`sparsecc inspect`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from sparsecc.cli import options
from sparsecc.cli.command import Command
from sparsecc.cli.terminal import Terminal, write_file
from sparsecc.cli.view import Block, Grid, Line
from sparsecc.report.numbers import count, percent, plural
from sparsecc.report.summary import held_for

TOP = 12
"""How many groups and reasons are shown; all are in the JSON and the HTML."""


def run(terminal: Terminal, given: dict[str, Any]) -> None:
    """Find the groups and show them."""
    from sparsecc import api

    page = given.pop("html", None)
    with terminal.progress() as on_event:
        found = api.inspect(given.pop("model"), **given, on_event=on_event)
    if page is not None:
        from sparsecc.report.html import inspect_page

        write_file(page, inspect_page(found))
        terminal.note(f"wrote {page}")
    terminal.result(found, inspect_view)


def inspect_view(found: Mapping[str, Any]) -> list[Block]:
    """The model, the share that can go, the groups, the pins."""
    if found.get("why"):
        return _why(found["why"])
    model, prunable = found["model"], found["prunable"]
    totals = (
        f"{count(model['nodes'])} nodes, {count(model['params'])} parameters, {count(model['macs'])} MACs"
    )
    return [
        Line(f"{model['path']}: {totals}, opset {model['opset']}", "title"),
        *(Line(text, "dim") for text in held_for(found)),
        Line(
            f"{percent(prunable['params_share'])} of the parameters and "
            f"{percent(prunable['macs_share'])} of the MACs are in groups that can be cut.",
            "good" if prunable["params_share"] > 0 else "warn",
        ),
        Line(""),
        *_kinds(found),
        *_groups(found),
        *_pins(found),
        *_layers(found),
        *_unknown(found),
        *_once(found),
    ]


def _kinds(found: Mapping[str, Any]) -> list[Block]:
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for group in found["groups"]:
        rows[group["kind"]].append(group)
    cells = [
        (
            kind,
            str(sum(bool(g["prunable"]) for g in groups)),
            str(sum(not g["prunable"] for g in groups)),
            count(sum(g["size"] for g in groups if g["prunable"])),
        )
        for kind, groups in sorted(rows.items())
    ]
    return [Grid(("kind", ">free groups", ">pinned", ">free slots"), cells)] if cells else []


def _groups(found: Mapping[str, Any]) -> list[Block]:
    free = sorted((g for g in found["groups"] if g["prunable"]), key=lambda g: (-(g["macs"] or 0), g["id"]))
    if not free:
        return [Line("No group can be cut: see what pins them below.", "warn")]
    rows: list[tuple[str, ...]] = [
        (
            str(group["id"]),
            group["kind"],
            str(group["size"]),
            count(group["macs"]),
            count(group["params"]),
            _where(group),
            "yes" if group["mixes"] else "",
        )
        for group in free[:TOP]
    ]
    columns: tuple[str, ...] = (">group", "kind", ">size", ">MACs", ">params", "where", "mixes")
    if not any(group["mixes"] for group in free[:TOP]):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    more = f", the {TOP} largest of {len(free)}" if len(free) > TOP else ""
    return [Line(""), Grid(columns, rows, title=f"Groups that can be cut{more}")]


def _where(group: Mapping[str, Any]) -> str:
    """The module that a group's weights are in; of several what their names begin with, and how many there are."""
    modules = [str(module) for module in group.get("modules") or ()]
    if not modules:
        return f"{group['members'][0][0]}:{group['members'][0][1]}" if group["members"] else ""
    shared: list[str] = []
    for parts in zip(*(module.split(".") for module in modules), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    more = f" ({len(modules)} layers)" if len(modules) > 1 else ""
    return f"{'.'.join(shared) or modules[0]}{more}"


def _pins(found: Mapping[str, Any]) -> list[Block]:
    pins = sorted(found["pins"], key=lambda pin: -pin["params"])
    rows = [
        (str(pin["groups"]), count(pin["params"]), percent(pin["share"]), pin["reason"]) for pin in pins[:TOP]
    ]
    without = found["prunable"]["no_channels_share"]
    if without > 0:
        rows.append(("", "", percent(without), "no channels: places and single numbers"))
    if not rows:
        return []
    lines: list[Block] = [Line(""), Grid((">groups", ">params that stay", ">share", "because"), rows)]
    more = f"and {plural(len(pins) - TOP, 'more reason')}"
    return [*lines, Line(more, "dim")] if len(pins) > TOP else lines


def _layers(found: Mapping[str, Any]) -> list[Block]:
    """Whole layers that stay, by reason: what is in them may lose channels all the same."""
    stay = [group for group in found["groups"] if "entry" in group and not group["prunable"]]
    reasons = Counter(str(layer["pinned"]) for layer in stay).most_common()
    rows = [(str(number), reason) for reason, number in reasons[:TOP]]
    return [Line(""), Grid((">layers that stay whole", "because"), rows)] if rows else []


def _unknown(found: Mapping[str, Any]) -> list[Block]:
    rows = [(op["op"], str(_number(op["nodes"])), op["reason"]) for op in found["unknown_ops"]]
    return [Line(""), Grid(("operator without a rule", ">nodes", "reason"), rows)] if rows else []


def _once(found: Mapping[str, Any]) -> list[Block]:
    """Loops whose MACs are more than the sum says."""
    names = [str(name) for name in (found.get("counted") or {}).get("once", ())]
    told = ", ".join(names[:TOP])
    line = f"MACs in {plural(len(names), 'loop')} count once, as the data says how often: {told}"
    return [Line(""), Line(line, "dim")] if names else []


def _number(nodes: Any) -> int:
    return nodes if isinstance(nodes, int) else len(nodes)


def _why(why: Mapping[str, Any]) -> list[Block]:
    """The axis' pin or freedom, the facts that led there one a line, and the axes it goes with."""
    pinned = why.get("pinned")
    head = f"{why['axis']} is pinned: {pinned}" if pinned else f"{why['axis']} can be cut"
    coupled = [str(one) for one in why.get("coupled") or ()]
    return [
        Line(head, "warn" if pinned else "good"),
        *(Line(f"{number}. {step}") for number, step in enumerate(why.get("steps") or (), 1)),
        *(
            [Line(""), Line(f"goes together with {plural(len(coupled), 'other')}:", "title")]
            if coupled
            else []
        ),
        *(Line(one) for one in coupled),
    ]


command = Command(
    "inspect",
    run,
    about="Show the groups of coupled channels and heads of MODEL, what can go, and what is pinned and why.",
    examples=(
        "sparsecc inspect model.onnx",
        "sparsecc inspect model.onnx --why conv1.weight:0",
        "sparsecc inspect model.onnx --html groups.html --json > groups.json",
    ),
    arguments=(options.model(),),
    sections={
        "What to look at": (
            options.option("inputs"),
            options.option("keep"),
            options.option("only"),
            options.option("prune_io"),
            options.option("custom_ops"),
            options.option("why"),
        ),
        "Output": (options.html("the groups drawn in the graph"),),
    },
)
