"""One compilation: samples are read once, stages stand in one list."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sparsecc.compilation import Compilation
from sparsecc.data.samples import CalibrationSet
from sparsecc.options import CompileOptions
from sparsecc.system.progress import time_left
from sparsecc.system.scratch import Scratch
from sparsecc.tasks import compile_to_goal
from sparsecc.tasks.compile import compile_model
from sparsecc.tasks.stages import DECIDING, MAKING, STAGES, Work, begin, walk
from tests.repair_models import mlp, normal
from tests.test_layout import SHIPPED

COUNTED = """
import sys
import re
from pathlib import Path

import numpy as np

def samples():
    calls = Path(__file__).with_name("calls")
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    generator = np.random.default_rng(0)
    for _ in range({batches}):
        yield {{"image": generator.standard_normal((4, 1, 16, 16)).astype(np.float32)}}
"""


def counted(folder: Path, batches: int = 6) -> tuple[str, Path]:
    """A user's function of samples, and the file that has a letter for every call of it."""
    (folder / "mine.py").write_text(COUNTED.format(batches=batches))
    return f"{folder / 'mine.py'}:samples", folder / "calls"


@pytest.mark.parametrize("budget", [{"ratio": 0.3}, {"size": 390e3}], ids=["ratio", "goal"])
def test_samples_are_read_once(budget: dict[str, float], models_dir: Path, tmp_path: Path) -> None:
    spec, calls = counted(tmp_path)
    asked: dict[str, object] = {"prune": ["layers", "channels"], "quantize": "int8"}
    if "size" in budget:
        asked = {"criterion": "l2", "allocator": "uniform", "quantize": "fp16"}
    request = {
        "model": str(models_dir / "digits_resnet.onnx"),
        "output": str(tmp_path / "out"),
        "options": {**budget, **asked, "measure": False, "calib": spec},
    }
    made = compile_to_goal.compile_model(request, lambda event: None)
    assert made["report"]["fidelity"]["data"] == "held-out samples"
    rows = [row for row in made["report"]["passes"] if row["name"] == "repair"]
    assert [row["facts"]["samples"] for row in rows if "facts" in row] == [16]
    assert calls.read_text() == "x"


def test_joined_samples_are_those_that_were_read(tmp_path: Path) -> None:
    """Nine samples: every fourth is held out, the others are joined, and the batches become views of these."""
    np.savez(tmp_path / "a.npz", x=normal(9, 6))
    once, again = (CalibrationSet(str(tmp_path), mlp().model) for _ in range(2))
    first = [batch["x"].copy() for batch in once.batches(3)]
    (joined,) = once.samples.batches
    assert joined["x"].shape == (7, 6)
    np.testing.assert_array_equal(np.concatenate(first), joined["x"][:3])
    np.testing.assert_array_equal(once.held_out.batches[0]["x"], normal(9, 6)[3::4])
    assert [np.shares_memory(batch["x"], joined["x"]) for batch in once.batches(20)] == [True] * 7
    for ours, theirs in zip(once.batches(20), again.batches(20), strict=True):
        np.testing.assert_array_equal(ours["x"], theirs["x"])


def test_samples_fit_the_model_as_it_was_given(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", normal(4, 6))
    model = mlp().model
    found = CalibrationSet(str(tmp_path / "a.npy"), model)
    model.graph.inputs[0].shape = None
    model.graph.inputs[0].name = "other"
    assert [list(batch) for batch in found.batches(9)] == [["x"]] * 3


def test_a_dry_run_is_a_prefix_of_what_makes_a_model() -> None:
    assert [stage.name for stage in DECIDING] == ["load", "choose"]
    assert MAKING[: len(DECIDING)] == DECIDING
    assert [stage for stage in STAGES if stage in MAKING] == list(MAKING)
    shares = [stage.share for stage in STAGES]
    assert shares == sorted(shares)


def test_a_trial_makes_what_a_compile_makes(models_dir: Path, tmp_path: Path) -> None:
    model, options = models_dir / "digits_resnet.onnx", {"ratio": 0.4, "measure": False, "quantize": "fp16"}
    request = {"model": str(model), "output": str(tmp_path / "out"), "options": options}
    compile_model(request, lambda event: None)
    asked = CompileOptions.of(options)
    (tmp_path / "trial").mkdir()
    compilation = Compilation(model, asked, Scratch(tmp_path / "scratch"))
    begin(compilation)
    for _ in range(2):
        work = walk(Work(compilation.again(asked), tmp_path / "trial"), MAKING)
        assert work.compiled.read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()
    assert not compilation.records


def test_progress_never_falls_and_every_stage_is_told(models_dir: Path, tmp_path: Path) -> None:
    told: list[dict[str, object]] = []
    options = {"ratio": 0.4, "measure": False, "quantize": "fp16"}
    model = str(models_dir / "digits_resnet.onnx")
    request = {"model": model, "output": str(tmp_path / "out"), "options": options}
    compile_model(request, told.append)
    shares = [event["share"] for event in told]
    assert shares == sorted(shares)  # type: ignore[type-var]
    names = [event["stage"] for event in told if "say" not in event]
    stages = [stage.name for stage in STAGES]
    assert list(dict.fromkeys(name for name in names if name in stages)) == stages


@pytest.mark.parametrize(
    ("seconds", "share", "told"),
    [
        (1.0, 0.1, ""),
        (10.0, 0.01, ""),
        (10.0, 0.9, ""),
        (3.0, 0.5, "about 3 s left"),
        (9.0, 0.3, "about 20 s left"),
        (60.0, 0.1, "about 9 min left"),
    ],
)
def test_how_much_longer_work_takes_is_told_where_that_is_long(
    seconds: float, share: float, told: str
) -> None:
    assert time_left(seconds, share) == told


def test_every_name_in_the_scratch_folder_is_a_property() -> None:
    """Others get the path that is theirs; the folder itself goes only to what makes files of no name."""
    kept = Scratch(Path("kept"))
    named = [getattr(kept, name) for name, one in vars(Scratch).items() if isinstance(one, property)]
    assert len({path.relative_to(kept.folder).parts[0] for path in named}) == len(named) > 15
    for path in SHIPPED:
        for use in re.findall(r".*scratch\.folder\b.*", path.read_text()):
            assert re.search(r"Spool\(|dir=|private_copy\(|to_integer_operators\(", use), (path.name, use)
