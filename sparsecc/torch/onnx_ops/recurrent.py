"""ONNX LSTM, GRU and RNN in torch, step by step, as the specification writes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsecc.errors import InputError
from sparsecc.torch.onnx_ops.call import Call, onnx_op

State = tuple[Tensor, Tensor]


@onnx_op("LSTM GRU RNN")
def recurrent(
    call: Call, x: Tensor, weight: Tensor, recurrence: Tensor, bias: Tensor | None = None,
    lengths: Tensor | None = None, start: Tensor | None = None, cell: Tensor | None = None,
    peephole: Tensor | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Outputs (time, direction, batch, hidden), the last state, and for LSTM the last cell."""
    if peephole is not None or call.get("activations") not in (
        None,
        _DEFAULT[call.op],
        _DEFAULT[call.op] * 2,
    ):
        raise InputError(f"{call.op} '{call.name}': peepholes and other activations do not run in torch")
    data = x.transpose(0, 1) if call.get("layout", 0) else x
    hidden = recurrence.shape[2]
    zeros = data.new_zeros(data.shape[1], hidden)
    outs, states, cells = [], [], []
    for d in range(weight.shape[0]):
        backwards = call.get("direction", "forward") == "reverse" or d == 1
        state = zeros if start is None else start[d]
        memory = zeros if cell is None else cell[d]
        b = data.new_zeros(2 * weight.shape[1]) if bias is None else bias[d]
        out, state, memory = _direction(call, data, (weight[d], recurrence[d], b), (state, memory), backwards)
        outs.append(out)
        states.append(state)
        cells.append(memory)
    whole = torch.stack(outs, 1)
    found = [whole, torch.stack(states), torch.stack(cells)]
    if call.get("layout", 0):
        found = [whole.permute(2, 0, 1, 3), found[1].transpose(0, 1), found[2].transpose(0, 1)]
    return tuple(found[: max(call.outputs, 1)])


_DEFAULT: dict[str, list[str]] = {
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
    "GRU": ["Sigmoid", "Tanh"],
    "RNN": ["Tanh"],
}


def _direction(
    call: Call, data: Tensor, weights: tuple[Tensor, Tensor, Tensor], state: State, backwards: bool
) -> tuple[Tensor, Tensor, Tensor]:
    weight, recurrence, bias = weights
    half = bias.shape[0] // 2
    inputs = data @ weight.T + bias[:half]
    step: Any = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[call.op]
    order = range(len(data))[::-1] if backwards else range(len(data))
    found: dict[int, Tensor] = {}
    for t in order:
        state = step(call, inputs[t], recurrence, bias[half:], state)
        found[t] = state[0]
    return torch.stack([found[t] for t in range(len(data))]), state[0], state[1]


def _lstm(call: Call, given: Tensor, recurrence: Tensor, bias: Tensor, state: State) -> State:
    hidden, cell = state
    gate_in, gate_out, forget, new = (given + hidden @ recurrence.T + bias).chunk(4, -1)
    cell = forget.sigmoid() * cell + gate_in.sigmoid() * new.tanh()
    return gate_out.sigmoid() * cell.tanh(), cell


def _gru(call: Call, given: Tensor, recurrence: Tensor, bias: Tensor, state: State) -> State:
    hidden = state[0]
    r_z, r_r, r_h = recurrence.chunk(3)
    b_z, b_r, b_h = bias.chunk(3)
    in_z, in_r, in_h = given.chunk(3, -1)
    update = (in_z + hidden @ r_z.T + b_z).sigmoid()
    reset = (in_r + hidden @ r_r.T + b_r).sigmoid()
    if call.get("linear_before_reset", 0):
        new = (in_h + reset * (hidden @ r_h.T + b_h)).tanh()
    else:
        new = (in_h + (reset * hidden) @ r_h.T + b_h).tanh()
    return (1 - update) * new + update * hidden, state[1]


def _rnn(call: Call, given: Tensor, recurrence: Tensor, bias: Tensor, state: State) -> State:
    return (given + state[0] @ recurrence.T + bias).tanh(), state[1]
