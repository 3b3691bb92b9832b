"""The Python face in a shell and a notebook: results, progress and errors as their users see them."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest

import sparsecc
from sparsecc.cli import main
from sparsecc.cli.compile_view import _next_steps
from sparsecc.cli.view import Line
from sparsecc.errors import InputError, MissingPackageError, SparseccError, UnavailableError
from sparsecc.report.tracking import figures, logger_of
from tests.test_layout import ROOT

MODEL = ROOT / "models" / "digits_resnet.onnx"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> sparsecc.CompileResult:
    return sparsecc.compile(MODEL, ratio=0.5, output=tmp_path_factory.mktemp("o") / "small", measure=False)


def test_a_result_has_the_figures_as_attributes(result: sparsecc.CompileResult) -> None:
    assert result.removed == pytest.approx(0.5, abs=0.03)
    assert result.is_proved
    assert result.bundle is not None
    assert result.model == result.bundle / "model.onnx"
    assert (result.speedup, result.speedup_interval, result.accuracy) == (None, None, None)
    told: dict[str, Any] = {
        "latency": {"speedup": {"estimate": 1.5, "ci95": [1.4, 1.6]}},
        "accuracy": {"metric": "top1", "before": 0.9, "after": 0.8},
    }
    other = sparsecc.CompileResult(None, {**result.report, **told}, {})
    assert (other.speedup, other.speedup_interval, other.accuracy) == (1.5, (1.4, 1.6), (0.9, 0.8))
    assert (other.model, other.warnings) == (None, result.report["warnings"])


def test_a_result_is_one_line_in_a_shell_and_a_page_in_a_notebook(result: sparsecc.CompileResult) -> None:
    text = repr(result)
    assert text.startswith(f"<CompileResult {result.bundle}: ")
    assert "fewer MACs" in text
    assert "\n" not in text
    assert len(text) < 400
    page = result._repr_html_()
    assert page.startswith("<iframe srcdoc=")
    assert page.count('"') == 6  # the page inside is escaped: it cannot leave its frame
    assert "digits_resnet" in page


def test_an_error_of_the_worker_is_short_and_keeps_its_trace(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError) as caught:
        sparsecc.inspect(tmp_path / "bad.onnx")
    told = "".join(traceback.format_exception(caught.value))
    assert "open_model.py" not in told
    assert "open_model.py" in caught.value.in_worker


def test_a_package_that_lacks_is_an_import_error() -> None:
    assert issubclass(MissingPackageError, ImportError)
    assert issubclass(MissingPackageError, UnavailableError)
    assert MissingPackageError.exit_code == UnavailableError.exit_code
    assert issubclass(MissingPackageError, SparseccError)


def test_a_notebook_shows_progress_and_the_page(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell(f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sparsecc"),
        nbformat.v4.new_code_cell(
            f"sparsecc.compile({str(MODEL)!r}, ratio=0.3, measure=False, output='out')"
        ),
    ]
    client.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    progress, shown = book.cells[1].outputs
    assert progress["output_type"] == "display_data"
    assert progress["data"]["text/plain"].startswith("sparsecc: ")
    assert "%" in progress["data"]["text/plain"]
    assert shown["data"]["text/html"].startswith("<iframe")
    assert shown["data"]["text/plain"].startswith(f"<CompileResult {tmp_path}/out: ")


def test_a_hook_gets_the_result_and_is_looked_for_first(tmp_path: Path) -> None:
    heard: list[sparsecc.CompileResult] = []
    notes: list[str] = []
    made = sparsecc.compile(
        MODEL,
        ratio=0.2,
        output=tmp_path / "out",
        measure=False,
        log_to=heard.append,
        on_event=lambda event: notes.append(event.get("note", "")),
    )
    assert heard == [made]
    assert any(note.startswith("--criterion auto is ") for note in notes)
    assert any(note.startswith("--recover auto is ") for note in notes)
    with pytest.raises(InputError, match="--log-to nowhere: write mlflow"):
        sparsecc.compile("missing.onnx", log_to="nowhere")
    (tmp_path / "hook.py").write_text("def log(result): result.report['heard'] = True\n")
    logger_of(f"{tmp_path / 'hook.py'}:log")(made)
    assert made.report["heard"]


def test_mlflow_gets_parameters_figures_and_files(
    result: sparsecc.CompileResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra: pip install 'sparsecc[tracking]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path}/runs")
    logger_of("mlflow")(result)
    (run,) = mlflow.search_runs(output_format="list")
    assert run.data.params["ratio"] == "0.5"
    assert run.data.params["model"] == "digits_resnet.onnx"
    assert run.data.metrics == pytest.approx(figures(result))
    assert run.data.metrics["removed"] == pytest.approx(0.5, abs=0.03)
    names = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert names == {"report.json", "report.html", "plan.json", "recipe.yaml"}


def test_help_is_a_word_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    assert "Commands:" in capsys.readouterr().out
    assert main(["help", "gate"]) == 0
    assert "--max-regression" in capsys.readouterr().out
    assert main(["help", "gaet"]) == 2
    assert "did you mean 'gate'" in capsys.readouterr().err


def test_after_an_emitted_model_comes_its_build() -> None:
    told = {"bundle": "out", "build": {"emitted": True}}
    lines = [block.text for block in _next_steps(told) if isinstance(block, Line)]
    assert any(line.startswith("Next: sparsecc build out") for line in lines)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({}, "Next: ask for something"),
        ({"chosen": {"ratio": 0.0, "levers": {}}}, "Nothing faster that loses nothing measurable was found"),
        ({"chosen": {"ratio": 0.0, "levers": {"fuse": True}}}, "Next: --eval"),
    ],
)
def test_who_asked_for_nothing_is_told_what_came_of_it(chosen: dict[str, Any], told: str) -> None:
    report = {"bundle": "out", "asked": {"ratio": 0.0, "metric": "macs", "quantize": None}, **chosen}
    lines = [block.text for block in _next_steps(report) if isinstance(block, Line)]
    assert lines[2].startswith(told)
