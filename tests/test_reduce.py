"""Failing models become small, and stay failing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import pytest
from onnx import parser

from sparsecc.cli import main
from sparsecc.errors import InputError
from sparsecc.ir.extract import cut_out
from sparsecc.tasks.reduce import reduce_model, reduce_nodes


def chain(length: int, odd: dict[int, str]) -> onnx.ModelProto:
    """A chain of Relu nodes, others at the places named."""
    lines = [f"v{i + 1} = {odd.get(i, 'Relu')} (v{i})" for i in range(length - 1)] + [
        f"y = Relu (v{length - 1})"
    ]
    text = "\n".join(lines)
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[2] v0) => (float[2] y) {{ {text} }}'
    )


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_one_guilty_node_is_left() -> None:
    model = chain(40, {23: "Cos"})
    result = reduce_nodes(model, lambda m: "Cos" in kinds(m))
    assert kinds(result.model) == ["Cos"]
    assert result.trials < 60
    onnx.checker.check_model(result.model)


def test_two_guilty_nodes_apart_are_left() -> None:
    model = chain(33, {3: "Cos", 29: "Sin"})
    result = reduce_nodes(model, lambda m: {"Cos", "Sin"} <= set(kinds(m)))
    assert kinds(result.model) == ["Cos", "Sin"]


def test_a_cut_model_is_valid() -> None:
    model = onnx.load(Path(__file__).resolve().parents[1] / "models" / "digits_resnet.onnx")
    for start in range(0, len(model.graph.node), 7):
        onnx.checker.check_model(cut_out(model, range(start, min(start + 4, len(model.graph.node)))))


CHECK = "import onnx, sys; sys.exit(7 * any(n.op_type == 'Cos' for n in onnx.load(sys.argv[1]).graph.node))"


def test_the_command_line_reduces_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(chain(6, {2: "Cos"}), tmp_path / "m.onnx")
    out = tmp_path / "small.onnx"
    check = f'{sys.executable} -c "{CHECK}"'
    assert main(["reduce", str(tmp_path / "m.onnx"), "--check", check, "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["nodes"] == {"before": 6, "after": 1}
    assert found["exit_code"] == 7
    assert kinds(onnx.load(out)) == ["Cos"]


@pytest.mark.parametrize(
    ("check", "why"), [("true", "must fail"), ("", "empty"), ("'", "quotes"), ("/no/such", "cannot run")]
)
def test_checks_that_show_nothing_are_refused(tmp_path: Path, check: str, why: str) -> None:
    onnx.save(chain(3, {}), tmp_path / "m.onnx")
    request = {"model": str(tmp_path / "m.onnx"), "output": str(tmp_path / "o.onnx"), "check": check}
    with pytest.raises(InputError, match=why):
        reduce_model(request, lambda event: None)


@pytest.mark.parametrize("output", ["none/o.onnx", "there.onnx", "link.onnx"])
def test_where_the_result_goes_is_asked_first(output: str, tmp_path: Path) -> None:
    onnx.save(chain(3, {}), tmp_path / "m.onnx")
    (tmp_path / "there.onnx").touch()
    (tmp_path / "link.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    check = f"{sys.executable} -c \"open({str(tmp_path / 'ran')!r}, 'w')\""
    request = {"model": str(tmp_path / "m.onnx"), "output": str(tmp_path / output), "check": check}
    with pytest.raises(InputError, match=r"exists already|does not exist"):
        reduce_model(request, lambda event: None)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "elsewhere.onnx").exists()


def test_a_check_that_leaves_a_process_behind_still_has_its_exit_code(tmp_path: Path) -> None:
    onnx.save(chain(2, {}), tmp_path / "m.onnx")
    check = "sh -c 'sleep 20 & exit 3'"
    request = {
        "model": str(tmp_path / "m.onnx"),
        "output": str(tmp_path / "o.onnx"),
        "check": check,
        "seconds": 9,
    }
    assert reduce_model(request, lambda event: None)["exit_code"] == 3
