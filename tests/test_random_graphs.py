"""Random networks, a random share of every free group removed: equal to the dense network with the removed
slots masked; and with nothing removed, equal to the original."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sparsecc.axes.algebra import Atom
from sparsecc.compilation import Compilation
from sparsecc.graph.groups import Group, find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.runtime.numerics import relative_error, worst_error
from sparsecc.runtime.session import open_session
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.compile import compile_model
from sparsecc.verify.probes import Probes
from tests.random_graphs import IMAGE, SEQUENCE, Recipe, build, recipes

HEALTH = list(HealthCheck)

CUT_INSIDE_A_ROW = Recipe("image", 14, (("shuffle", 0), ("pad_channels", 17), ("fold_halves", 0)), False)
"""A shuffled axis, of which slices take a row and a half each."""


def some(groups: list[Group], seed: int) -> dict[Atom, np.ndarray]:
    """A mask for every free group: a random share goes, at least one slot stays."""
    generator = np.random.default_rng(seed)
    keep = {}
    for group in groups:
        if group.is_free:
            left = int(generator.integers(1, group.size + 1))
            keep[group.atom] = np.isin(np.arange(group.size), generator.permutation(group.size)[:left])
    return keep


def check(recipe: Recipe, seed: int) -> int:
    """Prune the network of a recipe at random and compare; the number of free groups."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(build(recipe), path)
        model = normalise(load_ir(path))
        compilation = Compilation(path, CompileOptions(seed=seed), Scratch(Path(folder)))
        analysis, probes = compilation.begin(model), Probes(compilation)
        for drawn, outputs in zip(compilation.feeds, compilation.expected, strict=True):
            assert relative_error(original(path).run(None, drawn)[0], outputs["y"]) < 1e-5
            assert np.isfinite(outputs["y"]).all()
        groups = find_groups(analysis)
        keep = some(groups, seed)
        removal = probes.of_removal(analysis, keep)
        remove(analysis, keep)
        pruned = open_session(write(model, Path(folder) / "pruned" / "model.onnx"), level="none")
        for feeds, wanted, moved in probes.reference(removal):
            error = worst_error(wanted, pruned.run(feeds))
            assert error <= 2e-5 or error <= 16 * moved(), f"differs by {error:.2g}"
        return sum(g.is_free for g in groups)


def original(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(path, options)


BLOCKS = [("image", name) for name in IMAGE] + [("sequence", name) for name in SEQUENCE]


@pytest.mark.parametrize(("domain", "block"), BLOCKS)
def test_every_block_alone_leaves_something_to_remove(domain: str, block: str) -> None:
    first = "conv" if domain == "image" else "linear"
    for opset in (14, 21):
        assert check(Recipe(domain, opset, ((first, 1), (block, 2), (first, 3)), opset == 14), 0) > 0


@settings(max_examples=60, suppress_health_check=HEALTH, derandomize=True)
@given(recipes(), st.integers(0, 99))
@example(CUT_INSIDE_A_ROW, 1)
def test_removal_equals_masking(recipe: Recipe, seed: int) -> None:
    check(recipe, seed)


@pytest.mark.fuzz
@settings(max_examples=5000, suppress_health_check=HEALTH)
@given(recipes(longest=12), st.integers(0, 99))
def test_removal_equals_masking_for_long(recipe: Recipe, seed: int) -> None:
    check(recipe, seed)


def compiles(recipe: Recipe, ratio: float) -> None:
    """The whole compile, with its own checks; at ratio 0 the outputs are those of the original."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(build(recipe), path)
        options = {"ratio": ratio, "measure": False}
        request = {"model": str(path), "output": f"{folder}/out", "options": options}
        report = compile_model(request, lambda event: None)["report"]
        assert report["verification"]["checker"] == "passed"
        if ratio == 0:
            assert report["verification"]["max_relative_error"] == 0


@settings(max_examples=10, suppress_health_check=HEALTH, derandomize=True)
@given(recipes(), st.sampled_from((0.0, 0.5)))
def test_the_whole_compile(recipe: Recipe, ratio: float) -> None:
    compiles(recipe, ratio)


@pytest.mark.fuzz
@settings(max_examples=1000, suppress_health_check=HEALTH)
@given(recipes(longest=8), st.sampled_from((0.0, 0.3, 0.7)))
def test_the_whole_compile_for_long(recipe: Recipe, ratio: float) -> None:
    compiles(recipe, ratio)


def test_half_precision_without_recorded_types(tmp_path: Path) -> None:
    """The masks of the oracle have the type of what they mask, though the file does not say it."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float16[n, 8] x) => (float16[n, 4] y) {
            h = MatMul (x, a)
            r = Relu (h)
            y = MatMul (r, b)
        }"""
    model = onnx.parser.parse_model(text)
    for name, shape in (("a", (8, 16)), ("b", (16, 4))):
        drawn = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
        model.graph.initializer.append(onnx.numpy_helper.from_array(drawn, name))
    path = tmp_path / "half.onnx"
    onnx.save(model, path)
    options = {"ratio": 0.5, "measure": False}
    request = {"model": str(path), "output": str(tmp_path / "out"), "options": options}
    assert compile_model(request, lambda event: None)["report"]["removed"]["share"] > 0.3
