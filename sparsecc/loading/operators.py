"""Is a node one that its operator set defines: operator, inputs, outputs, attributes and their types."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import onnx
from onnx import defs

from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.loading.limits import Limits

A = onnx.AttributeProto
KNOWN_DOMAINS = frozenset(
    {"com.microsoft", "com.ms.internal.nhwc", "com.microsoft.nchwc", "com.microsoft.experimental"}
)
"""Domains that runtimes know by themselves; a node may use them though the model does not declare them."""

_RUNTIME_OPERATORS = frozenset(
    {
        "Affine",
        "Crop",
        "DynamicSlice",
        "GRUUnit",
        "GivenTensorFill",
        "ImageScaler",
        "ParametricSoftplus",
        "Scale",
    }
    | {"ScaledTanh", "SimplifiedLayerNormalization", "LayerNormalization"}
)
"""Operators that ONNX Runtime keeps in the default domain beyond those that the standard has there."""

_VALUE_FIELDS = {
    "f": A.FLOAT,
    "i": A.INT,
    "s": A.STRING,
    "t": A.TENSOR,
    "g": A.GRAPH,
    "tp": A.TYPE_PROTO,
    "sparse_tensor": A.SPARSE_TENSOR,
    "floats": A.FLOATS,
    "ints": A.INTS,
    "strings": A.STRINGS,
    "tensors": A.TENSORS,
    "graphs": A.GRAPHS,
    "type_protos": A.TYPE_PROTOS,
    "sparse_tensors": A.SPARSE_TENSORS,
}
_LISTS = {A.FLOATS, A.INTS, A.STRINGS, A.TENSORS, A.GRAPHS, A.TYPE_PROTOS, A.SPARSE_TENSORS}


def normal_domain(domain: str) -> str:
    """The default domain has two spellings, "" and "ai.onnx"."""
    return "" if domain == "ai.onnx" else domain


@dataclass
class OperatorChecker:
    """Checks nodes against the schemas of the installed onnx; `notes` collects what it let pass unknown."""

    limits: Limits
    notes: set[str] = field(default_factory=set)
    _schemas: dict[tuple[str, str, int], defs.OpSchema | None] = field(default_factory=dict)

    @cached_property
    def newest(self) -> dict[str, int]:
        """Newest operator-set version known, by domain."""
        return {domain: high for domain, (_, high) in defs.C.schema_version_map().items()}

    def check_opsets(self, imports: dict[str, int], where: str) -> None:
        """InputError for a version that the installed onnx does not know."""
        for domain, version in imports.items():
            newest = self.newest.get(domain)
            if newest is not None and not 1 <= version <= newest:
                raise InputError(
                    f"{where}opset {version} of {quoted(domain or 'ai.onnx')} is not known: "
                    f"onnx {onnx.__version__} knows 1 to {newest}; update onnx, or export an older opset"
                )

    def check(self, node: onnx.NodeProto, where: str, opsets: dict[str, int]) -> None:
        """InputError unless the operator exists in its operator set and takes what the node gives it."""
        if node.op_type == "EPContext":
            raise InputError(
                f"{where}: holds an engine, which runs code when it is loaded: give the model it is of"
            )
        schema = self._schema(node, where, opsets)
        if schema is None:
            return
        for what, count, least, most in (
            ("inputs", len(node.input), schema.min_input, schema.max_input),
            ("outputs", len(node.output), schema.min_output, schema.max_output),
        ):
            if not least <= count <= most:
                raise InputError(
                    f"{where}: {count} {what} where {least} to {most} are allowed: export it again"
                )
        self._check_attributes(node, where, schema)

    def _check_attributes(self, node: onnx.NodeProto, where: str, schema: defs.OpSchema) -> None:
        known = schema.attributes
        given = set()
        for attribute in node.attribute:
            given.add(attribute.name)
            rule = known.get(attribute.name)
            if rule is None:
                raise InputError(
                    f"{where}: attribute {quoted(attribute.name)} is unknown to opset {schema.since_version}"
                )
            if _kind(rule) != attribute.type:
                raise InputError(
                    f"{where}: attribute {quoted(attribute.name)} is {A.AttributeType.Name(attribute.type)}, "
                    f"the operator wants {A.AttributeType.Name(_kind(rule))}"
                )
        for name, rule in known.items():
            if rule.required and name not in given:
                raise InputError(f"{where}: attribute {quoted(name)} is missing")

    def _schema(self, node: onnx.NodeProto, where: str, opsets: dict[str, int]) -> defs.OpSchema | None:
        domain = normal_domain(node.domain)
        version = opsets.get(domain)
        if version is None:
            if domain not in self.newest and domain not in KNOWN_DOMAINS:
                raise InputError(f"{where}: domain {quoted(domain)} is not in the model's opset imports")
            self.notes.add(f"domain {quoted(domain or 'ai.onnx')} is used but not imported")
            version = self.newest.get(domain, 1)
        key = (domain, node.op_type, version)
        if key not in self._schemas:
            self._schemas[key] = self._look_up(key, where)
        return self._schemas[key]

    def _look_up(self, key: tuple[str, str, int], where: str) -> defs.OpSchema | None:
        domain, name, version = key
        if domain not in self.newest:
            if domain not in KNOWN_DOMAINS:
                self.notes.add(f"operators of domain {quoted(domain)} are not known and not touched")
            return None
        try:
            return defs.get_schema(name, version, domain)
        except defs.SchemaError as e:
            if domain == "" and name in _RUNTIME_OPERATORS:
                return None
            raise InputError(
                f"{where}: opset {version} of {quoted(domain or 'ai.onnx')} has no operator {quoted(name)}: "
                "export with one that has it, or declare its domain"
            ) from e


def _kind(rule: defs.OpSchema.Attribute) -> int:
    """The type of attribute that a schema wants, in the numbers of AttributeProto."""
    return int(getattr(rule.type, "value"))  # noqa: B009  the stubs do not know that it is an enum


def check_attribute(attribute: onnx.AttributeProto, where: str, limits: Limits, in_function: bool) -> bool:
    """InputError unless the attribute has one value, of the type it claims, within the limits.

    An attribute without a type gets that of its value; returns whether it did.
    """
    place = f"{where}: attribute {quoted(attribute.name)}"
    if not attribute.name:
        raise InputError(f"{where}: an attribute has no name: export the model again")
    filled = [f.name for f, _ in attribute.ListFields() if f.name in _VALUE_FIELDS]
    if attribute.ref_attr_name:
        if not in_function or filled:
            raise InputError(
                f"{place} refers to {quoted(attribute.ref_attr_name)}, which only a function body may"
            )
        return False
    typed = attribute.type != A.UNDEFINED
    if not typed and len(filled) == 1:
        attribute.type = _VALUE_FIELDS[filled[0]]
    wanted = [name for name, kind in _VALUE_FIELDS.items() if kind == attribute.type]
    must = attribute.type in (A.TENSOR, A.GRAPH, A.SPARSE_TENSOR, A.TYPE_PROTO)
    if not wanted or filled not in ([], wanted) or (must and not filled):
        raise InputError(f"{place} does not hold one value of the type it claims: export the model again")
    if attribute.type in _LISTS and len(getattr(attribute, wanted[0])) > limits.attribute_values:
        raise InputError(
            f"{place} has over {limits.attribute_values} values: raise the limit attribute_values"
        )
    texts = attribute.strings if attribute.type == A.STRINGS else [attribute.s] if filled == ["s"] else []
    if sum(map(len, texts)) > limits.attribute_bytes:
        raise InputError(f"{place} is over {limits.attribute_bytes} bytes: raise the limit attribute_bytes")
    return not typed
