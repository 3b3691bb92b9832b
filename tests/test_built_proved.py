"""What is built is held against its graph: what befalls its constants is noticed, or is "not proved"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.backends.ort import cpu
from sparsecc.errors import GoalError, InternalError
from sparsecc.verify import probes
from tests.test_planted import BLIND, among_rows, verification


def spoil_built(
    monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[np.ndarray], np.ndarray]
) -> None:
    """From here on the constant `name` of what is built goes through `spoil`."""
    right = cpu._write_plain

    def write(model: ir.Model, path: Path, above: int) -> None:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        wrong = np.ascontiguousarray(spoil(tensor.numpy().copy()))
        model.graph.initializers[name].const_value = ir.Tensor(wrong, name=name)
        right(model, path, above)

    monkeypatch.setattr(cpu, "_write_plain", write)


def infinite(array: np.ndarray) -> np.ndarray:
    array.reshape(-1)[0] = np.inf
    return array


SPOILT: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "rows": lambda a: np.roll(a, 1, axis=0),
    "scales": lambda a: a * np.linspace(0.5, 1.5, a.shape[1], dtype=np.float32),
    "infinity": infinite,
}
"""What may befall a constant of what is built."""


@pytest.mark.parametrize("fault", SPOILT)
@pytest.mark.parametrize("kind", [*BLIND, "among_rows"])
def test_what_is_built_wrongly_is_noticed(
    kind: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On models whose outputs show little on random inputs, or are moved by rounding without bounds."""
    spoil_built(monkeypatch, "w2", SPOILT[fault])
    model = among_rows(0.5) if kind == "among_rows" else BLIND[kind]()
    try:
        found = verification(model, tmp_path)
    except (InternalError, GoalError):
        return
    assert found["status"] == "not proved"
    assert "the built model" in found["reason"]


def test_only_a_jump_explains_what_was_built_is_no_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding makes NaN of the places that this model computes, which any difference would hide behind."""
    spoil_built(monkeypatch, "w3", lambda a: np.roll(a, 1, axis=0))
    monkeypatch.setattr(probes, "changed_constants", lambda model, built: [])
    found = verification(among_rows(0.5), tmp_path)
    assert found["status"] == "not proved"
    assert "the built model differs from the graph it was built from by" in found["reason"]
    with pytest.raises(InternalError, match="the built model differs"):
        verification(among_rows(0.0), tmp_path)


def test_what_is_built_is_run_on_the_inputs_that_showed_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_built(monkeypatch, "w2", SPOILT["rows"])
    for kind in ("nan", "dead_relu", "saturated", "rounded"):
        with pytest.raises(InternalError, match="the built model differs"):
            verification(BLIND[kind](), tmp_path)
