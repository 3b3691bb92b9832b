"""`sparsecc verify` ticks what it checked and no more: each check is ok, failed, or not checked with why."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import sparsecc
from sparsecc.bundle import Bundle
from sparsecc.cli import main
from sparsecc.errors import GoalError, InputError
from sparsecc.tasks.reproduce import reproduced
from sparsecc.verify.stored_probes import LARGEST, PROBES, inputs_of, keep, rounded
from tests.foreign_files import errors_of, seal
from tests.repair_models import analysed, normal

MODEL = """g (float[n, 8] x) => (float[n, 4] y) {
    a = Gemm(x, w0) b = Relu(a) c = Gemm(b, w1) d = Relu(c) y = Gemm(d, w2) }"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx_ir as ir

    path = tmp_path_factory.mktemp("model") / "m.onnx"
    weights = {"w0": normal(8, 32), "w1": normal(32, 32, seed=1), "w2": normal(32, 4, seed=2)}
    ir.save(analysed(MODEL, weights).model, path)
    np.savez(path.with_name("calib.npz"), x=normal(64, 8, seed=3))
    return path


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Channels removed, weights untouched."""
    out = tmp_path_factory.mktemp("plain") / "out"
    sparsecc.compile(model, ratio=0.5, measure=False, output=out)
    return out


@pytest.fixture(scope="module")
def repaired(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Channels removed, weights refitted: zeroing tells nothing."""
    out = tmp_path_factory.mktemp("repaired") / "out"
    sparsecc.compile(model, ratio=0.5, calib=model.with_name("calib.npz"), measure=False, output=out)
    return out


def statuses(found: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["status"] for check in found["checks"]}


def test_all_checks_made_and_passed_are_sound(
    plain: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sparsecc.verify(plain, model=model)
    assert set(statuses(found).values()) == {"ok"}
    assert set(statuses(found)) == {"manifest", "loads", "fidelity", "original", "numerics"}
    assert found["is_sound"]
    assert errors_of(capsys, "verify", plain, "--model", model)[0] == 0


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        ((), []),
        (("--calib", "calib.npz"), ["--calib", "calib.npz"]),
        (("--ratio", "0", "--quantize", "fp16"), ["--reproduce"]),
    ],
)
def test_the_command_that_compile_names_checks_all(
    model: Path,
    flags: tuple[str, ...],
    how: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setenv("COLUMNS", "500")  # in one line, however long the folder's name is
    asked = ["m.onnx", "--ratio", "0.5", "--no-measure", "-o", tmp_path.name, *flags]
    assert main(["compile", *asked]) == 0
    (said,) = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: sparsecc verify")
    )
    words = shlex.split(said)
    assert words[3:] == [tmp_path.name, "--model", "m.onnx", *how]
    assert main(words[2:]) == 0


def test_what_is_not_checked_is_said_with_why(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = sparsecc.verify(plain)
    assert statuses(found)["fidelity"] == "ok"
    assert statuses(found)["numerics"] == statuses(found)["original"] == "not checked"
    assert (found["ok"], found["is_sound"]) == (True, False)
    assert errors_of(capsys, "verify", plain)[0] == 4


def test_samples_that_a_compile_had_not_explain_what_comes_out_different(plain: Path, model: Path) -> None:
    given = {"calib": str(model.with_name("calib.npz"))}
    again = reproduced(Bundle.open(plain), model, given, lambda event: None)
    assert again["ok"] is False
    assert again["detail"].endswith("it was compiled without 'calib', which is given here")


def test_samples_are_not_held_against_what_random_inputs_told(plain: Path, model: Path) -> None:
    found = sparsecc.verify(plain, model=model, calib=model.with_name("calib.npz"))
    numerics = next(check for check in found["checks"] if check["check"] == "numerics")
    assert numerics["status"] == "ok"
    assert "largest relative error" in numerics["detail"]


@pytest.mark.parametrize("how", [{"calib": "calib.npz"}, {"calib": "calib.npz", "reproduce": True}])
def test_repaired_weights_are_checked_on_samples_or_by_compiling_again(
    how: dict[str, Any], repaired: Path, model: Path
) -> None:
    unchecked = sparsecc.verify(repaired, model=model)
    assert statuses(unchecked)["numerics"] == "not checked"
    assert "--reproduce, or --calib" in unchecked["checks"][-1]["detail"]
    given = how | {"calib": model.with_name("calib.npz")}
    assert sparsecc.verify(repaired, model=model, **given)["is_sound"]


def broken(bundle: Path, folder: Path) -> Path:
    """A copy whose last weight is rolled by one, sealed anew: only outputs tell."""
    out = folder / "broken"
    shutil.copytree(bundle, out)
    made = onnx.load(out / "model.onnx")
    weight = max(made.graph.initializer, key=lambda one: int(np.prod(one.dims)))
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.roll(array, 1, axis=0), weight.name))
    onnx.save(made, out / "model.onnx")
    seal(out)
    return out


