"""What a pass is: a frozen dataclass whose fields are its options, from a model and a plan to a model.

Of the compilation a pass takes what it needs: the target, the scratch folder, and the inputs `pass_feeds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from sparsecc.errors import InputError
from sparsecc.remarks import Remark

if TYPE_CHECKING:
    from sparsecc.compilation import Compilation
    from sparsecc.plan import Plan
    from sparsecc.targets import Target


@dataclass(frozen=True)
class Patterned:
    """The graph before a pattern, channels in the order that they have now, and behind it; the method, and the CRC-32
    of every weight that it made."""

    before: ir.Model
    after: ir.Model
    method: str
    checksums: Mapping[str, int]


@dataclass(frozen=True)
class PassResult:
    """What a pass did: facts for the report (plain JSON data), and remarks on what it left alone."""

    facts: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()
    in_float: ir.Model | None = None
    """The graph before its types changed, where numbers were moved between layers first: the same function."""
    patterned: Patterned | None = None
    was_rounded: bool = False
    """Whether the model came in fewer bits than `in_float`, and so is not the same function."""


def require_data(what: str, *, has_data: bool) -> None:
    """InputError unless there is calibration data."""
    if not has_data:
        raise InputError(
            f"{what} needs calibration data: give --calib PATH, or --calib synthetic for random inputs"
        )


@dataclass(frozen=True)
class Pass:
    """Base of all passes. `run` edits `model` in place and records its decisions in `plan`."""

    name: ClassVar[str] = ""

    @property
    def only_rounds(self) -> bool:
        """Whether every layer computes what it did but for its type: each can be held against its float form then."""
        return False

    def require(self, target: Target, *, has_data: bool) -> None:
        """InputError for options that cannot be on this target, or not without calibration data: asked before a model
        is read, and again by `run`."""

    def require_names(self, model: ir.Model) -> None:
        """InputError for names among the options that the model, as it was loaded, does not have."""

    def run(self, model: ir.Model, plan: Plan, compilation: Compilation) -> PassResult:
        raise NotImplementedError

    def __str__(self) -> str:
        options = " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))
        return f"{self.name}{{{options}}}"
