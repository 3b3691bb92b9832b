"""Dead channels go first: those that are the same on every input, and those that nobody reads.

What a reader makes of a constant is added to its bias, exactly: the model stays what it was, and the channel is read
no more. A padding convolution sees a constant other than zero only inside its borders, which no bias gives: there one
constant channel stays and carries all others, by the weights that read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from sparsecc.axes.algebra import Atom, Axis, atoms_of
from sparsecc.axes.owners import owners_of
from sparsecc.axes.sizes import is_static
from sparsecc.compilation import Compilation
from sparsecc.decide.channels import Dead
from sparsecc.decide.layers import Depth, require_same
from sparsecc.decide.limits import limits_of
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.constant_channels import Known, constant_channels, is_padded
from sparsecc.graph.groups import Group, find_groups
from sparsecc.graph.linear_layers import FLOATS, LinearLayer, layer_of
from sparsecc.ir.constants import add_constant
from sparsecc.reconstruct.bias_sites import outlet_of
from sparsecc.rules.site import Reduction


def bury(compilation: Compilation, analysis: Analysis, depth: Depth) -> tuple[Analysis, Depth]:
    """Free dead channels of their readers; analyse the model anew where that changed it. Depth with what was found.

    InternalError where the model is another one then.
    """
    options = compilation.options
    if not options.removes or compilation.dense.by_parts:
        return analysis, depth
    known = constant_channels(analysis)
    dead = _that_may_go(compilation, analysis, depth, known)
    changed = _absorb(analysis, dead, known)
    if changed:
        same = compilation.opened(analysis.model)
        require_same(compilation, same, "the model with constant channels in its biases")
        analysis = compilation.analysed(analysis.model)
        dead = _that_may_go(compilation, analysis, depth, constant_channels(analysis))
    if number := sum(int(slots.sum()) for slots in dead.slots.values()):
        compilation.note("dead", {"slots": number, "absorbed": changed})
    return analysis, replace(depth, dead=dead, absorbed=tuple(changed))


def _that_may_go(
    compilation: Compilation, analysis: Analysis, depth: Depth, known: Mapping[ir.Value, Known]
) -> Dead:
    """The dead slots of free groups, as far as the user's bounds of them let them go."""
    groups = find_groups(analysis, keep=depth.keep, only=depth.only, prune=compilation.options.prune)
    limits = limits_of(compilation, analysis, groups, depth.patterns)
    dead = dead_slots(analysis, [g for g in groups if g.is_free and g.kind != "expert"], known)
    lost = {atom for atom, slot in dead.carriers.items() if limits.removes(atom, slot)}
    may = {atom: limits.may_die(atom, slots) for atom, slots in dead.slots.items() if atom not in lost}
    slots = {atom: some for atom, some in may.items() if some.any()}
    return Dead(slots, {atom: slot for atom, slot in dead.carriers.items() if atom in slots})


def dead_slots(analysis: Analysis, groups: Sequence[Group], known: Mapping[ir.Value, Known]) -> Dead:
    """The slots of each group that no operator gets anything of, or nothing but a constant that others can hold."""
    shown = {
        a
        for v in analysis.model.graph.outputs
        for axis in analysis.record.axes.get(v, [])
        for a in atoms_of(axis)
    }
    read: dict[Atom, list[Reduction]] = {}
    for reduction in analysis.record.reductions:
        for axis in analysis.record.reduced(reduction):
            for atom in atoms_of(axis):
                read.setdefault(atom, []).append(reduction)
    found = Dead()
    for group in groups:
        reductions = read.get(group.atom, [])
        if not reductions or group.atom in shown or group.least > 1:
            continue
        readers = [
            _Reader(analysis, group.atom, node, reductions, known)
            for node in {r.node: None for r in reductions}
        ]
        dead, carrier = _buried(readers)
        if dead.all():
            dead[0] = False  # a layer keeps one channel
        if dead.any():
            found.slots[group.atom] = dead
        if carrier is not None:
            found.carriers[group.atom] = carrier
    return found


