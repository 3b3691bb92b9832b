"""What a user gets wrong: one line that says what and what to do, exit code 2, and nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import sparsecc
from sparsecc.cli import main
from sparsecc.errors import InputError
from sparsecc.options import CompileOptions
from sparsecc.targets import target_named


@pytest.fixture(scope="module")
def model(root: Path) -> Path:
    return root / "models" / "digits_resnet.onnx"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class Refusals:
    """Compiles that must be refused, from a folder whose contents must not change."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, model: Path | str, *options: str, code: int = 2) -> str:
        before = sorted(str(p) for p in self.folder.rglob("*"))
        assert main(["compile", str(model), "--ratio", "0.5", "--no-measure", "-o", "out", *options]) == code
        captured = self.capsys.readouterr()
        assert sorted(str(p) for p in self.folder.rglob("*")) == before
        assert captured.out == ""
        lines = [line for line in captured.err.splitlines() if not line.startswith("sparsecc: no samples")]
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("sparsecc: error: ")
        return lines[0]


@pytest.fixture
def refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Refusals:
    return Refusals(workplace, capsys)


# The model -------------------------------------------------------------------------------------------


def test_missing_file(refused: Refusals) -> None:
    assert "none.onnx: no such file" in refused("none.onnx")


def test_text_file(refused: Refusals, workplace: Path) -> None:
    (workplace / "m.onnx").write_text("this is no model\n" * 10)
    assert "m.onnx" in refused("m.onnx")


def test_empty_file_and_folder(refused: Refusals, workplace: Path) -> None:
    (workplace / "m.onnx").write_bytes(b"")
    (workplace / "d.onnx").mkdir()
    assert "m.onnx" in refused("m.onnx")
    assert "d.onnx" in refused("d.onnx")


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_truncated_file(refused: Refusals, workplace: Path, model: Path, share: float) -> None:
    data = model.read_bytes()
    (workplace / "m.onnx").write_bytes(data[: int(share * len(data))])
    assert "m.onnx" in refused("m.onnx")


def test_missing_external_data(refused: Refusals, workplace: Path, model: Path) -> None:
    onnx.save(
        onnx.load(model), workplace / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    (workplace / "w.bin").unlink()
    assert "w.bin" in refused("m.onnx")


def test_a_model_of_wrong_shapes(refused: Refusals, workplace: Path) -> None:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2])
    weight = numpy_helper.from_array(np.ones((4, 2), dtype=np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, workplace / "m.onnx")
    refused("m.onnx")


# Options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--ratio 1", "outside [0, 1)"),
        ("--ratio -0.1", "outside [0, 1)"),
        ("--ratio nan", "outside [0, 1)"),
        ("--target onnxruntme", "did you mean 'onnxruntime'?"),
        ("--criterion l3", "unknown criterion 'l3'"),
        ("--allocator unifrom", "did you mean 'uniform'?"),
        ("--quantize fp8", "does not run fp8"),
        ("--input image:1x3x16x16", "image"),
        ("--input image:1x16x16", "image"),
        ("--emit engine", "emits onnx or ort"),
        ("-o {model}/folder/out", "which is no folder: choose another one"),
        ("-o /", "cannot be an output folder"),
        ("--sparsity 2:5", "2:5"),
    ],
)
def test_options(refused: Refusals, model: Path, options: str, expected: str) -> None:
    assert expected in refused(model, *options.format(model=model).split())


def test_api_options_are_checked_as_those_of_the_command_line() -> None:
    for given, expected in (
        ({"ratio": 1.0}, "outside"),
        ({"ratoi": 0.5}, "did you mean 'ratio'"),
        ({"metric": "mac"}, "did you mean 'macs'"),
        ({"prune": ("head",)}, "did you mean 'heads'"),
        ({"target": "zzz"}, "targets are"),
    ):
        with pytest.raises(InputError, match=expected):
            CompileOptions.of(given)
    with pytest.raises(InputError, match="did you mean 'tensorrt'"):
        target_named("tensort")


def test_an_output_that_exists(refused: Refusals, workplace: Path, model: Path) -> None:
    (workplace / "out").mkdir()
    (workplace / "out" / "mine.txt").write_text("mine")
    assert "exists already" in refused(model)
    assert "not a bundle" in refused(model, "--force")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(refused: Refusals, workplace: Path, model: Path) -> None:
    closed = workplace / "closed"
    closed.mkdir(mode=0o500)
    assert "no permission" in refused(model, "-o", "closed/out")


# The user's code and data ----------------------------------------------------------------------------

