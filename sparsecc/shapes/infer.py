"""Static shapes and shape arithmetic of a whole model, bodies included, with its dynamic dimensions kept apart.

One forward walk per probe (see `sparsecc.axes.sizes`): every symbolic dimension gets a concrete size, every node
is inferred by onnx's own per-node inference, and small values (shapes, bounds, axes) are evaluated on the way.
What differs between the probes is dynamic; a size nobody can know (the length of NonZero) is a large number
of its own at each probe. Weights are never read: only their types take part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference

from sparsecc.axes.sizes import Size, joined
from sparsecc.shapes.assignment import UNKNOWN, Misfit, Probe, dims_of, tensor_type
from sparsecc.shapes.candidates import Dims, assignments
from sparsecc.shapes.contrib_ops import ShapeTable
from sparsecc.shapes.custom_ops import RUN
from sparsecc.shapes.demands import unmet
from sparsecc.shapes.subgraphs import BODY_SHAPES, BodyError

SMALL = 1024
"""Values of at most this many elements are followed."""

DEEPEST = 5
"""Bodies within bodies beyond this depth are not looked into: each may be walked several times."""

_EVALUATED_NAMES = """Abs Add And Cast Ceil Concat ConstantOfShape CumSum Div Equal Expand Flatten Floor Gather
GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg NonZero Not OneHot Or
Pow Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Round ScatterElements ScatterND Size Slice Split
Sqrt Squeeze Sub Tile Transpose Unsqueeze Where"""
_EVALUATED = frozenset(_EVALUATED_NAMES.split())
_FAILURES = (
    *(shape_inference.InferenceError, onnx.defs.SchemaError, onnx.checker.ValidationError),
    *(ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError),
    *(ValueError, NotImplementedError),
)


@dataclass
class Shapes:
    """Shapes and small values of every value, those inside bodies included.

    `inputs` are the input sizes of each probe, once where all are static; `works` is False where the model ran at
    none that were tried.
    """

    probes: list[Probe]
    inputs: list[dict[str, tuple[int, ...]]]
    works: bool = True
    _shapes: dict[ir.Value, tuple[Size, ...] | None] = field(default_factory=dict)

    def of(self, value: ir.Value) -> tuple[Size, ...] | None:
        """The shape, or None where it is unknown."""
        if value not in self._shapes:
            self._shapes[value] = self._joined(value)
        return self._shapes[value]

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The inferred element type; None where it is unknown or the value is no tensor."""
        found = self.probes[0].types.get(value)
        kind = found.tensor_type.elem_type if found is not None and found.HasField("tensor_type") else 0
        return ir.DataType(kind) if kind else None

    def elements(self, value: ir.Value | None) -> list[Size] | None:
        """The integer elements of a small value, flattened, each static or one per probe; None if unknown."""
        arrays = [p.data.get(value) for p in self.probes] if value is not None else []
        if not arrays or any(a is None or a.dtype.kind not in "iub" for a in arrays):
            return None
        flat = [a.ravel().tolist() for a in arrays if a is not None]
        if any(len(f) != len(flat[0]) for f in flat):
            return None
        return [joined(tuple(int(x) for x in column)) for column in zip(*flat, strict=True)]

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """A small value that is the same at every probe, or None."""
        arrays = [p.data.get(value) for p in self.probes] if value is not None else []
        if not arrays or arrays[0] is None:
            return None
        same = all(a is not None and np.array_equal(a, arrays[0]) for a in arrays)
        return arrays[0] if same else None

    def reason(self, value: ir.Value) -> str:
        """Why the shape of a value is unknown."""
        return self.probes[0].failures.get(value, "its shape is unknown")

    def failure(self, value: ir.Value) -> str | None:
        """Why a value could not be inferred, None where it was."""
        return next((p.failures[value] for p in self.probes if value in p.failures), None)

    def forget_false(self, graph: ir.Graph) -> None:
        """Declared sizes that differ from the inferred ones, as those of a traced example do, are forgotten: runtimes
        fold what they believe to be constant."""
        for value in (value for node in graph.all_nodes() for value in node.outputs):
            known = self.of(value)
            if value.shape is not None and known is not None and len(known) == len(value.shape):
                pairs = zip(value.shape, known, strict=True)
                value.shape = ir.Shape([None if isinstance(d, int) and d != size else d for d, size in pairs])

    def _joined(self, value: ir.Value) -> tuple[Size, ...] | None:
        shapes = [dims_of(p.types.get(value)) for p in self.probes]
        first = shapes[0]
        if first is None or any(s is None or len(s) != len(first) for s in shapes):
            return None
        if all(s == first for s in shapes):
            return tuple(first)
        return tuple(joined(tuple(column)) for column in zip(*(s or () for s in shapes), strict=True))


