"""What is fuzzed: bytes in, and nothing out but a result or an InputError."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx import parser

from sparsecc.bundle.folder import Bundle
from sparsecc.bundle.foreign import read_recipe
from sparsecc.data.plan_file import read_plan, require_fits
from sparsecc.errors import InputError
from sparsecc.loading.models import load_ir_bytes
from sparsecc.loading.normalise import normalise
from sparsecc.loading.open_model import open_bytes
from sparsecc.options import CompileOptions
from sparsecc.tasks.reproduce import options_in
from sparsecc.verify.plan_check import zeroed
from tests.fuzz.axis_programs import Machine

SMALL = """<ir_version: 8, opset_import: ["": 17]> g (float[1,4] x) => (float[1,4] y)
    <float[4,4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}> {
        a = MatMul (x, w)
        c, d = Split <axis = 1> (a)
        e = Concat <axis = 1> (d, c)
        y = Add (e, x)
    }"""
"""A model in which a byte matters more often than in one full of weights."""


def loader(data: bytes) -> None:
    """The front door and the conversion behind it."""
    try:
        open_bytes(data)
        normalise(load_ir_bytes(data))
    except InputError:
        return


def recipe(data: bytes) -> None:
    """The recipe parser of the command line, the one for bundles, and the options that come of both."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            read_recipe(str(path))
        with contextlib.suppress(InputError):
            CompileOptions.of(options_in(path)[0]).to_recipe()


def bundle(data: bytes) -> None:
    """The JSON files of a bundle."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(data)
        try:
            Bundle.open(Path(folder)).verify_manifest()
        except InputError:
            return


def plan(data: bytes) -> None:
    """A plan of a stranger, and what the check that anyone can make does with it."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(given, dict):
        return
    try:
        read = read_plan(given)
        model = small_ir()
        require_fits(read, model)
    except InputError:
        return
    zeroed(model, read)


def axes(data: bytes) -> None:
    """The axis algebra: no exception, and what was stated to be equal is equal."""
    Machine(data[:64]).run()


@functools.cache
def small_bytes() -> bytes:
    """The small model as a file."""
    found: bytes = parser.parse_model(SMALL).SerializeToString()
    return found


def small_ir() -> ir.Model:
    """The small model, fresh."""
    return normalise(load_ir_bytes(small_bytes()))


TARGETS: dict[str, Callable[[bytes], Any]] = {
    "loader": loader,
    "recipe": recipe,
    "bundle": bundle,
    "plan": plan,
    "axes": axes,
}
