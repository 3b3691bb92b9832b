"""ATen operators that pick slots: slices, splits, embeddings and indexing."""

from __future__ import annotations

from sparsecc.axes.algebra import Atom, Axis
from sparsecc.rules import Trait
from sparsecc.rules.normalize import follow_choice, follow_search
from sparsecc.rules.select import Cut, beside, by_number, follow_numbers, follow_written, picked
from sparsecc.rules.shape import follow_pieces
from sparsecc.rules.site import CannotFollowError, broadcast
from sparsecc.torch.program.exported import size_of
from sparsecc.torch.rules.edit import AtenEdit
from sparsecc.torch.rules.shape import SPLIT_SIZES
from sparsecc.torch.rules.site import AtenSite
from sparsecc.torch.rules.table import aten, pinned


def mend_slice(edit: AtenEdit) -> None:
    """Start and end follow the slots left before and inside the cut."""
    cut: Cut | None = edit.memo
    if cut is None or not (edit.changed(cut.before) or edit.changed(cut.picked)):
        return
    before, inside = edit.left(cut.before), edit.left(cut.picked) * cut.step
    name = "length" if "length" in edit.given else "end"
    edit.set("start", before + cut.offset)
    edit.set(name, inside if name == "length" else before + inside)


@aten("slice narrow", fix=mend_slice, traits=Trait.MOVES)
def slice_(site: AtenSite) -> None:
    """Consecutive or strided slots. Cuts of dynamic extent pin their axis."""
    data = list(site.axes(0))
    axis = site.dim()
    size, left = data[axis].size, site.out_shape()[axis]
    cut = _cut(site, data[axis])
    if cut is not None and cut.picked.size == left:
        site.remember(cut)
        data[axis] = cut.picked
    elif size != left:
        site.pin(data[axis], "the cut axis")
        data[axis] = site.fixed(left, "the cut axis")
    site.set(data)


def _cut(site: AtenSite, axis: Axis) -> Cut | None:
    start, end = site.arg("start"), site.arg("end")
    if "length" in site.given:
        end = size_of(start) + size_of(site.arg("length"))  # type: ignore[operator]
    first, last = size_of(start or 0), size_of(1 << 62 if end is None else end)
    if not (isinstance(axis.size, int) and isinstance(first, int) and isinstance(last, int)):
        return None
    step = site.integer("step", 1)
    begin, stop, stride = slice(first, last, step).indices(axis.size)
    if first >= 0 and stop <= begin:  # nothing is cut out, however many slots are left
        return Cut(Atom(0), Atom(0), 1, 0)
    return picked(site, axis, begin, stop, stride) if stride > 0 else None


def mend_split(edit: AtenEdit) -> None:
    """Pieces that differ now are cut by their sizes."""
    axis = edit.memo
    pieces = [axes[axis] for axes in (edit.out_axes(i) for i in range(len(edit.node.outputs)))]
    if any(edit.changed(p) for p in pieces):
        edit.replace(SPLIT_SIZES, "split_sizes", [edit.left(p) for p in pieces])


@aten(
    "split split_with_sizes chunk unsafe_split unsafe_chunk tensor_split", fix=mend_split, traits=Trait.MOVES
)
def split(site: AtenSite) -> None:
    """Consecutive pieces of one axis."""
    follow_pieces(site, site.dim())


@aten("unbind", traits=Trait.MOVES)
def unbind(site: AtenSite) -> None:
    """One axis is taken apart: its slots stay."""
    data, axis = site.axes(0), site.dim()
    site.pin(data[axis], "an axis taken apart")
    site.set_all([*data[:axis], *data[axis + 1 :]])


def mend_select(edit: AtenEdit) -> None:
    """The position is counted among the slots that are left before it."""
    before: Axis | None = edit.memo
    if before is not None and edit.changed(before):
        edit.set("index", edit.left(before))


@aten("select", fix=mend_select, traits=Trait.MOVES)
def select(site: AtenSite) -> None:
    """One slot of an axis, which stays; those before and behind it may go."""
    data, axis = site.axes(0), site.dim()
    position, size = size_of(site.arg("index")), data[axis].size
    if isinstance(position, int) and isinstance(size, int):
        place = position % size
        pieces = site.space.pieces(data[axis], [n for n in (place, 1, size - place - 1) if n])
        if pieces is None:
            site.pin(data[axis], "the axis picked from")
        else:
            site.pin(pieces[1 if place else 0], "the slot picked")
            if place:
                site.remember(pieces[0])
    else:
        site.pin(data[axis], "the axis picked from")
    site.set([*data[:axis], *data[axis + 1 :]])


@aten("embedding")
def embedding(site: AtenSite) -> None:
    """Rows are looked up and stay; the width passes."""
    table, indices = site.of("weight"), site.of("indices")
    site.pin(table[0], "the rows looked up")
    site.set([*indices, table[1]])


@aten("embedding_bag")
def embedding_bag(site: AtenSite) -> None:
    """Rows are looked up and pooled; the width passes."""
    table = site.of("weight")
    site.pin(table[0], "the rows looked up")
    for name in ("indices", "offsets"):
        if site.holds(name):
            site.pin(site.of(name), "the indices")
    site.set([*(site.fixed(s, "the bags") for s in site.out_shape()[:-1]), table[1]])
    for output in range(1, site.outputs()):
        shape = site.shapes.of(site.node.outputs[output])
        site.set([site.fixed(s, "the bags") for s in shape or ()], output)


