"""One ONNX node as the torch functions see it, and the table they stand in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """A node's operator, attributes as Python values, number of outputs, and the opset it is read by."""

    op: str
    name: str
    attributes: dict[str, Any]
    outputs: int
    version: int

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def axes(self, given: Tensor | None, name: str = "axes") -> list[int] | None:
        """Integers that stand in an attribute (older opsets) or in an operand."""
        found = self.attributes.get(name)
        if found is not None:
            return [int(v) for v in found]
        return None if given is None else ints(given)


Result = Tensor | tuple[Tensor | None, ...]
Function = Callable[..., Result]
"""(call, operand, …) -> output or outputs; operands left out are None."""

OPS: dict[str, Function] = {}
"""ONNX operator -> its torch function."""


def onnx_op(names: str) -> Callable[[Function], Function]:
    """Register the torch function of one or several operators."""

    def register(function: Function) -> Function:
        for name in names.split():
            OPS[name] = function
        return function

    return register


def ints(value: Tensor) -> list[int]:
    """The elements of a small integer tensor."""
    return [int(v) for v in value.reshape(-1).tolist()]


DTYPES: dict[int, torch.dtype] = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""ONNX element types as torch has them."""
