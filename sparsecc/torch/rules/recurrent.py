"""LSTM, GRU and RNN layers as one ATen call: units are one group over all layers and directions, and where an LSTM
projects its cells, cells one and projections another."""

from __future__ import annotations

from sparsecc.axes.algebra import Atom, Axis, mul
from sparsecc.rules.recurrent import gated
from sparsecc.rules.site import CannotFollowError
from sparsecc.torch.rules.site import AtenSite
from sparsecc.torch.rules.table import aten, pinned

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@aten("lstm gru rnn_tanh rnn_relu")
def recurrent(site: AtenSite) -> None:
    """Per layer and direction w_ih (gates*cells, in), w_hh (gates*cells, hidden), two biases, and where the hidden
    state is a projection of the cells (`proj_size`) w_hr (hidden, cells)."""
    gates = _GATES[site.node.op_type]
    if "batch_sizes" in site.given:
        raise CannotFollowError("packed sequences are not followed")
    layers, both = site.integer("num_layers", 1), bool(site.arg("bidirectional"))
    weights, directions = site.numbers["params"], 2 if both else 1
    per = len(weights) // (layers * directions)
    hidden = site.axes(weights[1])[1]
    cells = site.axes(weights[per - 1])[1] if per % 2 else hidden
    data = site.of("input")
    width, position = data[-1], 0
    for _ in range(layers):
        for _ in range(directions):
            own = weights[position : position + per]
            _layer(site, own[: per - per % 2], gates, cells, hidden, width)
            if per % 2:
                _projection(site, own[-1], hidden, cells)
            position += per
        width = hidden if directions == 1 else mul((_fixed(site, directions), hidden))
    site.reduces(site.number("input"), -1)
    site.pin(data[1 if site.arg("batch_first") else 0], "the time axis")
    _outputs(site, data, (hidden, cells), width, layers * directions)


def _projection(site: AtenSite, weight: int, hidden: Axis, cells: Axis) -> None:
    axes = site.axes(weight)
    for axis, wanted in zip(axes, (hidden, cells), strict=True):
        site.space.unify(axis, wanted)
    site.reduces(weight, 1)


def _layer(site: AtenSite, weights: list[int], gates: int, cells: Axis, hidden: Axis, width: Axis) -> None:
    for place, number in enumerate(weights):
        axes = site.axes(number)
        if place < 2:
            site.space.unify(axes[1], width if place == 0 else hidden)
            site.reduces(number, 1)
        gated(site, axes[0], gates, cells)


def _outputs(site: AtenSite, data: list[Axis], states: tuple[Axis, Axis], width: Axis, stacked: int) -> None:
    """The sequence, then the last hidden state and cells, which come in as `hx`."""
    batch, number_of = data[0 if site.arg("batch_first") else 1], _fixed(site, stacked)
    for number, state in zip(site.numbers["hx"], states, strict=False):
        for a, b in zip((number_of, batch, state), site.axes(number), strict=True):
            site.same(a, b)
    site.set([*data[:-1], width])
    for output, state in zip(range(1, site.outputs()), states, strict=False):
        site.set([number_of, batch, state], output)
    for number in site.numbers["params"]:
        axes = site.axes(number)
        if len(axes) == 2:
            site.multiplies(*data[:-1], *axes)


def _fixed(site: AtenSite, size: int) -> Axis:
    axis = Atom(size)
    site.pin(axis, "the directions and layers")
    return axis


pinned("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", "its gates are not followed")
