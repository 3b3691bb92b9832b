"""Targets: a runtime with its device's abilities. Which types, patterns and channel counts it accelerates.

Runtimes declare their own: each folder of `backends/`, and each installed package that names a module in the
entry-point group `sparsecc.backends`, holds `TARGETS` and `BACKENDS` (see `Runtime`).
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from sparsecc.errors import InputError, unknown
from sparsecc.escaping import one_line

ENTRY_POINT_GROUP = "sparsecc.backends"


@dataclass(frozen=True)
class Target:
    """A runtime on a kind of device.

    `backend` names a row of the runtime's `BACKENDS`. `types` are the values of `--quantize` and
    `patterns` those of `--sparsity` that it really accelerates; `any_pattern` lets zeros be written that it does
    not. `activation` is the integer type its int8 kernels want for activations. Channel counts are chosen as
    multiples of `conv_multiple` (groups of at least four times that), of `narrow_multiple` below, and of
    `gemm_multiple` where only matrix products use them.

    `dialect` is how quantized graphs are written: "qdq" in standard Q/DQ, "onnxruntime" with its own operators
    where these are faster, "tensorrt" in Q/DQ where TensorRT fuses it. `no_kernel` is why, by (type, operator),
    nodes stay in float. `timed_here` says that the CPU of this machine stands for the device. `machines` are the
    names, as `platform.machine()` gives them, of machines whose times are those of the target; none are any.
    """

    name: str
    backend: str
    types: frozenset[str]
    patterns: frozenset[str] = frozenset()
    activation: str = "uint8"
    conv_multiple: int = 16
    narrow_multiple: int = 8
    gemm_multiple: int = 8
    device: str = "cpu"
    dialect: str = "qdq"
    any_pattern: bool = False
    no_kernel: Mapping[tuple[str, str], str] = field(default_factory=dict, hash=False)
    timed_here: bool = False
    machines: frozenset[str] = frozenset()

    @property
    def is_of_this_machine(self) -> bool:
        """Whether a time that is taken here is one of the target."""
        return not self.machines or platform.machine() in self.machines

    def is_named(self, name: object) -> bool:
        """Whether a file that names its target means this one."""
        return name == self.name

    @property
    def talks_to_drivers(self) -> bool:
        """Whether its builder and runtime need the drivers of a GPU, which no sandbox can hold."""
        return self.device == "gpu"

    def multiple(self, size: int, *, feeds_conv: bool) -> int:
        """The step in which a group of `size` slots is cut so that kernels stay on their fast path."""
        wide = self.conv_multiple if feeds_conv else self.gemm_multiple
        for step in (wide, self.narrow_multiple, 4, 2):
            if step <= wide and size >= 4 * step:
                return step
        return 1


class Runtime(Protocol):
    """A module that declares what a runtime offers, without importing it."""

    TARGETS: Sequence[Target]
    BACKENDS: Mapping[str, str]
    """Name -> "module:Class" of a `sparsecc.backends.base.Backend`."""


@cache
def own_runtimes() -> tuple[Runtime, ...]:
    """The folders of `backends/`, ONNX Runtime's before NVIDIA's."""
    folders = sorted((Path(__file__).parent / "backends").glob("*/__init__.py"), reverse=True)
    return tuple(cast(Runtime, import_module(f"{__package__}.backends.{f.parent.name}")) for f in folders)


@cache
def installed_runtimes() -> tuple[tuple[Runtime, ...], Mapping[str, str]]:
    """Those of installed packages, and by entry point why others cannot be imported."""
    from importlib.metadata import entry_points

    found: list[Runtime] = []
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP)):
        try:
            runtime = cast(Runtime, point.load())
            _ = runtime.TARGETS, runtime.BACKENDS
        except (ImportError, AttributeError, SyntaxError) as e:
            broken[point.name] = one_line(f"{point.value} cannot be imported: {e}", 300)
        else:
            found.append(runtime)
    return tuple(found), broken


class _Targets(Mapping[str, Target]):
    """All targets by name, ours before those of installed packages, whose metadata is read when first needed."""

    def __getitem__(self, name: str) -> Target:
        for target in self._rows():
            if target.name == name:
                return target
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(target.name for target in self._rows()))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _rows(self) -> Iterator[Target]:
        for runtime in own_runtimes():
            yield from runtime.TARGETS
        for runtime in installed_runtimes()[0]:
            yield from runtime.TARGETS


TARGETS: Mapping[str, Target] = _Targets()


def target_named(name: str) -> Target:
    """The target of that name. InputError names the closest one when there is none."""
    if name in TARGETS:
        return TARGETS[name]
    if reason := installed_runtimes()[1].get(name):
        raise InputError(f"target '{name}': {reason}: install the package that offers it anew")
    raise unknown("target", "targets", name, sorted(TARGETS))
