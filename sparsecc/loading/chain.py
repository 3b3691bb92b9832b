"""Packages of several files as one graph: what one file gives and another takes is a value inside it.

Every name of a file stands behind the file's own (`encoder_model/…`); inputs and outputs that only one file has keep
theirs. Weights that files share are one, so what goes goes from all of them. `Chain.part` cuts a file out again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from sparsecc.graph.caches import CROSS
from sparsecc.graph.decoder_sizes import DecoderSizes
from sparsecc.ir.graph_editor import BORDER
from sparsecc.ir.subgraphs import fresh
from sparsecc.ir.versions import opset_of, raise_opset
from sparsecc.loading.handed import handed, in_order, is_cross
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loading.package import Package
from sparsecc.shapes.dynamic_dims import is_fixed
from sparsecc.system.memory import weight_bytes

SHARED = 1024
"""Elements of a weight that is one for all files which have it; smaller ones each has for itself."""
MARKS = 10
"""The version of the format in which nodes can be marked."""
Feeds = Mapping[str, np.ndarray]


@dataclass
class Part:
    """One file of a chain: by their own names in their order, what its inputs and outputs are called in the joined
    graph, and how the file declares them."""

    file: str
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    declared: dict[str, ir.Value] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """What its names stand behind."""
        return Path(self.file).stem

    def run(self, run: Callable[[Feeds], Feeds], values: Feeds) -> Feeds:
        """What the file gives, by the names of the joined graph, for what it takes of `values`, named so too."""
        found = run({own: values[name] for own, name in self.inputs.items()})
        return {name: found[own] for own, name in self.outputs.items()}


@dataclass
class Chain:
    """The files of a package, each behind those that it takes from, and one `model` of them all."""

    parts: list[Part]
    model: ir.Model
    handed: list[str] = field(default_factory=list)
    """The values of the model that one file gives and others take."""
    crosses: list[str] = field(default_factory=list)
    """Those that a runtime makes of one size for all layers."""
    bytes: int = 0
    """Of the files as they came, what they share counted in each."""
    dense: dict[str, DecoderSizes] = field(default_factory=dict)
    """The sizes of each file as it came."""
    left: dict[str, DecoderSizes] = field(default_factory=dict)
    """Those of each that was written."""
    cross: tuple[int, int] | None = None
    """Heads and width of `crosses` as written."""

    @staticmethod
    def of(package: Package) -> Chain:
        """Load, normalise and join the files. InputError where they hand each other nothing, or in a circle."""
        models = {path.name: normalise(load_ir(path)) for path in package.models}
        taken = handed(package, models)
        order = in_order(package, models, taken)
        dense = {name: DecoderSizes.of(model) for name, model in models.items()}
        size = sum(max(f.stat().st_size, weight_bytes(models[f.name])) for f in package.models)
        version = max(map(opset_of, models.values()))
        for model in models.values():
            raise_opset(model, version)
        _relate_dimensions(models, taken)
        crosses = {name for name in taken.values() if is_cross(package, name[1])}
        chain = _Joiner({name: models[name] for name in order}, taken, crosses).chain
        chain.dense, chain.bytes = dense, size
        return chain

    def part(self, model: ir.Model, part: Part, values: Feeds) -> ir.Model:
        """The model of one file, cut out of the joined graph as it is after all edits. `values` are those that
        were handed on: what is taken and given has their sizes, and the types that the file declared."""
        whole = model.clone()
        graph = whole.graph
        known = {v.name: v for v in (*graph.inputs, *(v for node in graph for v in node.outputs))}
        entries = [self._entry(known[name], part, own, values) for own, name in part.inputs.items()]
        ends = [self._end(graph, known[name], part, own, values) for own, name in part.outputs.items()]
        graph.inputs.clear()
        graph.inputs.extend(entries)
        graph.outputs.clear()
        graph.outputs.extend(ends)
        RemoveUnusedNodesPass()(whole)
        for value in [v for v in graph.inputs if v not in entries]:
            graph.inputs.remove(value)
        _named_alone(whole, part)
        return whole

    def _entry(self, value: ir.Value, part: Part, own: str, values: Feeds) -> ir.Value:
        """The input of a file: one of the joined graph's, or what another file hands on."""
        if value.name not in self.handed:
            value.name = own
            return value
        given = values[value.name or ""]
        entry = _declared_as(part.declared[own], own, given)
        inner = entry
        if (kind := ir.DataType.from_numpy(given.dtype)) != entry.dtype:
            cast = ir.node("Cast", [entry], {"to": kind.value}, name=f"{own}.cast")
            first = value.graph
            assert isinstance(first, ir.Graph)
            first.insert_before(first[0], cast)
            inner = cast.outputs[0]
            inner.name = f"{own}.cast_out"
        value.replace_all_uses_with(inner)
        return entry

    def _end(self, graph: ir.Graph, value: ir.Value, part: Part, own: str, values: Feeds) -> ir.Value:
        """The output of a file: one of the joined graph's, or what it hands on, without the mark."""
        if value.name not in self.handed:
            value.name = own
            return value
        given, declared, node = values[value.name or ""], part.declared[own], value.producer()
        assert node is not None
        inner = node.inputs[0]
        assert inner is not None
        kind = ir.DataType.from_numpy(given.dtype)
        is_alone = inner.producer() is not None and inner.name not in part.outputs.values()
        if kind == declared.dtype and is_alone:
            inner.name, inner.type = own, declared.type
            inner.shape = _declared_as(declared, own, given).shape
            return inner
        if kind != declared.dtype:
            assert declared.dtype is not None
            cast = ir.node("Cast", [inner], {"to": declared.dtype.value}, name=f"{own}.cast")
            graph.append(cast)
            value = cast.outputs[0]
        value.name, value.type = own, declared.type
        value.shape = _declared_as(declared, own, given).shape
        return value