CODE = """
import numpy as np

def raises(run): raise ValueError("no labels")
def nothing(run): return None
def nan(run): return float("nan")
def wrong_input(run): return run({"picture": np.zeros((1, 1, 16, 16), np.float32)})
def samples():
    yield {"image": np.full((2, 1, 16, 16), np.nan, np.float32)}
"""


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("raises", "in raises: ValueError: no labels"),
        ("nothing", "returned None: it must return a finite number"),
        ("nan", "returned nan: it must return a finite number"),
        ("wrong_input", "picture"),
        ("absent", "has no function 'absent': score.py has raises, nothing, nan, wrong_input, samples"),
        ("np", "has 'np', which is no function: score.py has raises"),
        ("", "names no function: score.py has raises"),
    ],
)
def test_eval_functions(
    refused: Refusals, workplace: Path, model: Path, function: str, expected: str
) -> None:
    (workplace / "score.py").write_text(CODE)
    assert expected in refused(model, "--eval", f"score.py:{function}")


def test_a_metric_that_fails_does_so_before_any_long_work(workplace: Path, model: Path) -> None:
    (workplace / "score.py").write_text(CODE)
    stages: list[str] = []
    with pytest.raises(InputError, match="no labels"):
        sparsecc.compile(
            model,
            ratio=0.5,
            evaluate="score.py:raises",
            output=workplace / "out",
            on_event=lambda event: stages.append(event.get("stage", "")),
        )
    assert "load" in stages
    assert "choose" not in stages


def test_eval_files(refused: Refusals, workplace: Path, model: Path) -> None:
    assert "no file 'none.py'" in refused(model, "--eval", "none.py:f")
    assert "is no metric and no file: write FILE.py:FUNCTION, or with --labels one of top1" in refused(
        model, "--eval", "accuracy"
    )
    (workplace / "own.py").write_text("SCORE = 1")
    for flag in ("--eval", "--calib"):
        assert "own.py names no function: own.py defines no function" in refused(model, flag, "own.py")
    (workplace / "broken.py").write_text("def f(:\n")
    assert "cannot be imported" in refused(model, "--eval", "broken.py:f")


def test_what_is_named_and_not_there_is_said_before_the_output(
    refused: Refusals, workplace: Path, model: Path
) -> None:
    (workplace / "out").mkdir()
    (workplace / "out" / "file").touch()
    assert "none.npz: no such file or folder" in refused(model, "--calib", "none.npz", "-o", "out")
    assert "no file 'none.py'" in refused(model, "--eval", "none.py:f", "--dry-run")
    assert "exists already" in refused(model, "-o", "out")


def arrays(**given: np.ndarray) -> dict[str, np.ndarray]:
    return given


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (arrays(image=np.zeros((2, 3, 16, 16), np.float32)), "image"),
        (arrays(image=np.full((2, 1, 16, 16), np.nan, np.float32)), "image"),
    ],
    ids=["shape", "nan"],
)
def test_calibration_files(
    refused: Refusals, workplace: Path, model: Path, data: dict[str, np.ndarray], expected: str
) -> None:
    np.savez(workplace / "c.npz", **data)  # type: ignore[arg-type]
    assert expected in refused(model, "--calib", "c.npz", "--quantize", "int8")


@pytest.mark.parametrize("source", ["none.npz", "folder", "text.npz", "code.py:samples"])
def test_calibration_sources(refused: Refusals, workplace: Path, model: Path, source: str) -> None:
    (workplace / "folder").mkdir()
    (workplace / "text.npz").write_text("no archive")
    (workplace / "code.py").write_text(CODE)
    refused(model, "--calib", source, "--quantize", "int8")


def test_bundles_that_are_none(workplace: Path, capsys: pytest.CaptureFixture[str], model: Path) -> None:
    for line in (
        ["verify", "none"],
        ["verify", str(workplace)],
        ["profile", "none.onnx"],
        ["profile", str(workplace)],
        ["compare", str(model), "none.onnx"],
        ["inspect", "none.onnx"],
        ["inspect", str(model), "--why", "nothing:0"],
    ):
        assert main(line) == 2, line
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_the_api_raises_what_the_command_line_prints(workplace: Path) -> None:
    with pytest.raises(InputError, match=r"none\.onnx: no such file"):
        sparsecc.compile("none.onnx", ratio=0.5)
    assert list(workplace.iterdir()) == []


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match="a dict is no model"):
        sparsecc.compile({}, ratio=0.5)  # type: ignore[arg-type]
