"""Whose fault it is: the user's file runs and ours does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.cli import main
from sparsecc.compilation import Compilation
from sparsecc.errors import InputError, InternalError
from sparsecc.graph.rewrite import Cut, remove
from sparsecc.options import CompileOptions
from sparsecc.runtime.session import open_session
from sparsecc.system.scratch import Scratch
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