def _buried(readers: Sequence[_Reader]) -> tuple[np.ndarray, int | None]:
    """The slots of which every reader gets nothing, or what its bias or the carrier gives it; the carrier."""
    dead = np.logical_and.reduce([reader.unread | reader.held for reader in readers])
    carried = (
        np.logical_and.reduce([reader.unread | reader.held | reader.inside for reader in readers]) & ~dead
    )
    strength = np.min(
        [np.where(r.inside, np.abs(r.values), np.inf if not r.inside.any() else 0) for r in readers], axis=0
    )
    strength = np.where(carried & np.isfinite(strength), strength, 0)
    if not strength.any():
        return dead, None
    carrier = int(strength.argmax())
    carried[carrier] = False
    return dead | carried, carrier


class _Reader:
    """What a node gets of the slots of an atom, each a boolean per slot: `unread`, nothing; `held`, a constant that
    its bias can hold; `inside`, a constant that ends where it pads. `values` are these constants, 0 elsewhere."""

    def __init__(
        self,
        analysis: Analysis,
        atom: Atom,
        node: ir.Node,
        reductions: Sequence[Reduction],
        known: Mapping[ir.Value, Known],
    ) -> None:
        assert isinstance(atom.size, int)
        self.unread, self.held, self.inside = (np.zeros(atom.size, dtype=bool) for _ in range(3))
        self.values = np.zeros(atom.size)
        layer = layer_of(node, FLOATS)
        if isinstance(layer, LinearLayer):
            self._by_layer(analysis, atom, layer, known)
        else:
            self._by_others(analysis, atom, [r for r in reductions if r.node is node], known)

    def _by_others(
        self, analysis: Analysis, atom: Atom, reductions: Sequence[Reduction], known: Mapping[ir.Value, Known]
    ) -> None:
        """Zeros add nothing to a sum."""
        unread = np.ones_like(self.unread)
        values = [(r, r.node.inputs[r.operand]) for r in reductions]
        for reduction, value in [v for v in values if v[1] not in analysis.record.constant] or values:
            found = known.get(value) if value is not None else None
            if (
                value is None
                or found is None
                or reduction.kind != "sum"
                or found[0] not in reduction.positions
            ):
                return
            unread &= _all_of(analysis.record.axes[value][found[0]], atom, found[1] == 0)
        self.unread = unread

    def _by_layer(
        self, analysis: Analysis, atom: Atom, layer: LinearLayer, known: Mapping[ir.Value, Known]
    ) -> None:
        axis = _input_axis(analysis, layer)
        if layer.group > 1:  # what reads a group of channels goes with it
            self.unread[:] = any(atom in atoms_of(a) for a in analysis.record.axes[layer.node.outputs[0]])
            return
        if axis is None:
            return
        values = _values(layer, axis, known)
        self.unread = _all_of(axis, atom, (_columns(layer) == 0) | (values == 0))
        constant = _all_of(axis, atom, (_columns(layer) == 0) | np.isfinite(values)) & ~self.unread
        places = np.flatnonzero(owners_of(axis, atom) >= 0)
        if not is_padded(layer):
            self.held = constant & can_hold(layer)
        elif len(places) == len(constant):  # each slot is one channel
            self.inside = constant
            self.values[owners_of(axis, atom)[places]] = np.nan_to_num(values[places])


def can_hold(layer: LinearLayer) -> bool:
    """Whether a constant can be added to what a layer gives."""
    outlet = outlet_of(layer)
    return not isinstance(outlet, str) and (outlet.has_bias or not layer.node.outputs[0].is_graph_output())


def _columns(layer: LinearLayer) -> np.ndarray:
    """The largest weight that an input channel has, of a layer without groups: (channels,)."""
    weights = np.abs(layer.matrices()[0]).max(axis=0, initial=0.0)
    return np.asarray(weights.reshape(-1, layer.cells).max(axis=1))


def _input_axis(analysis: Analysis, layer: LinearLayer) -> Axis | None:
    axes = analysis.record.axes.get(layer.data)
    axis = axes[1 if layer.is_conv else -1] if axes else None
    return axis if axis is not None and is_static(axis.size) else None


def _values(layer: LinearLayer, axis: Axis, known: Mapping[ir.Value, Known]) -> np.ndarray:
    """The constants among what a layer reads, per channel; NaN for the others."""
    found = known.get(layer.data)
    return found[1] if found is not None and len(found[1]) == axis.size else np.full(axis.size, np.nan)


