"""How much faster a model should be on a device that is not here: products at the rate of their types, weights at the
rate of the memory, kernels one by one. By a table that was made on such a device, or by rules of the target.

The rules are those of a roofline (Williams et al., 2009) with round figures of common devices: a GPU with tensor cores
(twice the rate in 16 bits, four times in 8, half as much again with two of four weights zero, which is half of what
the hardware promises), a processor with 8-bit dot products. By rules only ratios of times are told, by a table times.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sparsecc.errors import InputError
from sparsecc.runtime.emulated_blocks import FROM_MXFP8
from sparsecc.system.plain_json import read_json
from sparsecc.targets import Target

SCHEMA = "sparsecc.device_table/1"
FLOAT, SPARSE = "float", "/2:4"
"""The type of a product that has no other, and what a type ends with whose weights have that pattern."""
BYTES = {FLOAT: 4.0, "fp16": 2.0, "int8": 1.0, f"fp16{SPARSE}": 1.125, f"int8{SPARSE}": 0.625}
"""What a weight takes in each: of four, two are kept, with two bits each for its place."""


@dataclass(frozen=True)
class DeviceRates:
    """`macs` are multiply-accumulates a second by type, `bytes` those a second that weights are read with, `launch`
    the seconds that a kernel takes beside its work; `source` says whose these are."""

    source: str
    macs: Mapping[str, float]
    bytes: float
    launch: float
    is_measured: bool = False
    """Whether a table holds them: then times are told, and not only how they compare."""

    def seconds(self, products: Sequence[tuple[str, float]], weights: float) -> float:
        """Of a run of these products, (type, multiply-accumulates), whose weights take so many bytes in float."""
        return math.fsum(self.parts(products, weights).values())

    def parts(self, products: Sequence[tuple[str, float]], weights: float) -> dict[str, float]:
        """The seconds of a run by what takes them."""
        work = self._rated(products)
        return {
            "multiply-accumulates": math.fsum(macs / self.macs[kind] for kind, macs in work),
            "launches of kernels": self.launch * len(work),
            "reading weights": weights * self.share(products) / self.bytes,
        }

    def share(self, products: Sequence[tuple[str, float]]) -> float:
        """Of the bytes that weights take in float, those that they take in these types."""
        work = self._rated(products)
        total = math.fsum(macs for _, macs in work)
        return math.fsum(BYTES[kind] * macs for kind, macs in work) / (BYTES[FLOAT] * total) if total else 1.0

    def _rated(self, products: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
        """A pattern without a rate has that of its type, a type without a rate is float."""
        known = ((kind, kind.removesuffix(SPARSE), macs) for kind, macs in products if macs > 0)
        return [
            (next((k for k in (kind, dense) if k in self.macs), FLOAT), macs) for kind, dense, macs in known
        ]

    def to_json(self) -> dict[str, Any]:
        """The content of a table; its reader names the source."""
        return {"macs": dict(self.macs), "bytes": self.bytes, "launch": self.launch}


RULES = {
    "gpu": DeviceRates(
        "rules for a GPU",
        {"float": 3e13, "fp16": 6e13, "int8": 1.2e14, f"fp16{SPARSE}": 9e13, f"int8{SPARSE}": 1.8e14},
        6e11,
        4e-6,
    ),
    "cpu": DeviceRates("rules for a processor", {"float": 5e10, "int8": 1.5e11}, 1.5e10, 3e-6),
}
"""By the device of a target, where no table is given."""


def rates_for(target: Target, table: str | os.PathLike[str] | None) -> DeviceRates:
    """Those of a table (`sparsecc devices table`), else those of rules. InputError where it is none, or one of another
    kind of device, and where there are no rules."""
    if table is None:
        if target.device not in RULES:
            raise InputError(
                f"no rules foretell speeds on {target.name}: give a table of it with --device-table"
            )
        return RULES[target.device]
    path, remedy = Path(table), "give the file that `sparsecc devices table` wrote on such a device"
    data = read_json(path, remedy)
    macs, numbers = data.get("macs"), [data.get("bytes"), data.get("launch")]
    if isinstance(macs, dict):
        numbers += macs.values()
    sound = (
        isinstance(macs, dict) and FLOAT in macs and set(macs) <= set(BYTES) and all(map(_is_rate, numbers))
    )
    if data.get("schema") != SCHEMA or not sound:
        raise InputError(f"{path} is no table of a device: {remedy}")
    if not target.is_named(data.get("target")):
        raise InputError(f"{path} is a table of another target than {target.name}: {remedy}")
    assert isinstance(macs, dict)
    launch = float(data["launch"])
    return DeviceRates(f"the table {path.name}", macs, float(data["bytes"]), launch, is_measured=True)


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


_RESTORES = frozenset({"DequantizeLinear", FROM_MXFP8})
_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def types_of(model: ir.Model) -> dict[str, str]:
    """Node -> the type whose rate it has, of those that are not in float: all of 16 bits are one, and all of fewer."""
    return {node.name or "": kind for node in model.graph if (kind := _type(node)) != FLOAT}


def _type(node: ir.Node) -> str:
    if node.op_type.startswith("QLinear") or "Integer" in node.op_type:
        return "int8"
    operands = [value for value in node.inputs[:2] if value is not None]
    producers = [value.producer() for value in operands]
    if len(operands) == 2 and all(one is not None and one.op_type in _RESTORES for one in producers):
        return "int8"
    return "fp16" if any(value.dtype in _HALVES for value in operands) else FLOAT