def _declared_as(declared: ir.Value, name: str, given: np.ndarray) -> ir.Value:
    """An input or output as its file declares it, with the sizes that are left."""
    dims = declared.shape if declared.shape is not None else [ir.SymbolicDim(None)] * given.ndim
    sizes = [size if is_fixed(dim) else dim for dim, size in zip(dims, given.shape, strict=True)]
    return ir.Value(name=name, type=declared.type, shape=ir.Shape(sizes))


def _named_alone(model: ir.Model, part: Part) -> None:
    """Names as in the file: without what the joined graph put before them, where nothing else is called so."""
    graph, mark = model.graph, re.compile(r"^[^/]*/")
    values = [v for one in model.graphs() for v in _values(one)]
    stay = {v.name or "" for v in (*graph.inputs, *graph.outputs)}
    taken = set(stay)
    for value in values:
        if value.name is None or value.name in stay:
            continue
        value.name = fresh(mark.sub("", value.name, count=1), taken)
    for node in graph.all_nodes():
        node.name = mark.sub("", node.name or "", count=1)
    graph.name = part.stem


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = [v for node in graph for v in node.outputs]
    return list(dict.fromkeys((*graph.inputs, *graph.initializers.values(), *made)))


def _relate_dimensions(
    models: Mapping[str, ir.Model], taken: Mapping[tuple[str, str], tuple[str, str]]
) -> None:
    """Name the dynamic dimensions of all files anew, in place: one name where what is handed on says that they are the
    same, and another for each file where nothing says so."""
    first: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        while key in first:
            key = first[key]
        return key

    for (taker, name), (giver, output) in taken.items():
        ends = _value(models[taker].graph.inputs, name), _value(models[giver].graph.outputs, output)
        for there, here in zip(*(value.shape or () for value in ends), strict=False):
            keys = [(f, d.value) for f, d in ((taker, there), (giver, here)) if isinstance(d, ir.SymbolicDim)]
            if len(keys) == 2 and all(_is_word(key[1]) for key in keys):
                a, b = (root((f, str(d))) for f, d in keys)
                if a != b:
                    first[a] = b
    named: dict[str, tuple[str, str]] = {}
    for file, model in models.items():
        for value in (*model.graph.inputs, *model.graph.outputs):
            dims: list[int | str | None] = []
            for dim in value.shape or ():
                text = dim.value if isinstance(dim, ir.SymbolicDim) else None
                dims.append(dim if isinstance(dim, int) else _called(file, text, root, named))
            if value.shape is not None:
                value.shape = ir.Shape(dims)


