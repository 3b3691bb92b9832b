"""ONNX Runtime is reached through one door, with one set of settings and errors; values are watched in one way."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.errors import InputError
from sparsecc.runtime import session
from sparsecc.runtime.segments import activations
from sparsecc.runtime.session import open_session

DOOR = "sparsecc/runtime/session.py"
ALONE = "sparsecc/devices/runner.py"
"""Copied alone to boards, where there is no sparsecc."""
OPERATORS = "sparsecc/runtime/custom_ops.py"
"""Gives the options of sessions the user's operators; it makes none."""


def shipped(root: Path) -> Iterator[tuple[str, ast.AST]]:
    """(file, node) of all product code, each file once."""
    for folder in ("sparsecc", "passes", "backends"):
        for parent, _, names in os.walk(root / folder):
            for name in names:
                if name.endswith(".py"):
                    path = Path(parent, name)
                    label = str(path.relative_to(root))
                    yield from ((label, node) for node in ast.walk(ast.parse(path.read_text("utf-8"))))


def test_one_file_opens_sessions(root: Path) -> None:
    makers, importers = set(), set()
    for file, node in shipped(root):
        if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node).endswith("InferenceSession"):
            makers.add(file)
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            modules += [
                a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
        if any(module.split(".")[0] == "onnxruntime" for module in modules):
            importers.add(file)
    assert makers == {DOOR, ALONE}
    assert importers == {DOOR, ALONE, OPERATORS}


def model_of(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]> {text}')


def test_every_source_is_opened_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("m (float[n,2] x) => (float[n,2] y) <float[2] w = {1.0, -2.0}> { y = Mul (x, w) }")
    proto, path = ir.to_proto(model), tmp_path / "m.onnx"
    ir.save(model, path)
    feeds = {"x": np.ones((3, 2), np.float32)}
    for limit in (1 << 30, 0):  # as one message, and by way of a file
        monkeypatch.setattr(session, "_INLINE", limit)
        for source in (path, path.read_bytes(), proto, model):
            found = open_session(source, level="none").run(feeds)
            np.testing.assert_array_equal(found["y"], np.array([[1, -2]] * 3, np.float32))


@pytest.mark.parametrize("kind", ["file", "bytes", "proto", "model"])
def test_refusals_are_one_line_and_say_where(kind: str, tmp_path: Path) -> None:
    model = model_of("m (float[2] x) => (float[2] y) { y = Frobnicate (x) }")
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    sources: dict[str, session.Source] = {"file": path, "proto": ir.to_proto(model), "model": model}
    with pytest.raises(InputError, match=r"the piece: ONNX Runtime .* refuses it: .*Frobnicate") as caught:
        open_session(sources.get(kind, path.read_bytes()), where="the piece")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r": take another$"):
        open_session(path, advice="take another")


def test_a_model_in_memory_may_be_in_bfloat16(tmp_path: Path) -> None:
    model = model_of("m (bfloat16[2,2] x) => (bfloat16[2,2] y) { y = Softmax (x) }")
    before = ir.to_proto(model).SerializeToString()
    x = np.ones((2, 2), ir.DataType.BFLOAT16.numpy())
    for source in (model, ir.to_proto(model)):
        found = open_session(source).run({"x": x})["y"]
        assert (found.dtype, found.astype(np.float32).max()) == (x.dtype, 0.5)
    assert ir.to_proto(model).SerializeToString() == before


SEQUENCES = """m (float[4,2] x) => (float[a,2] y) {
    a = Relu (x)
    parts = SplitToSequence <axis: int = 0, keepdims: int = 1> (a)
    b = Neg (a)
    whole = ConcatFromSequence <axis: int = 0> (parts)
    y = Add (b, whole)
}"""


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_activations_are_those_of_the_whole_model(memory: int, tmp_path: Path) -> None:
    """With too little memory for more than one batch at a time, and with values that are no tensors."""
    model = model_of(SEQUENCES)
    batches = [{"x": np.arange(8, dtype=np.float32).reshape(4, 2) - i} for i in range(5)]
    names = ["b", "x", "y", "whole", "a", "b"]
    found: dict[str, list[np.ndarray]] = {}
    for name, array in activations(model, names, batches, tmp_path, memory=memory):
        found.setdefault(name, []).append(np.array(array))
    assert set(found) == set(names)
    for number, feeds in enumerate(batches):
        a = np.maximum(feeds["x"], 0)
        wanted = {"x": feeds["x"], "a": a, "b": -a, "whole": a, "y": a - a}
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name][number], array)
    assert [output.name for output in model.graph.outputs] == ["y"]


def test_activations_wait_in_files_that_go_again(tmp_path: Path) -> None:
    model = model_of(SEQUENCES)
    batches = [{"x": np.ones((4, 2), np.float32)}] * 3
    seen = 0
    for _ in activations(model, ["a", "b", "y"], batches, tmp_path, memory=1):
        seen = max(seen, len(list((tmp_path / "values").glob("*.npy"))))
    assert seen >= 1
