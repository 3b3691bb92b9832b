"""The same model and recipe give the same bytes: in other processes, with other hash seeds, threads, time
zones, folders and file modes; and `verify` can show it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparsecc
from sparsecc.bundle.folder import Bundle
from sparsecc.cli import main
from sparsecc.errors import GoalError, InputError

CODE = """
import os, sys
os.umask(int(sys.argv[3], 8))
import sparsecc
options = {"quantize": "int8-dynamic"} if len(sys.argv) > 4 else {}
sparsecc.compile(sys.argv[1], ratio=0.4, measure=False, output=sys.argv[2], **options)
"""


def compiled(model: Path, out: Path, *extra: str, umask: str = "022", **environment: str) -> dict[str, str]:
    """Compile in a process of its own; the hash of every file, with that of the manifest itself."""
    command = [sys.executable, "-c", CODE, str(model), str(out), umask, *extra]
    out.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, env={**os.environ, **environment}, cwd=out.parent, check=True)
    bundle = Bundle.open(out)
    assert not bundle.verify_manifest()
    text = (out / "manifest.json").read_text()
    return {name: str(fact["sha256"]) for name, fact in bundle.manifest["files"].items()} | {"": text}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy under a name of its own: where it lies must not show."""
    source = Path(__file__).resolve().parents[1] / "models" / "digits_resnet.onnx"
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    path.write_bytes(source.read_bytes())
    return path


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "out"
    compiled(model, out, PYTHONHASHSEED="1", OMP_NUM_THREADS="1")
    return out


def test_every_file_is_the_same_in_another_process(model: Path, first: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "deeper" / "out"
    again = compiled(
        model,
        other,
        umask="077",
        PYTHONHASHSEED="77",
        OMP_NUM_THREADS="2",
        OPENBLAS_NUM_THREADS="2",
        TZ="Asia/Tokyo",
        LC_ALL="C",
    )
    for name in (*again, "manifest.json"):
        if name:
            assert (first / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.slow
def test_a_quantized_compile_is_the_same_again(model: Path, tmp_path: Path) -> None:
    once = compiled(model, tmp_path / "a", "quantized", PYTHONHASHSEED="3")
    assert once == compiled(model, tmp_path / "b", "quantized", PYTHONHASHSEED="4")


def test_nothing_in_a_bundle_tells_where_it_was_made(model: Path, first: Path) -> None:
    for path in first.iterdir():
        data = path.read_bytes()
        assert str(model.parent).encode() not in data
        assert os.uname().nodename.encode() not in data or len(os.uname().nodename) < 6


def test_verify_reproduces_a_bundle(model: Path, first: Path) -> None:
    checked = sparsecc.verify(first, model=model, reproduce=True)
    assert checked["checks"][-1]["check"] == "reproduce"
    assert checked["checks"][-1]["ok"]
    with pytest.raises(InputError, match="--model"):
        sparsecc.verify(first, reproduce=True)


def test_verify_notices_what_the_recipe_does_not_give(model: Path, first: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compiled(model, out)
    recipe = (out / "recipe.yaml").read_text()
    tampered(out, recipe.replace("ratio: 0.4", "ratio: 0.2"))
    with pytest.raises(GoalError, match="came out different"):
        sparsecc.verify(out, model=model, reproduce=True)
    tampered(out, recipe + "calibration: steal.py:run\n")
    with pytest.raises(InputError, match="names code"):
        sparsecc.verify(out, model=model, reproduce=True)


def tampered(out: Path, recipe: str) -> None:
    """The bundle with another recipe and a manifest that agrees."""
    from sparsecc.bundle.folder import manifest_of, write_json

    (out / "recipe.yaml").write_text(recipe)
    write_json(out / "manifest.json", manifest_of(out, {}))


def test_the_command_line_has_the_option(
    first: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(first), "--model", str(model), "--reproduce", "--json"]) == 0
    assert '"reproduce"' in capsys.readouterr().out


def solved(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch, core: str) -> Path:
    """A bundle whose weights are refitted by OpenBLAS kernels for another type of processor."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", core)
    sparsecc.compile(model, ratio=0.4, measure=False, output=out, calib="synthetic", recover="reconstruct")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    return out


def test_a_processor_of_another_type_is_recorded_and_compared_within_rounding(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = solved(model, tmp_path / "there", monkeypatch, "Prescott")
    here = solved(model, tmp_path / "here", monkeypatch, "")
    if Bundle.open(there).manifest["processor"] == Bundle.open(here).manifest["processor"]:
        pytest.skip("this BLAS is no OpenBLAS that can be told another type")
    detail = sparsecc.verify(there, model=model, reproduce=True)["checks"][-1]["detail"]
    assert "within rounding" in detail
    assert "another type" in detail
    same = sparsecc.verify(here, model=model, reproduce=True)["checks"][-1]["detail"]
    assert same.endswith("byte by byte")


def test_more_than_rounding_is_no_rounding(model: Path, first: Path, tmp_path: Path) -> None:
    from sparsecc.verify.rounding import difference

    names = ["model.onnx", "plan.json"]
    assert difference(first, first, names) == 0
    (tmp_path / "near").mkdir()
    (tmp_path / "far").mkdir()
    for folder, factor in (("near", 1 + 1e-6), ("far", 1.1)):
        scaled(first / "model.onnx", tmp_path / folder / "model.onnx", factor)
        (tmp_path / folder / "plan.json").write_bytes((first / "plan.json").read_bytes())
    near = difference(first, tmp_path / "near", names)
    assert near is not None
    assert 0 < near < 1e-5
    assert difference(first, tmp_path / "far", names) is None
    assert difference(first, tmp_path / "near", ["absent.json"]) is None
    plan = (first / "plan.json").read_text()
    (tmp_path / "near" / "plan.json").write_text(plan.replace('"kept"', '"keeps"'))
    assert difference(first, tmp_path / "near", ["plan.json"]) is None


def scaled(source: Path, target: Path, factor: float) -> None:
    """The model with one weight tensor multiplied."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), tensor.name))
    onnx.save(model, target)
