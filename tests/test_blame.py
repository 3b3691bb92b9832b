"""Whose fault it is: the user's file runs and ours does not."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.cli import main
from sparsecc.compilation import Compilation
from sparsecc.errors import InputError, InternalError
from sparsecc.graph.rewrite import Cut, remove
from sparsecc.ir.versions import at_versions
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.runtime.session import open_session
from sparsecc.system.scratch import Scratch
from sparsecc.system.user_code import error_of, function_in
from sparsecc.tasks import stages
from tests.repair_models import normal
from tests.test_loading import MLP, saved


def test_a_pruned_graph_that_does_not_run_is_our_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One constant is cut too short, as by a rule that forgets an operand."""
    right = remove

    def wrong(*args: Any) -> list[Cut]:
        cuts = right(*args)
        array = cuts[-1].value.const_value
        assert array is not None
        cuts[-1].value.const_value = ir.Tensor(array.numpy()[:-1], name=cuts[-1].value.name)
        return cuts

    monkeypatch.setattr(stages, "remove", wrong)
    path = saved(tmp_path / "m.onnx", MLP, w1=normal(6, 8), w2=normal(8, 3, seed=2))
    work = stages.Work(
        Compilation(path, CompileOptions(ratio=0.5, measure=False, align=1), Scratch(tmp_path))
    )
    until = 1 + [stage.name for stage in stages.STAGES].index("prove")
    with pytest.raises(
        InternalError, match=r"the file runs, what was made of it does not .*please report it"
    ) as told:
        stages.walk(work, stages.STAGES[:until])
    assert "--input" not in str(told.value)


def test_a_file_that_does_not_run_is_the_users(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", MLP, w1=normal(6, 8), w2=normal(7, 3, seed=2))
    with pytest.raises(InputError):
        open_session(path).run({"x": np.zeros((2, 6), np.float32)})


def test_a_ratio_with_nothing_near_it_ends_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One layer from the input to the output: all of it stays, and the bundle is written all the same."""
    text = (
        """<ir_version: 8, opset_import: ["" : 17]> g (float[n,6] x) => (float[n,3] y) { y = MatMul(x, w) }"""
    )
    path = saved(tmp_path / "m.onnx", text, w=normal(6, 3))
    assert main(["compile", str(path), "--ratio", "0.5", "--no-measure", "-o", str(tmp_path / "out")]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "is written, but only 0.0% of the macs can go, not 50.0%" in told
    assert (tmp_path / "out" / "model.onnx").is_file()


USER = """
import json
class Odd(Exception): pass
def raises(run):
    raise Odd("nothing to score")
def library(run):
    return json.loads("{")
def ours(run):
    return run({"x": 3})
def samples():
    yield {"x": [[1.0] * 6]}
    raise Odd("out of samples")
"""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"evaluate": "raises"}, r"own\.py:5, in raises: Odd: nothing to score"),
        ({"evaluate": "library"}, r"own\.py:7, in library: JSONDecodeError: "),
        ({"calib": "samples"}, r"own\.py:12, in samples: Odd: out of samples"),
    ],
)
def test_the_error_of_a_users_function_has_its_file_and_line(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    path = saved(tmp_path / "m.onnx", MLP, w1=normal(6, 8), w2=normal(8, 3, seed=2))
    (tmp_path / "own.py").write_text(USER)
    given: dict[str, Any] = {name: f"{tmp_path / 'own.py'}:{function}" for name, function in options.items()}
    with pytest.raises(InputError, match=told):
        sparsecc.compile(
            path, dry_run="calib" in given, output=tmp_path / "out", ratio=0.5, measure=False, **given
        )


def test_what_breaks_in_our_files_behind_a_users_function_is_ours(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def call(f):\n    return f()\n")
    call = function_in(tmp_path / "own.py", "call", "--evaluate")
    unknown: Any = None
    given: list[tuple[Any, bool]] = [(lambda: int("x"), True), (lambda: at_versions(unknown, 3, None), False)]
    for function, is_theirs in given:
        with pytest.raises((ValueError, AttributeError)) as caught:
            call(function)
        assert (error_of(caught.value) is not None) == is_theirs


def test_sizes_of_a_traced_example_are_not_handed_on(tmp_path: Path) -> None:
    """The file declares the example's batch at its output: ONNX Runtime folds a Reshape by it, to fail at others."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> net (float[n, 6] x) => (float[2, 2, 4] y) '
        "<int64[1] zero = {0}, int64[1] one = {1}, int64[3] rest = {2, 1, 4}, int64[1] place = {2}> "
        "{ a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) s = Shape(c) n1 = Slice(s, zero, one) "
        "k = Concat<axis = 0>(n1, rest) r = Reshape(c, k) y = Squeeze(r, place) }"
    )
    path = saved(tmp_path / "m.onnx", text, w1=normal(6, 8), w2=normal(8, 8, seed=2))
    with pytest.raises(InputError, match="cannot be reshaped"):
        open_session(path).run({"x": np.zeros((5, 6), np.float32)})
    made = sparsecc.compile(path, output=tmp_path / "out", ratio=0.3, align=1, measure=False)
    assert made.report["verification"]["status"] == "proved"
    found = open_session(tmp_path / "out" / "model.onnx").run({"x": np.zeros((5, 6), np.float32)})
    assert found["y"].shape == (5, 2, 4)