def _is_word(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch(r"\w+", text) is not None


def _called(
    file: str,
    text: str | None,
    root: Callable[[tuple[str, str]], tuple[str, str]],
    named: dict[str, tuple[str, str]],
) -> str | None:
    """The name of a dimension in the joined graph; sums are those of their terms' names."""
    if text is None:
        return None
    terms = []
    for term in re.split(r"(\w+)", text):
        if not _is_word(term) or term.isdigit():
            terms.append(term)
            continue
        key, name, number = root((file, term)), root((file, term))[1], 1
        while named.setdefault(name, key) != key:
            number += 1
            name = f"{key[1]}_{number}"
        terms.append(name)
    return "".join(terms)


def _value(values: Iterable[ir.Value], name: str) -> ir.Value:
    return next(value for value in values if value.name == name)


class _Joiner:
    """Moves the graphs of files into one, in which what is handed on is marked. The files' models are empty then."""

    def __init__(
        self,
        models: Mapping[str, ir.Model],
        taken: Mapping[tuple[str, str], tuple[str, str]],
        crosses: Container[tuple[str, str]] = (),
    ) -> None:
        self.crosses = crosses
        opsets: dict[str, int] = {}
        for model in models.values():
            for domain, version in model.opset_imports.items():
                opsets[domain] = max(version, opsets.get(domain, 0))
        self.graph = ir.Graph([], [], nodes=[], opset_imports=opsets, name="chain")
        versions = [model.ir_version or 0 for model in models.values()]
        self.chain = Chain([], ir.Model(self.graph, ir_version=max(MARKS, *versions)))
        self.taken = taken
        self.borders: dict[tuple[str, str], ir.Value] = {}
        outside = [
            value.name or ""
            for file, model in models.items()
            for value in (*model.graph.inputs, *model.graph.outputs)
            if (file, value.name) not in {*taken, *taken.values()}
        ]
        self.alone = {name for name in outside if outside.count(name) == 1}
        for file, model in models.items():
            self.chain.parts.append(self._moved(Part(file), model))
        _share_weights(self.graph)

    def _moved(self, part: Part, model: ir.Model) -> Part:
        """Move one file's graph."""
        inner = model.graph
        entries = {v.name or "": v for v in inner.inputs if not v.is_initializer()}
        ends = {v.name or "": v for v in inner.outputs}
        for name, value in (entries | ends).items():
            part.declared[name] = ir.Value(name=name, type=value.type, shape=value.shape)
        for one in model.graphs():
            for value in _values(one):
                value.name = f"{part.stem}/{value.name}" if value.name else value.name
        for node in inner.all_nodes():
            node.name = f"{part.stem}/{node.name}"
        nodes, constants = list(inner), list(inner.initializers.values())
        inner.inputs.clear()
        inner.outputs.clear()
        inner.initializers.clear()
        inner.remove(nodes)
        for name, value in entries.items():
            part.inputs[name] = self._take(part, name, value)
        for value in constants:
            self.graph.initializers[value.name or ""] = value
        self.graph.extend(nodes)
        for name, value in ends.items():
            part.outputs[name] = self._give(part, name, value)
        return part

    def _take(self, part: Part, name: str, value: ir.Value) -> str:
        if (giver := self.taken.get((part.file, name))) is not None:
            border = self.borders[giver]
            value.replace_all_uses_with(border)
            return border.name or ""
        value.name = name if name in self.alone else value.name
        self.graph.inputs.append(value)
        return value.name or ""

    def _give(self, part: Part, name: str, value: ir.Value) -> str:
        is_handed = (part.file, name) in self.taken.values()
        if is_handed or value.producer() is None:
            marked = ir.node("Identity", [self._source(part, name, value)], name=f"{part.stem}/{name}.given")
            self.graph.append(marked)
            new = marked.outputs[0]
            new.name, new.type, new.shape = f"{part.stem}/{name}.given", value.type, value.shape
            value = new
            if is_handed:
                is_cross = (part.file, name) in self.crosses
                marked.metadata_props[BORDER] = CROSS if is_cross else part.file
                self.chain.crosses += [value.name or ""] if is_cross else []
                self.borders[part.file, name] = value
                self.chain.handed.append(value.name or "")
                return value.name or ""
        value.name = name if name in self.alone else value.name
        self.graph.outputs.append(value)
        return value.name or ""

    def _source(self, part: Part, name: str, value: ir.Value) -> ir.Value:
        """What an output is made of: an input that is given as it came may be another file's."""
        giver = self.taken.get((part.file, name))
        return self.borders[giver] if giver is not None and value.producer() is None else value


def _share_weights(graph: ir.Graph) -> None:
    """Weights that are equal in several files become one."""
    alike: dict[object, list[ir.Value]] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.size >= SHARED and tensor.dtype != ir.DataType.STRING:
            alike.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append(value)
    for values in alike.values():
        owners = {_owner(value) for value in values}
        first: dict[bytes, ir.Value] = {}
        for value in values if len(owners) > 1 else ():
            assert value.const_value is not None
            key = hashlib.sha256(value.const_value.tobytes()).digest()
            kept = first.setdefault(key, value)
            if kept is not value and _owner(kept) != _owner(value):
                value.replace_all_uses_with(kept)
                del graph.initializers[value.name or ""]


def _owner(value: ir.Value) -> str:
    return (value.name or "").partition("/")[0]