Runs = Callable[[Mapping[str, tuple[int, ...]]], bool]
"""Whether the model really runs at these input sizes."""


def infer(
    model: ir.Model,
    table: ShapeTable,
    dims: Dims | None = None,
    runs: Runs | None = None,
    sample: Dims | None = None,
    likely: Sequence[list[dict[str, tuple[int, ...]]]] = (),
) -> Shapes:
    """Infer every shape; of operators that onnx does not infer, by what the `table` has.

    `dims` fixes the sizes of inputs that are dynamic; what is `likely` is tried first, then those of a `sample`.

    Sizes of dynamic inputs are tried in turn until all shapes can be inferred and, where `runs` is given, the
    model runs at each of them; otherwise those with the fewest failures are taken.
    """
    walker = _Walker(model, table)
    best: Shapes | None = None
    failures = (False, 0)
    for sizes in assignments(
        model, dims or {}, sample, likely, lambda inputs, until: walker.walk(inputs, 0, until)
    ):
        probes = [walker.walk(inputs, number) for number, inputs in enumerate(sizes)]
        if len(probes) == 1 and probes[0].guessed:
            # all inputs are static, but what nobody can know is dynamic all the same
            probes.append(walker.walk(sizes[0], 1))
        works = runs is None or (all(p.is_small for p in probes) and all(map(runs, sizes)))
        misfits = 0 if runs is not None else sum(len(p.misfits) for p in probes)
        failed = (not works, misfits + sum(len(p.failures) for p in probes))
        if best is None or failed < failures:
            best, failures = Shapes(probes, sizes, works), failed
        if failed == (False, 0):
            break
    assert best is not None
    return best


