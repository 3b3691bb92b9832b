"""Torch modules and exported programs given to the compiler as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsecc
from sparsecc.errors import InputError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript", reason="torch exports with it")

from sparsecc.runtime.session import open_session  # noqa: E402
from sparsecc.torch.export import to_onnx  # noqa: E402

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(32, 4)
    )


def test_a_module_is_compiled_and_left_as_it_was(tmp_path: Path) -> None:
    module = network().train()
    made = sparsecc.compile(
        module, example_inputs=(X,), calib=[X], ratio=0.5, align=1, measure=False, output=tmp_path / "out"
    )
    assert module.training
    assert made.is_proved
    assert made.removed == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("form", ["tuple", "mapping", "tensor", "program"])
def test_every_form_of_an_example_gives_the_module(form: str, tmp_path: Path) -> None:
    module = network()
    example = {"tuple": (X,), "mapping": {"input": X}, "tensor": X, "program": None}[form]
    given = torch.export.export(module.eval(), (X,)) if form == "program" else module
    to_onnx(given, example, tmp_path / "m.onnx")
    runner = open_session(tmp_path / "m.onnx")
    (found,) = runner.run({"input": X.numpy()}).values()
    assert np.allclose(found, module.eval()(X).detach().numpy(), atol=1e-5)


def test_what_cannot_be_exported_is_told() -> None:
    with pytest.raises(InputError, match="Sequential: give example_inputs="):
        sparsecc.compile(network(), ratio=0.5)
    script = torch.jit.trace(network().eval(), X)
    with pytest.raises(InputError, match="TorchScript module cannot be exported: give the module"):
        sparsecc.compile(script, example_inputs=(X,), ratio=0.5)

    class Odd(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x + int(x.sum().item() > 0 and input("?") == "y")

    with pytest.raises(InputError, match="Odd: torch cannot export it"):
        sparsecc.compile(Odd(), example_inputs=(X,), ratio=0.5)
