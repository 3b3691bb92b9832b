"""LSTM, GRU and RNN layers as one ATen call: hidden units are one group over all layers and directions."""

from __future__ import annotations

from sparsecc.axes.algebra import Atom, Axis, mul
from sparsecc.rules.recurrent import gated
from sparsecc.rules.site import CannotFollowError
from sparsecc.torch.rules.site import AtenSite
from sparsecc.torch.rules.table import aten, pinned

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@aten("lstm gru rnn_tanh rnn_relu")
def recurrent(site: AtenSite) -> None:
    """Per layer and direction w_ih (gates*hidden, in), w_hh (gates*hidden, hidden) and two biases."""
    gates = _GATES[site.node.op_type]
    if "batch_sizes" in site.given:
        raise CannotFollowError("packed sequences are not followed")
    layers, both = site.integer("num_layers", 1), bool(site.arg("bidirectional"))
    weights, directions = site.numbers["params"], 2 if both else 1
    per = len(weights) // (layers * directions)
    if per not in (2, 4):
        raise CannotFollowError("projections of the hidden state are not followed")
    hidden = site.axes(weights[1])[1]
    data = site.of("input")
    width, position = data[-1], 0
    for _ in range(layers):
        for _ in range(directions):
            _layer(site, weights[position : position + per], gates, hidden, width)
            position += per
        width = hidden if directions == 1 else mul((_fixed(site, directions), hidden))
    site.reduces(site.number("input"), -1)
    site.pin(data[1 if site.arg("batch_first") else 0], "the time axis")
    _outputs(site, data, hidden, width, layers * directions)


def _layer(site: AtenSite, weights: list[int], gates: int, hidden: Axis, width: Axis) -> None:
    for place, number in enumerate(weights):
        axes = site.axes(number)
        if place < 2:
            site.space.unify(axes[1], width if place == 0 else hidden)
            site.reduces(number, 1)
        gated(site, axes[0], gates, hidden)


def _outputs(site: AtenSite, data: list[Axis], hidden: Axis, width: Axis, stacked: int) -> None:
    batch = data[0 if site.arg("batch_first") else 1]
    state = [_fixed(site, stacked), batch, hidden]
    for number in site.numbers["hx"]:
        for a, b in zip(state, site.axes(number), strict=True):
            site.same(a, b)
    site.set([*data[:-1], width])
    for output in range(1, site.outputs()):
        site.set(state, output)
    for number in site.numbers["params"]:
        axes = site.axes(number)
        if len(axes) == 2:
            site.multiplies(*data[:-1], *axes)


def _fixed(site: AtenSite, size: int) -> Axis:
    axis = Atom(size)
    site.pin(axis, "the directions and layers")
    return axis


pinned("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", "its gates are not followed")