def test_other_outputs_than_were_told_fail(
    repaired: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = broken(repaired, tmp_path)
    with pytest.raises(
        GoalError, match=r"fidelity failed: on the stored probes outputs are within .* dB was told"
    ):
        sparsecc.verify(out)
    (out / PROBES).unlink()
    seal(out)
    found = sparsecc.verify(out)
    assert statuses(found)["fidelity"] == "not checked"
    with pytest.raises(GoalError, match=r"numerics failed: worst part .* was told"):
        sparsecc.verify(out, model=model, calib=model.with_name("calib.npz"))
    assert errors_of(capsys, "verify", out)[0] == 4


def test_samples_need_the_original(plain: Path, model: Path) -> None:
    with pytest.raises(InputError, match="beside the model it was compiled from: give it with --model"):
        sparsecc.verify(plain, calib=model.with_name("calib.npz"))


def test_stored_probes_are_small_and_hold_no_sample(repaired: Path, model: Path, tmp_path: Path) -> None:
    feeds, stored = inputs_of(repaired / PROBES)
    samples = np.load(model.with_name("calib.npz"))["x"]
    assert not any(np.array_equal(row, sample) for row in feeds["x"] for sample in samples)
    assert set(stored) == {"dense", "told"}
    draw = np.random.default_rng(0)
    image = {"image": draw.standard_normal((2, 3, 224, 224)).astype(np.float32)}
    maps = {"maps": draw.standard_normal((2, 21, 224, 224)).astype(np.float32)}
    keep(tmp_path / PROBES, rounded(image), maps, maps)
    assert (tmp_path / PROBES).stat().st_size < LARGEST
    keep(tmp_path / "whole.npz", image, maps, maps)
    assert not (tmp_path / "whole.npz").exists()


def test_few_numbers_are_no_noise() -> None:
    rates: dict[str, np.ndarray] = {"rate": np.array([0.3], np.float32), "n": np.arange(100)}
    assert all(np.array_equal(array, rates[name]) for name, array in rounded(rates).items())


def test_probes_of_a_stranger_are_read_with_care(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zeros = np.zeros(70 << 20, np.uint8)
    pickled = np.array([{1}], dtype=object)
    named: Any = {"in:other": np.zeros(3, np.float32)}
    writers: list[Callable[[Path], Any]] = [
        lambda file: file.write_bytes(b"no zip"),
        lambda file: np.savez_compressed(file, zeros),
        lambda file: np.savez(file, pickled),
        lambda file: np.savez(file, **named),
    ]
    for number, write in enumerate(writers):
        out = tmp_path / str(number)
        shutil.copytree(plain, out)
        write(out / PROBES)
        seal(out)
        code, lines = errors_of(capsys, "verify", out)
        assert (code in (1, 2), len(lines)) == (True, 1), (number, lines)
        assert PROBES in lines[0]