PICKED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n,c] x) => (float[n,2] y) { y = Gather<axis=1>(x, places) }"""
WHOSE = [
    (MLP, "w2", np.zeros((7, 3), np.float32), "refuses it"),
    (PICKED, "places", np.array([1, 10**7]), "does not run on random inputs .*--input"),
]


@pytest.mark.parametrize("breaks", ["ours", "the file"])
@pytest.mark.parametrize(("text", "name", "wrong", "told"), WHOSE, ids=["does not load", "does not run"])
def test_a_model_that_normalisation_broke_is_our_fault_at_every_door(
    tmp_path: Path, text: str, name: str, wrong: np.ndarray, told: str, breaks: str
) -> None:
    """Every command that runs a model begins here (`Compilation.begin`)."""
    right = {"w1": normal(6, 8), "w2": normal(8, 3, seed=2)} if text == MLP else {"places": np.array([1, 3])}
    weights = right if breaks == "ours" else right | {name: wrong}
    path = saved(tmp_path / "m.onnx", text, **weights)
    model = normalise(load_ir(path))
    model.graph.initializers[name].const_value = ir.Tensor(wrong, name=name)
    compilation = Compilation(path, CompileOptions(), Scratch(tmp_path))
    ours = r"the file runs, what was made of it does not .*please report it"
    error, line = (InternalError, ours) if breaks == "ours" else (InputError, told)
    with pytest.raises(error, match=line):
        compilation.begin(model)


NEVER = """<ir_version: 8, opset_import: ["" : 17]>
g (float[n,6] x, int64[k] rows) => (float[a,3] y) {
    far = Add(rows, thousand) r = Gather(x, far) y = MatMul(r, w) }"""


@pytest.mark.parametrize("command", ["compile", "profile", "compare", "gate", "search", "verify"])
def test_advice_names_options_that_the_command_has(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that runs on no inputs that anybody makes up."""
    path = saved(tmp_path / "m.onnx", NEVER, w=normal(6, 3), thousand=np.array(1000, np.int64))
    several = [str(path)] * (2 if command in ("compare", "gate") else 1)
    more = {"compile": ["--no-measure"], "search": ["--ratios", "0.5"], "verify": ["--model", str(path)]}
    assert main([command, *several, *more.get(command, [])]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert main([command, "--help-all" if command in ("compile", "search") else "--help"]) == 0
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z][a-z-]+", told)) <= known


def test_a_fault_that_reading_mends_is_reduced_all_the_same(tmp_path: Path) -> None:
    """Nodes out of order: what we read is sorted and does not fail."""
    model = onnx.parser.parse_model(MLP)
    model.graph.node.insert(0, model.graph.node.pop())
    for name, array in {"w1": normal(6, 8), "w2": normal(8, 3, seed=2)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    check = f'{sys.executable} -c "import onnx, sys; onnx.checker.check_model(sys.argv[1])" {{}}'
    made = sparsecc.reduce(tmp_path / "m.onnx", check=check, output=tmp_path / "small.onnx")
    assert made["exit_code"] == 1
    assert made["nodes"]["after"] == 2


@pytest.mark.parametrize(
    ("check", "told"),
    [
        ("cmp -s {} FOLDER/other.onnx && exit 3", "another for the same model written anew"),
        ("mkdir FOLDER/seen && exit 3", "other exit codes for m.onnx each time"),
    ],
)
def test_what_reduce_cannot_show_is_told_as_it_is(tmp_path: Path, check: str, told: str) -> None:
    """A field twice, of which the last counts: other bytes, and the same model."""
    path = saved(tmp_path / "m.onnx", MLP, w1=normal(6, 8), w2=normal(8, 3, seed=2))
    path.write_bytes(onnx.ModelProto(producer_name="first").SerializeToString() + path.read_bytes())
    (tmp_path / "other.onnx").write_bytes(path.read_bytes())
    words = f"sh -c '{check.replace('FOLDER', str(tmp_path))} 2>/dev/null; exit 0'"
    with pytest.raises(InputError, match=told):
        sparsecc.reduce(path, check=words, output=tmp_path / "small.onnx")