class _Walker:
    """Runs probes over one model; node protos and small constants are made once."""

    def __init__(self, model: ir.Model, table: ShapeTable) -> None:
        self.graph = model.graph
        self.table = table
        self.opsets = [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]
        self.version = model.opset_imports.get("", 1)
        self.protos: dict[ir.Node, onnx.NodeProto] = {}
        self.depth = 0
        self.tensors: dict[int, tuple[onnx.TensorProto, np.ndarray]] = {}
        self.schemas: dict[tuple[str, str], onnx.defs.OpSchema] = {}

    def walk(self, inputs: Mapping[str, tuple[int, ...]], number: int, until: ir.Node | None = None) -> Probe:
        """Everything at these input sizes, or as far as the node `until`."""
        probe = Probe(number)
        for value in self.graph.inputs:
            if value.name is not None and value.name in inputs:
                probe.types[value] = tensor_type(value.dtype, inputs[value.name])
        for value in self.graph.initializers.values():
            self._constant(value, probe)
        self._nodes(self.graph, probe, until)
        return probe

    def _nodes(self, graph: ir.Graph, probe: Probe, until: ir.Node | None = None) -> None:
        for node in graph:
            for value in node.outputs:
                probe.forget(value)
            if node.domain == "" and node.op_type in BODY_SHAPES:
                self._body(node, probe)
                continue
            if node not in self.protos:
                self.protos[node] = _proto(node)
            self._node(node, self.protos[node], probe)
            if node is until:
                break

    def _body(self, node: ir.Node, probe: Probe) -> None:
        """A node whose result is what its bodies compute."""
        self.depth += 1
        try:
            if self.depth > DEEPEST:
                raise BodyError("its bodies are nested too deeply")
            BODY_SHAPES[node.op_type](node, probe, self.version, lambda body: self._nodes(body, probe))
        except BodyError as e:
            for value in node.outputs:
                probe.failures[value] = str(e)
                probe.types[value] = self._completed(value, None, probe)
        self.depth -= 1

    def _constant(self, value: ir.Value, probe: Probe) -> None:
        tensor = value.const_value
        if tensor is None:
            return
        shape = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
        probe.types[value] = tensor_type(tensor.dtype, shape)
        if tensor.size <= SMALL and tensor.dtype in _NUMERIC:
            probe.data[value] = tensor.numpy()

    def _node(self, node: ir.Node, proto: onnx.NodeProto, probe: Probe) -> None:
        self._fit(node, probe)
        try:
            types = self._inferred(node, proto, probe)
        except _FAILURES as e:
            types = {}
            probe.misfits.setdefault(node, UNKNOWN)
            reason = " ".join(str(e).split())[:200] or type(e).__name__
            for value in node.outputs:
                probe.failures[value] = f"onnx cannot infer {node.op_type}: {reason}"
        for value in node.outputs:
            probe.types[value] = self._completed(value, types.get(value.name or ""), probe)
        if node.op_type in _EVALUATED and node.domain == "":
            self._evaluate(node, proto, probe)
        elif node.op_type == "Shape":
            self._shape(node, probe)

    def _fit(self, node: ir.Node, probe: Probe) -> None:
        """Whether the sizes of a node's inputs fit each other."""
        inputs = [v if v is None else (dims_of(probe.types.get(v)), probe.data.get(v)) for v in node.inputs]
        found = unmet(node, [v and v[0] for v in inputs], [v and v[1] for v in inputs])
        if found is not None:
            demand, (size, wanted) = found
            probe.misfits[node] = Misfit(math.log(max(size, 0.5) / max(wanted, 0.5)), demand)

    def _inferred(self, node: ir.Node, proto: onnx.NodeProto, probe: Probe) -> dict[str, onnx.TypeProto]:
        types = {v.name or "": probe.types[v] for v in node.inputs if v is not None and v in probe.types}
        own = self.table(proto.domain, proto.op_type)
        if own is not None and own.of is not None:
            return own.types(proto, types)
        data = {}
        for value in node.inputs:
            array = probe.data.get(value) if value is not None else None
            if array is not None and value is not None:
                data[value.name or ""] = self._tensor(array)
        run = RUN.get()
        if run is not None and own is None and not onnx.defs.has(proto.op_type, proto.domain):
            return run(proto, types, data)
        stand_in = own.stand_in(proto, self.version) if own is not None else proto
        schema = self._schema(stand_in.op_type, stand_in.domain)
        inferred: dict[str, onnx.TypeProto] = shape_inference.infer_node_outputs(
            schema, stand_in, types, data or None, opset_imports=self.opsets
        )
        return inferred

    def _schema(self, operator: str, domain: str) -> onnx.defs.OpSchema:
        if (operator, domain) not in self.schemas:
            self.schemas[operator, domain] = _inferring(operator, self._opset(domain), domain)
        return self.schemas[operator, domain]

    def _opset(self, domain: str) -> int:
        for opset in self.opsets:
            if (opset.domain or "") in (domain, domain or "ai.onnx"):
                return int(opset.version)
        return 1

    def _tensor(self, array: np.ndarray) -> onnx.TensorProto:
        found = self.tensors.get(id(array))
        if found is None:
            found = onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape)), array
            self.tensors[id(array)] = found  # the array is kept so that its id stays its own
        return found[0]

    def _completed(self, value: ir.Value, inferred: onnx.TypeProto | None, probe: Probe) -> onnx.TypeProto:
        """The inferred type with what it lacks taken from the file or, last, made an opaque size."""
        if inferred is None or inferred.WhichOneof("value") is None:
            inferred = onnx.TypeProto()
            dtype = value.dtype.value if value.dtype is not None else 1
            inferred.tensor_type.elem_type = dtype
        if inferred.WhichOneof("value") != "tensor_type":
            return inferred
        tensor = inferred.tensor_type
        if not tensor.HasField("shape"):
            if value.shape is None:
                return inferred
            for dim in value.shape:
                tensor.shape.dim.add(**({"dim_value": dim} if isinstance(dim, int) else {}))
        for dim in tensor.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = probe.opaque()
            elif dim.dim_value < 0:
                probe.failures[value] = "a negative dimension was inferred"
                if (maker := value.producer()) is not None:
                    probe.misfits.setdefault(maker, UNKNOWN)
        return inferred

    def _shape(self, node: ir.Node, probe: Probe) -> None:
        value = node.inputs[0]
        dims = dims_of(probe.types.get(value)) if value is not None else None
        if dims is None:
            return
        start = node.attributes.get_int("start", 0)
        end = node.attributes.get_int("end", len(dims))
        probe.data[node.outputs[0]] = np.asarray(dims, dtype=np.int64)[start:end]

    def _evaluate(self, node: ir.Node, proto: onnx.NodeProto, probe: Probe) -> None:
        if node.op_type == "Size":
            dims = dims_of(probe.types.get(node.inputs[0])) if node.inputs[0] is not None else None
            if dims is not None:
                probe.data[node.outputs[0]] = np.asarray(np.prod(dims, dtype=np.int64))
            return
        arrays = [probe.data.get(v) if v is not None else None for v in node.inputs]
        if any(a is None and v is not None for a, v in zip(arrays, node.inputs, strict=True)):
            return
        for value in node.outputs:
            dims = dims_of(probe.types.get(value))
            if node.op_type != "NonZero" and (dims is None or np.prod(dims, dtype=float) > SMALL):
                return
        results = _computed(proto, arrays, self.version)
        for value, result in zip(node.outputs, results, strict=False):
            probe.data[value] = np.asarray(result)
            probe.types[value] = tensor_type(ir.DataType.from_numpy(probe.data[value].dtype), result.shape)


