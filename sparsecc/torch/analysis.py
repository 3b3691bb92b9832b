"""The axis analysis of an exported torch module; the groups come from the same code as for ONNX."""

from __future__ import annotations

import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, Space
from sparsecc.graph import analysis as walk
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.single_slots import gather_single_slots
from sparsecc.graph.slot_indices import pass_on, settle
from sparsecc.rules import Trait
from sparsecc.rules.site import CannotFollowError, Record
from sparsecc.torch.program.exported import Program
from sparsecc.torch.rules.catalogue import reason_for_pin, rule_for
from sparsecc.torch.rules.site import AtenSite

_CUTS = frozenset({"chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "tensor_split"})


def analyse(program: Program, *, equal_pieces: bool = False) -> Analysis:
    """Give every dimension of an exported module its axis.

    With `equal_pieces` what is cut into pieces of one size stays so: a module's own `chunk(2)` finds its halves again.
    """
    analysis = Analysis(program.model, program.shapes, Space(), Record())
    walk.enter_inputs(analysis)
    for node in program.model.graph:
        _follow(program, analysis, node)
    walk.leave_outputs(analysis)
    settle(analysis.space, analysis.record)
    _tie_parameters(analysis)
    if equal_pieces:
        _tie_pieces(analysis)
    _pin_unread(analysis)
    walk.pin_parts_of_dynamic_axes(analysis)
    gather_single_slots(analysis.record)
    return analysis


def _follow(program: Program, analysis: Analysis, node: ir.Node) -> None:
    record, space = analysis.record, analysis.space
    space.cause = node
    site = AtenSite(program, node, space, record)
    found = rule_for(node.op_type)
    try:
        if found is None:
            raise CannotFollowError(reason_for_pin(node.op_type))
        found.follow(site)
    except CannotFollowError as stop:
        walk.pin_all(analysis, site, f"{site.title}: {stop}")
        record.unfollowed[node] = str(stop)
    walk.pin_unclaimed(analysis, site)
    pass_on(site, found.traits if found is not None else Trait.NONE)
    if node.inputs and all(v is None or v in record.constant for v in node.inputs):
        record.constant.update(node.outputs)


def _tie_parameters(analysis: Analysis) -> None:
    """One tensor that is read several times loses the same slots everywhere: in torch sharing is meant."""
    first: dict[ir.Value, list[Axis]] = {}
    for value, axes in analysis.weights():
        if value not in first:
            first[value] = axes
            continue
        analysis.space.cause = value
        for a, b in zip(first[value], axes, strict=True):
            if a.size != 1:
                analysis.space.unify(a, b)


def _tie_pieces(analysis: Analysis) -> None:
    """The pieces that a call cuts an axis into, where all have one size, lose the same slots."""
    axes = analysis.record.axes
    for node in analysis.model.graph:
        if node.op_type in _CUTS and all(output in axes for output in node.outputs):
            analysis.space.cause = node
            for pieces in zip(*(axes[output] for output in node.outputs), strict=True):
                if len({axis.size for axis in pieces}) == 1 and pieces[0].size != 1:
                    for piece in pieces[1:]:
                        analysis.space.unify(pieces[0], piece)


def _pin_unread(analysis: Analysis) -> None:
    """A tensor that an unfollowed call reads has no axes of its own there: all its uses stay whole."""
    touched = {
        v for n in analysis.record.unfollowed for v in n.inputs if v is not None and v.is_initializer()
    }
    for value, axes in analysis.weights():
        if value in touched:
            for axis in axes:
                if isinstance(axis, Atom) or axis.size != 1:
                    analysis.space.pin(axis, f"'{value.name}' is read by a call that is not followed")
