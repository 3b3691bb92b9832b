"""`--last-logits`: a head that reads one position, and gives for it what it gave before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sparsecc import api
from sparsecc.errors import InputError
from sparsecc.runtime.session import open_session
from tests.decoder_models import Decoder
from tests.rule_checks import model_of


def test_the_last_position_is_what_it_was(tmp_path: Path) -> None:
    folder = Decoder().folder(tmp_path / "dense")
    result = api.compile(
        folder, output=tmp_path / "out", ratio=0, last_logits=True, measure=False, calib="none"
    )
    assert result.report["verification"]["status"] == "proved"
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    (logits,) = [value for value in graph.output if value.name == "logits"]
    assert logits.type.tensor_type.shape.dim[1].dim_value == 1
    feeds: dict[str, np.ndarray] = {
        "input_ids": np.array([[5, 9, 2, 33, 17]]),
        "attention_mask": np.ones((1, 5), np.int64),
    }
    feeds |= {v.name: np.zeros((1, 4, 0, 16), np.float32) for v in graph.input if v.name.startswith("past")}
    wanted, found = (
        open_session(file, level="none").run(feeds)["logits"]
        for file in (folder / "model.onnx", tmp_path / "out" / "model.onnx")
    )
    np.testing.assert_allclose(found, wanted[:, -1:], rtol=1e-5, atol=1e-6)
    checks = {c["check"]: c["status"] for c in api.verify(tmp_path / "out", model=folder)["checks"]}
    assert set(checks.values()) == {"ok"}


def test_what_is_no_decoder_is_refused_at_once(tmp_path: Path) -> None:
    text = "(float[N,8] x, float[8,4] w) => (float[N,4] y) { y = MatMul(x, w) }"
    onnx.save(model_of(text), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="--last-logits is for decoders"):
        api.compile(tmp_path / "m.onnx", output=tmp_path / "out", last_logits=True)
