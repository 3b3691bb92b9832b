"""What cannot be done is refused before the model is read: unknown methods, and those that lack their samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sparsecc
from sparsecc.allocators import ALLOCATORS
from sparsecc.cli import main
from sparsecc.criteria import CRITERIA
from sparsecc.decide.channels import require_methods
from sparsecc.errors import InputError
from sparsecc.options import CompileOptions


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08\x3a\xff\xff\xff\xff\x0f")
    return path


REFUSED = [
    ({"criterion": "wonda"}, "unknown criterion 'wonda': did you mean 'wanda'"),
    ({"allocator": "unifrom"}, "unknown allocator 'unifrom': did you mean 'uniform'"),
    *(
        ({"criterion": name}, f"criterion {name} looks at activations: give samples with --calib, or use l2")
        for name, row in CRITERIA.items()
        if row.needs_data
    ),
    *(
        (
            {"criterion": name, "calib": "x.npz"},
            f"{name} compares two sets of samples: .* --calib-general",
        )
        for name, row in CRITERIA.items()
        if row.needs_general
    ),
    *(
        ({"allocator": name}, f"allocator {name} runs the model on samples: .* --calib, or use global")
        for name in ("angular", "sequential", "evolution")
    ),
    ({"allocator": "evolution", "calib": "synthetic"}, "runs the model on samples"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_what_cannot_be_says_what_to_do(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_methods(CompileOptions.of(options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "obs"}, "give samples with --calib"),
        ({"criterion": "obs", "ratio": 0.5}, "give samples with --calib"),
        ({"quantize": "int8"}, "int8 needs calibration data: give --calib PATH, or --calib synthetic"),
        ({"quantize": "int4", "quantize_options": {"block": "17"}}, "give a power of two"),
        ({"sparsity": "2:4"}, "target 'onnxruntime' runs no '2:4' pattern faster"),
    ],
    ids=str,
)
def test_it_is_refused_before_the_model_is_read(
    options: dict[str, Any], message: str, unreadable: Path
) -> None:
    with pytest.raises(InputError, match=message):
        sparsecc.compile(unreadable, dry_run=True, **options)


@pytest.mark.parametrize(("option", "known"), [("--criterion", CRITERIA), ("--allocator", ALLOCATORS)])
def test_the_one_line_about_an_unknown_name_has_room_for_all(
    option: str, known: dict[str, object], unreadable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(unreadable), "--ratio", "0.5", "-q", option, "nothing"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"are auto, {', '.join(known)}")