def _all_of(axis: Axis, atom: Atom, flags: np.ndarray) -> np.ndarray:
    """For each slot of an atom, whether the flag is set at all slots of an axis that belong to it."""
    assert isinstance(atom.size, int)
    owners, result = owners_of(axis, atom), np.ones(atom.size, dtype=bool)
    result[owners[(owners >= 0) & ~flags]] = False
    return result


def _absorb(analysis: Analysis, dead: Dead, known: Mapping[ir.Value, Known]) -> list[str]:
    """Edit the model: what layers read of dead channels is in their biases, or read of the channel that carries them.

    The names of the tensors that changed.
    """
    changed: list[str] = []
    for node in list(analysis.model.graph):
        layer = layer_of(node, FLOATS)
        axis = _input_axis(analysis, layer) if isinstance(layer, LinearLayer) and layer.group == 1 else None
        if not isinstance(layer, LinearLayer) or axis is None:
            continue
        constants = np.where(_columns(layer) == 0, 0.0, np.nan_to_num(_values(layer, axis, known)))
        moved = np.zeros((len(constants), len(constants)))  # from a channel to its carrier
        values = np.zeros(len(constants))
        for atom in atoms_of(axis):
            if atom not in dead.slots:
                continue
            owners = owners_of(axis, atom)
            gone = np.flatnonzero((owners >= 0) & dead.slots[atom][np.maximum(owners, 0)] & (constants != 0))
            if is_padded(layer):
                carrier = np.flatnonzero(owners == dead.carriers[atom])[:1] if len(gone) else gone
                moved[gone, carrier] = constants[gone] / _values(layer, axis, known)[carrier]
            else:
                values[gone] = constants[gone]
        if moved.any():
            _move_to_carriers(layer, moved)
            changed.append(layer.weight.name or "")
        elif values.any():
            changed += _moved_to_bias(layer, values)
    return changed


def _move_to_carriers(layer: LinearLayer, moved: np.ndarray) -> None:
    """Let a layer read carriers as it read others: `moved[i, k]` of channel i's weights goes to channel k."""
    weight = layer.matrices()
    cells = weight[0].reshape(weight.shape[1], -1, layer.cells)
    cells += np.einsum("oic,ik->okc", cells, moved)
    cells[:, moved.any(axis=1)] = 0
    _own(layer)
    layer.store(cells.reshape(weight.shape))


def _own(layer: LinearLayer) -> None:
    """Give a layer a weight of its own."""
    if len(layer.weight.uses()) > 1:
        assert isinstance(layer.node.graph, ir.Graph)
        own = add_constant(layer.node.graph, f"{layer.weight.name}.own", layer.array())
        own.const_value = layer.weight.const_value
        layer.node.replace_input_with(1, own)
        layer.refresh()


def _moved_to_bias(layer: LinearLayer, values: np.ndarray) -> list[str]:
    """Add what a layer makes of constants to its bias, and take their weights out."""
    weight = layer.matrices()
    spread = np.repeat(values, layer.cells)
    offset = weight[0] @ spread
    weight[:, :, spread != 0] = 0
    graph = layer.node.graph
    assert isinstance(graph, ir.Graph)
    _own(layer)
    layer.store(weight)
    outlet = outlet_of(layer)
    assert not isinstance(outlet, str), outlet
    if outlet.has_bias:
        present = outlet.bias(len(offset))
        assert present is not None
        return [layer.weight.name or "", outlet.store_bias(present + offset)]
    bias = add_constant(graph, f"{layer.name}.bias", offset.astype(layer.dtype.numpy()))
    product = layer.node.outputs[0]
    adder = ir.node("Add", [product, bias], name=f"{layer.name}.absorbed")
    adder.outputs[0].name = f"{product.name}.absorbed"
    readers = [use for use in product.uses() if use.node is not adder]
    graph.insert_after(layer.node, adder)
    for use in readers:
        use.node.replace_input_with(use.idx, adder.outputs[0])
    return [layer.weight.name or "", bias.name or ""]
