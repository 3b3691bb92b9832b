"""LSTM, GRU and RNN: hidden units are one atom, the gates an outer factor of it.

Both directions of a layer have their own weights, but share one tensor and one `hidden_size`: unit i of the
one and unit i of the other go together.
"""

from __future__ import annotations

from sparsecc.axes.algebra import Axis
from sparsecc.rules.edit import Edit
from sparsecc.rules.output_shapes import q_lstm
from sparsecc.rules.site import CannotFollowError, Site
from sparsecc.rules.table import pinned, rule
from sparsecc.rules.traits import ROUNDED, Trait
from sparsecc.shapes.contrib_ops import OutputShapes

MS = "com.microsoft"

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_STATES = {5: "initial_h", 6: "initial_c"}


def mend_hidden_size(edit: Edit) -> None:
    """`hidden_size` becomes the number of units left."""
    if edit.changed(edit.memo):
        edit.set_attribute("hidden_size", edit.left(edit.memo))


@rule("LSTM GRU RNN", fix=mend_hidden_size, traits=Trait.RECURRENT, weights=(1, 2, 3))
def recurrent(site: Site) -> None:
    """W (dirs, gates*hidden, in), R (dirs, gates*hidden, hidden): units are one group, directions stay."""
    gates = _GATES[site.node.op_type]
    data, weight, recurrence = site.axes(0), site.axes(1), site.axes(2)
    directions, hidden = weight[0], recurrence[2]
    site.pin(directions, "the directions")
    site.pin(recurrence[0], "the directions")
    site.space.unify(data[2], weight[2])
    for axis in (weight[1], recurrence[1]):
        gated(site, axis, gates, hidden)
    _bias_and_peepholes(site, 2 * gates, hidden)
    _outputs(site, data, directions, hidden)
    site.remember(hidden)
    site.reduces(1, 2)
    site.reduces(2, 2)
    site.multiplies(*data[:2], *weight)
    site.multiplies(*data[:2], *recurrence)


def gated(site: Site, axis: Axis, gates: int, hidden: Axis) -> None:
    """State that an axis is the gates of all hidden units; the gates stay."""
    found = site.space.factored(axis, (gates, hidden.size))
    if found is None:
        raise CannotFollowError(f"its weights are not {gates} gates of {hidden.size} units")
    site.pin(found[0], "the gates")
    site.same(found[1], hidden)


def _bias_and_peepholes(site: Site, biases: int, hidden: Axis) -> None:
    for operand, count in ((3, biases), (7, 3)):
        if site.has(operand):
            site.pin(site.axes(operand)[0], "the directions")
            gated(site, site.axes(operand)[1], count, hidden)


def _outputs(site: Site, data: list[Axis], directions: Axis, hidden: Axis) -> None:
    batch_first = bool(site.int_("layout"))
    sequence, batch = (data[1], data[0]) if batch_first else (data[0], data[1])
    site.pin(sequence, "the time axis")
    state = [batch, directions, hidden] if batch_first else [directions, batch, hidden]
    for operand in _STATES:
        if site.has(operand):
            for a, b in zip(state, site.axes(operand), strict=True):
                site.same(a, b)
    whole = [batch, sequence, directions, hidden] if batch_first else [sequence, directions, batch, hidden]
    for output, axes in enumerate([whole, state, state][: site.outputs()]):
        if site.node.outputs[output].name:
            site.set(axes, output)


@rule("DynamicQuantizeLSTM", domain=MS, traits=Trait.RECURRENT | ROUNDED, shapes=OutputShapes(q_lstm))
def quantized_lstm(site: Site) -> None:
    """W (dirs, in, 4*hidden): inputs are free; hidden units stay, as their state is quantized together."""
    data, weight = site.axes(0), site.axes(1)
    site.space.unify(data[2], weight[1])
    site.pin([weight[0], weight[2], data[0]], "the state is quantized over all hidden units, which stay")
    site.reduces(0, 2)
    for output in range(site.outputs()):
        if site.node.outputs[output].name:
            shape = site.out_shape(output)
            fixed = [site.fixed(size, "a hidden state") for size in shape]
            fixed[-2] = data[1]
            site.set(fixed, output)


pinned("AttnLSTM", "its attention is not followed", domain=MS)
