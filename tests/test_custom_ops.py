"""`--custom-ops`: operators of the user's own, from a real library, in every command that runs a model."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import onnx
import pytest
import yaml

import sparsecc
from sparsecc.bundle.folder import Bundle
from sparsecc.cli import main
from sparsecc.errors import InputError, SparseccError, WorkerError
from sparsecc.runtime.custom_ops import loaded
from sparsecc.system.process import end_after
from sparsecc.worker.parent import Worker
from tests import custom_ops


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return custom_ops.compiled(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return custom_ops.network(tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.fixture(scope="module")
def bundle(library: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled") / "out"
    sparsecc.compile(model, ratio=0.3, output=folder, custom_ops=[library], measure=False)
    return folder


def test_what_their_operators_touch_stays_and_all_else_is_proved(bundle: Path) -> None:
    report, plan = Bundle.open(bundle).report, Bundle.open(bundle).plan
    assert report["verification"]["status"] == "proved"
    kept = {group["members"][0][0]: group["kept"] for group in plan["groups"]}
    assert max(kept["first.weight"], kept["third.weight"]) < 64, "both sides of the operator lose channels"
    weights = {one.name: one.dims for one in onnx.load(bundle / "model.onnx").graph.initializer}
    assert next(dims[0] for name, dims in weights.items() if "second" in name) == 32


def test_its_shapes_are_found_by_running_it(library: Path, model: Path) -> None:
    """Without them nothing behind the operator is known, unless the file tells the shape."""
    free = sparsecc.inspect(model, custom_ops=[library])["prunable"]["params_share"]
    blind = sparsecc.inspect(model)
    assert free > 0.99 > 0.7 > blind["prunable"]["params_share"]
    reasons = {pin["reason"] for pin in sparsecc.inspect(model, custom_ops=[library])["pins"]}
    assert "PairSum 'pairs': no rule for operator mine.PairSum" in reasons


def test_without_the_library_the_error_names_the_option(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine:PairSum.*--custom-ops"):
        sparsecc.compile(model, ratio=0.3, output=tmp_path / "out", measure=False)
    assert not (tmp_path / "out").exists()


def test_every_command_that_runs_a_model_takes_it(
    library: Path, model: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--custom-ops", str(library), "--json")
    for command in (
        ("profile", str(model), "--layers"),
        ("compare", str(model), str(bundle)),
        ("gate", str(bundle), "--baseline", str(model), "--max-regression", "90%"),
        ("verify", str(bundle), "--model", str(model)),
    ):
        assert main([*command, *own]) in (0, 4), command
        found = json.loads(capsys.readouterr().out)
        if command[0] == "verify":
            assert found["is_sound"]
        assert main([*command]) not in (0, 70), "without the library it cannot run"
        capsys.readouterr()


def test_the_command_that_compile_names_has_the_library(
    library: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--custom-ops", str(library)]
    asked = [str(model), "--ratio", "0.3", "--no-measure", "-o", str(tmp_path / "out"), *own]
    assert main(["compile", *asked, "--json"]) == 0
    words = shlex.split(json.loads(capsys.readouterr().out)["verify"])
    assert words[-2:] == own
    assert main(words[1:]) == 0


def test_a_measured_compile_loads_it_in_every_process(library: Path, model: Path, tmp_path: Path) -> None:
    made = sparsecc.compile(model, ratio=0.2, output=tmp_path / "out", custom_ops=[library], next_steps=False)
    assert made.report["latency"]["speedup"]["estimate"] > 0
    assert made.report["after"]["memory_bytes"] > 0


def test_a_recipe_and_a_bundle_load_nothing(
    library: Path, model: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((bundle / "recipe.yaml").read_text())
    assert recipe["custom_ops"] == [str(library)], "told, as what was asked"
    with pytest.raises(InputError, match=r"mine:PairSum.*--custom-ops"):
        sparsecc.verify(bundle, model=model, reproduce=True)
    assert sparsecc.verify(bundle, model=model, reproduce=True, custom_ops=[library])["is_sound"]
    out = str(tmp_path / "again")
    code = main(["compile", str(model), "--recipe", str(bundle / "recipe.yaml"), "-o", out])
    assert code == 2
    assert "'custom_ops' is " in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_task_leaves_no_library_to_the_next(library: Path, model: Path, tmp_path: Path) -> None:
    """Points of a search share a worker."""
    from sparsecc import worker
    from sparsecc.tasks.calls import run_task

    request = {"model": str(model), "threads": 1, "inputs": {}}
    with worker.kept(tmp_path):
        run_task("sparsecc.tasks.profile:profile", request, None, libraries=[library])
        with pytest.raises(InputError, match="not a registered function"):
            run_task("sparsecc.tasks.profile:profile", request, None)


@pytest.mark.parametrize("kind", ["missing", "text", "empty"])
def test_what_is_no_library_is_one_line(model: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lib.so"
    if kind != "missing":
        path.write_bytes(b"not a library" if kind == "text" else b"")
    with pytest.raises(InputError, match=r"--custom-ops '.*lib\.so': .*: (check the path|give a library)"):
        sparsecc.inspect(model, custom_ops=[path])


def test_boards_have_no_such_library(library: Path, model: Path) -> None:
    with pytest.raises(InputError, match="this machine alone"):
        sparsecc.profile(model, device="ssh://nobody@192.0.2.1", custom_ops=[library])


def built(folder: Path, source: str) -> Path:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler")
    (folder / "own.c").write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "own.so", folder / "own.c"], check=True)
    return folder / "own.so"


def test_a_library_that_dies_costs_a_line(model: Path, tmp_path: Path) -> None:
    source = "#include <stdlib.h>\nvoid* RegisterCustomOps(void* a, void* b) { abort(); }\n"
    with pytest.raises(SparseccError) as caught:
        sparsecc.inspect(model, custom_ops=[built(tmp_path, source)])
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def test_a_library_whose_load_does_not_return_costs_a_line(model: Path, tmp_path: Path) -> None:
    source = "#include <unistd.h>\n__attribute__((constructor)) void begin(void) { for (;;) sleep(1); }\n"
    request = {
        "task": "sparsecc.tasks.inspect:inspect",
        "request": {"model": str(model), "options": {}, "why": None},
        "libraries": [str(built(tmp_path, source))],
        "loading": 1.0,
    }
    with Worker(allowed=("tests",)) as worker, pytest.raises(WorkerError) as caught:
        worker.run("tests.worker_tasks:with_libraries", request, deadline=60)
    assert "the worker was ended while " in str(caught.value)
    assert "SIGALRM" not in str(caught.value)
    assert "while loading --custom-ops 'own.so' (at most 1 s): it went on" in str(caught.value)


def test_the_deadline_of_a_worker_outlives_the_load_of_a_library(library: Path) -> None:
    end_after(1000)
    try:
        with loaded([str(library)]):
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
    finally:
        end_after(0)