@aten("index_select", traits=Trait.MOVES)
def index_select(site: AtenSite) -> None:
    """The axis picked from stays unless its slots were numbered; the others pass."""
    data, axis = list(site.of("self")), site.dim()
    if not by_number(site, data[axis]):
        site.pin(data[axis], "the axis picked from")
    data[axis] = site.of("index")[0]
    site.set(data)


@aten("index", traits=Trait.MOVES)
def index(site: AtenSite) -> None:
    """Indexed axes stay, but for one whose slots were numbered; those not indexed pass.

    The indices' own axes come where the first of them stood.
    """
    data, given = site.of("self"), list(site.arg("indices"))
    given += [None] * (len(data) - len(given))
    indexed = [i for i, entry in enumerate(given) if entry is not None]
    if len(indexed) > 1 or not by_number(site, data[indexed[0]]):
        site.pin([data[i] for i in indexed], "the axis indexed at run time")
    found = broadcast(site, site.all_of("indices"))
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    rest = [a for i, a in enumerate(data) if i not in indexed]
    place = indexed[0] if together else 0
    shape = site.out_shape()
    if len(found) + len(rest) != len(shape) or [a.size for a in found] != list(
        shape[place : place + len(found)]
    ):
        raise CannotFollowError("it is indexed by a mask")
    site.set([*rest[:place], *found, *rest[place:]])


@aten("index_put index_add index_copy index_fill")
def index_put(site: AtenSite) -> None:
    """Written axes stay; an axis that passes whole is that of the values."""
    data = site.axes(0)
    if "dim" in site.given:
        axis = site.dim()
        site.pin(data[axis], "the axis written at run time")
        for operand in range(1, len(site.node.inputs)):
            other = site.axes(operand)
            if len(other) == len(data):
                beside(site, axis, data, other)
            else:
                site.pin(other, "the indices")
    else:
        _written(site, data)
    site.set(data)


def _written(site: AtenSite, data: list[Axis]) -> None:
    given = list(site.arg("indices"))
    depth = max(i for i, entry in enumerate(given) if entry is not None) + 1
    site.pin(data[:depth], "an axis written at run time")
    for axes in site.all_of("indices"):
        site.pin(axes, "the indices")
    values, rest = site.of("values"), data[depth:]
    lead = max(len(values) - len(rest), 0)
    site.pin(values[:lead], "the values")
    for a, b in zip(rest[len(rest) - len(values) + lead :], values[lead:], strict=True):
        site.same(a, b)


@aten("gather", traits=Trait.MOVES)
def gather(site: AtenSite) -> None:
    """The indexed axis stays unless its slots were numbered; the others pass where they are not shortened."""
    follow_numbers(site, site.dim())


@aten("scatter scatter_add scatter_reduce")
def scatter(site: AtenSite) -> None:
    """The written axis stays unless its slots were numbered; the others pass where they are not shortened."""
    index, *others = (site.axes(operand) for operand in range(1, len(site.node.inputs)))
    follow_written(site, site.dim(), index, *(other for other in others if other))


@aten("topk")
def top_k(site: AtenSite) -> None:
    """Experts are chosen by it: then the numbers it gives pick their weights. Any other searched axis stays."""
    follow_choice(site, site.axes(0), site.dim(default=-1), bool(site.arg("largest", True)))


@aten("sort kthvalue mode median")
def ranked(site: AtenSite) -> None:
    """The searched axis stays: its slots are numbered."""
    data, axis = list(site.axes(0)), site.dim(default=-1)
    site.pin(data[axis], "the searched axis")
    for output in range(site.outputs()):
        shape = site.out_shape(output)
        if len(shape) == len(data):
            site.set([*data[:axis], site.fixed(shape[axis], "the results"), *data[axis + 1 :]], output)
        else:
            site.set([*data[:axis], *data[axis + 1 :]], output)


@aten("argmax argmin argsort")
def extreme(site: AtenSite) -> None:
    """The searched axis stays: its slots are numbered."""
    data = site.axes(0)
    if site.node.op_type == "argsort":
        site.pin(data[site.dim(default=-1)], "the searched axis")
        site.set(data)
    elif site.arg("dim") is None:
        site.pin(data, "the searched axis")
        site.set([Atom(1) for _ in site.out_shape()])
    else:
        follow_search(site, site.dim(), keep=bool(site.arg("keepdim")))


@aten("one_hot")
def one_hot(site: AtenSite) -> None:
    """The classes are numbered slots; the axes of the indices pass."""
    site.set([*site.axes(0), site.fixed(site.out_shape()[-1], "its classes")])


pinned("nonzero unique masked_select _unique2 bincount", "its result has as many slots as the data says")
pinned("stft istft fft_fft fft_rfft fft_irfft fft_fft2 fft_rfft2 fft_irfft2", "frequencies are ordered slots")
pinned("unfold as_strided im2col col2im unfold_copy", "windows over numbered slots")