def _inferring(operator: str, opset: int, domain: str) -> onnx.defs.OpSchema:
    """The schema of an operator at an opset; where it has no inference of its own, or the operator came later
    (exporters write a few too early), the first later one that has. SchemaError where there is none."""
    newest: int = onnx.defs.onnx_opset_version()
    found: onnx.defs.OpSchema | None = None
    for version in (opset, *range(opset + 1, newest + 1 if domain == "" else opset + 1)):
        if onnx.defs.has(operator, version, domain):
            schema = onnx.defs.get_schema(operator, version, domain)
            found = found or schema
            if schema.has_type_and_shape_inference_function:
                return schema
    return found or onnx.defs.get_schema(operator, opset, domain)


def evaluated(node: ir.Node, arrays: Sequence[np.ndarray | None], version: int) -> Sequence[np.ndarray]:
    """The outputs of a node of the standard domain on small arrays; nothing where the reference cannot run it."""
    return _computed(_proto(node), arrays, version)


def _computed(
    proto: onnx.NodeProto, arrays: Sequence[np.ndarray | None], version: int
) -> Sequence[np.ndarray]:
    """The outputs of one node on small arrays, or nothing where the reference cannot run it."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.ops import load_op

    parameters = {
        "log": lambda *_: None,
        "opsets": {"": version},
        "verbose": 0,
        "evaluator_cls": ReferenceEvaluator,
        "new_ops": None,
        "existing_functions": {},
    }
    try:
        with np.errstate(all="ignore"):
            operator = load_op("", proto.op_type, version)(proto, parameters)
            results = operator.run(*arrays)
    except _FAILURES:
        return ()
    return [np.asarray(r) for r in results if isinstance(r, np.ndarray | np.generic)]


def _proto(node: ir.Node) -> onnx.NodeProto:
    proto = ir.serde.serialize_node(node)
    del proto.metadata_props[:]
    return proto


_NUMERIC = frozenset(
    {
        ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.DOUBLE,
        ir.DataType.FLOAT16, ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT32, ir.DataType.UINT64,
        ir.DataType.INT16, ir.DataType.UINT16,
    }
)  # fmt: skip
