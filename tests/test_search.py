"""Searches: the front, going on after a kill, points that come out the same bytes again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import sparsecc
from sparsecc.bundle.folder import Bundle
from sparsecc.cli import main
from sparsecc.errors import GoalError, InputError, SystemFailureError, UnavailableError
from sparsecc.search.front import front, fronts
from sparsecc.search.ledger import Ledger
from sparsecc.search.space import Space, between

QUICK: dict[str, Any] = {"measure": False, "rounds": 0}


def row(
    name: str, macs: int, quality: float | None, speedup: float | None = None, **more: Any
) -> dict[str, Any]:
    shape = {"before": {"macs": 100, "bytes": 10}, "after": {"macs": macs, "bytes": 5}}
    return {
        "id": name,
        "quality": quality,
        "options": {"ratio": 1 - macs / 100},
        **shape,
        "recipe": {},
        "speedup": speedup,
        **more,
    }


# The front and the points between -------------------------------------------------------------------


def test_the_front_holds_what_nothing_beats() -> None:
    rows = [row("a", 80, 0.9), row("b", 50, 0.8), row("c", 60, 0.7), row("d", 30, 0.8), row("e", 80, 0.95)]
    assert front(rows, "macs") == ["d", "e"]
    assert front([*rows, row("f", 10, None)], "macs") == ["d", "e"]
    assert fronts(rows).keys() == {"macs", "bytes"}
    assert fronts([row("a", 80, 0.9, 1.5), row("b", 80, 0.8, 2.0)])["latency"] == ["b", "a"]


def test_new_points_lie_between_neighbours_on_the_front() -> None:
    rows = [row("a", 80, 0.9), row("b", 40, 0.7), row("c", 39, 0.6)]
    rows[1]["options"]["criterion"] = "l2"
    found = between(rows, ["c", "b", "a"])
    assert found == [{"ratio": 0.4}, {"ratio": 0.4, "criterion": "l2"}]


def test_the_grid_is_every_combination_small_ratios_first() -> None:
    points = list(Space(ratios=(0.2, 0.5), criteria=("l1", "l2"), quantizes=(None, "int8")).grid())
    assert len(points) == 8
    assert points[0] == {"ratio": 0.2, "criterion": "l1", "allocator": "auto", "recover": "auto"}
    assert [p["ratio"] for p in points] == [0.2] * 4 + [0.5] * 4


# The ledger -----------------------------------------------------------------------------------------

FOREIGN: list[dict[str, Any]] = [
    {"id": "../../escaped"},
    {"id": "/escaped"},
    {"id": 5},
    {"options": {}},
    {"options": {"ratio": "x"}},
    {"options": {"ratio": 0.5, "criterion": ["l2"]}},
    {"recipe": 5},
    {"before": 3},
    {"after": {"macs": "x", "bytes": 1}},
    {"quality": "<script>"},
    {"quality": float("nan")},
    {"speedup": float("inf")},
    {"accuracy": 5},
    {"error": 5, "recipe": None},
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=str)
def test_a_ledger_of_a_stranger_is_data(foreign: dict[str, Any], tmp_path: Path) -> None:
    """What no search of ours wrote is refused in a line: no file is named by it, and no fault is met later."""
    folder = tmp_path / "deep" / "front"
    folder.mkdir(parents=True)
    line = json.dumps({**row("a", 80, 0.9, model_sha256="m"), **foreign})
    (folder / "points.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="line 1 is no point"), Ledger(folder, "m"):
        pass


@pytest.mark.parametrize("make", ["link", "pipe"])
def test_a_ledger_is_a_plain_file(make: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    path = tmp_path / "points.jsonl"
    path.symlink_to(victim) if make == "link" else os.mkfifo(path)
    with pytest.raises((InputError, SystemFailureError)), Ledger(tmp_path, "m"):
        pass


def test_a_search_follows_no_link_to_or_in_its_folder(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, front = tmp_path / "victim", tmp_path / "front"
    victim.write_text("precious")
    front.mkdir()
    for name in ("front.json", "front.html", ".front.json.new", ".front.html.new"):
        (front / name).symlink_to(victim)
    found = sparsecc.search(models_dir / "digits_lstm.onnx", ratios=[0.3], output=front, **QUICK)
    assert victim.read_text() == "precious"
    assert json.loads((front / "front.json").read_text())["points"] == found["points"]
    (tmp_path / "digits_lstm.search").symlink_to(front)
    monkeypatch.chdir(tmp_path)
    places: list[dict[str, Any]] = [{}, {"output": tmp_path / "digits_lstm.search"}]
    for where in places:
        with pytest.raises(InputError, match=r"digits_lstm\.search is a link: name the folder"):
            sparsecc.search(models_dir / "digits_lstm.onnx", ratios=[0.3], **where, **QUICK)
    (front / "points").rename(tmp_path / "elsewhere")
    (front / "points").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"):
        sparsecc.search(models_dir / "digits_lstm.onnx", ratios=[0.3], output=front, **QUICK)


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger:
        ledger.add(row("a", 80, 0.9, model_sha256="m"))
    with (tmp_path / "points.jsonl").open("ab") as file:
        file.write(b'{"id": "b", "model_sha')
    with Ledger(tmp_path, "m") as ledger:
        assert list(ledger.rows) == ["a"]
        ledger.add(row("c", 80, 0.9, model_sha256="m"))
    with Ledger(tmp_path, "m") as ledger:
        assert list(ledger.rows) == ["a", "c"]


def test_a_folder_of_another_model_or_of_anything_else_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger:
        ledger.add(row("a", 80, 0.9, model_sha256="m"))
        with pytest.raises(InputError, match="another search is writing there"), Ledger(tmp_path, "m"):
            pass
    with pytest.raises(InputError, match="holds the search of another model"), Ledger(tmp_path, "n"):
        pass
    (tmp_path / "points.jsonl").write_text("[]\n")
    with pytest.raises(InputError, match="line 1 is no point of a search"), Ledger(tmp_path, "m"):
        pass


def test_what_failed_for_want_of_time_is_tried_again(tmp_path: Path) -> None:
    with Ledger(tmp_path, "m") as ledger:
        ledger.add(row("a", 80, None, model_sha256="m", error="too slow", kind="WorkerError"))
        ledger.add(row("b", 80, None, model_sha256="m", error="no", kind="InputError"))
        assert not ledger.has("a")
        assert ledger.has("b")


# Whole searches -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A search of two ratios and two criteria, then one round between."""
    folder = tmp_path_factory.mktemp("search") / "front"
    models = Path(__file__).resolve().parent.parent / "models"
    options = {**QUICK, "rounds": 1, "calib": f"{models / 'digits.py'}:calibration"}
    found = sparsecc.search(
        models / "digits_lstm.onnx",
        output=folder,
        ratios=(0.2, 0.5),
        criteria=("l2", "random"),
        quantizes=(None,),
        jobs=2,
        **options,
    )
    return folder, found


def test_types_are_tried_where_samples_judge_them() -> None:
    space, calib = Space(ratios=(0.2, 0.5)), {"calib": "x.npz"}
    points = list(space.resolved(calib).grid())
    assert [(p["ratio"], p.get("quantize")) for p in points] == [
        (0.0, "int8"), (0.2, None), (0.2, "int8"), (0.5, None), (0.5, "int8"),
    ]  # fmt: skip
    for base in ({}, {**calib, "levers": "channels"}, {**calib, "levers": "channels,layers"}):
        assert [p.get("quantize") for p in space.resolved(base).grid()] == [None, None], base
    assert [p["ratio"] for p in Space(ratios=(0.0,), quantizes=(None,)).resolved(calib).grid()] == [0.0]


def test_a_search_writes_the_front_its_page_and_the_recipes(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, found = searched
    written = json.loads((folder / "front.json").read_text())
    assert written == {k: v for k, v in found.items() if k != "folder"}
    assert len(found["points"]) > 4
    assert {p["options"]["ratio"] for p in found["points"]} >= {0.2, 0.5}
    on_front = found["fronts"]["macs"]
    criteria = {p["options"]["criterion"] for p in found["points"] if p["id"] in on_front}
    assert "l2" in criteria
    page = (folder / "front.html").read_text()
    assert page.count("<circle") == 2 * len(found["points"])
    assert "<polyline" in page
    assert {f"{p['id']}.json" for p in found["points"]} == {f.name for f in (folder / "points").iterdir()}


def test_a_point_compiles_to_the_same_bytes_again(
    searched: tuple[Path, dict[str, Any]], models_dir: Path, tmp_path: Path
) -> None:
    folder, found = searched
    point = next(p for p in found["points"] if p["id"] == found["fronts"]["macs"][0])
    words = ["compile", str(models_dir / "digits_lstm.onnx"), "-q", "-o", str(tmp_path / "out")]
    _, _, after = point["compile"].partition("points/")
    recipe, *rest = after.split()
    assert main([*words, "--recipe", str(folder / "points" / recipe), *rest]) == 0
    files = Bundle.open(tmp_path / "out").manifest["files"]
    assert {name: files[name]["sha256"] for name in point["files"]} == point["files"]
    assert "model.onnx" in point["files"]


def test_a_finished_search_makes_nothing_again(
    searched: tuple[Path, dict[str, Any]], models_dir: Path
) -> None:
    folder, found = searched
    before = (folder / "points.jsonl").read_bytes()
    again = sparsecc.search(
        models_dir / "digits_lstm.onnx",
        output=folder,
        ratios=(0.2, 0.5),
        criteria=("l2", "random"),
        quantizes=(None,),
        **{**QUICK, "rounds": 1, "calib": f"{models_dir / 'digits.py'}:calibration"},
    )
    assert again == found
    assert (folder / "points.jsonl").read_bytes() == before


def test_a_killed_search_goes_on_where_it_was(models_dir: Path, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "sparsecc",
        "search",
        str(models_dir / "digits_lstm.onnx"),
        "--no-measure",
        "-q",
    ]
    words += ["--ratios", "0.2,0.3,0.4", "--rounds", "0", "-o", str(tmp_path / "front")]
    ledger = tmp_path / "front" / "points.jsonl"
    process = subprocess.Popen(words, cwd=tmp_path, start_new_session=True)
    while not (ledger.exists() and ledger.read_bytes().count(b"\n")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = ledger.read_bytes()
    done = first[: first.rfind(b"\n") + 1]
    assert 1 <= done.count(b"\n") < 3
    subprocess.run(words, cwd=tmp_path, check=True)
    assert ledger.read_bytes().startswith(done)
    assert len(json.loads((tmp_path / "front" / "front.json").read_text())["points"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criteria": ("l3",)}, "unknown criterion 'l3'"),
        ({"criteria": ("obs",)}, "criterion obs looks at activations: give samples with --calib"),
        ({"allocators": ("globl",)}, "did you mean 'global'"),
        ({"recovers": ("magic",)}, "unknown recovery 'magic'"),
        ({"quantizes": ("int3",)}, "unknown type 'int3'"),
        ({"ratios": ()}, "there is nothing to try"),
        ({"ratios": (1.5,)}, "outside"),
        ({"ratio": 0.5}, "a search sets ratio itself"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_any_work(
    options: dict[str, Any], message: str, models_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        sparsecc.search(models_dir / "digits_lstm.onnx", output=tmp_path / "front", **QUICK, **options)
    assert not (tmp_path / "front").exists()


def test_a_search_of_no_model_and_one_without_a_point(models_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        sparsecc.search(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"bad\.onnx: not an ONNX model"):
        sparsecc.search(tmp_path / "bad.onnx", output=tmp_path / "front", ratios=(0.5,), **QUICK)
    lstm = models_dir / "digits_lstm.onnx"
    with pytest.raises(GoalError, match=r"no point of the search could be made: .*nowhere"):
        sparsecc.search(lstm, output=tmp_path / "front", ratios=(0.5,), keep=("nowhere",), **QUICK)


def test_the_command_line_shows_the_front(
    searched: tuple[Path, dict[str, Any]],
    models_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, found = searched
    monkeypatch.setenv("COLUMNS", "200")  # narrower tables break lines
    words = [
        "search",
        str(models_dir / "digits_lstm.onnx"),
        "--no-measure",
        "--ratios",
        "0.2,0.5",
        "--rounds",
        "1",
    ]
    words += [
        "--criteria",
        "l2,random",
        "--quantizes",
        "none",
        "--calib",
        f"{models_dir / 'digits.py'}:calibration",
        "-o",
        str(folder),
    ]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"of {len(found['points'])} points on the front by macs" in shown
    assert "ratio 0.2, criterion l2" in shown
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fronts"] == found["fronts"]


# Clusters -------------------------------------------------------------------------------------------


def test_a_scheduler_that_does_not_answer(models_dir: Path) -> None:
    pytest.importorskip("distributed", reason="needs the extra: pip install 'sparsecc[cluster]'")
    with pytest.raises(UnavailableError, match="no Dask scheduler answers at tcp"):
        sparsecc.search(models_dir / "digits_lstm.onnx", cluster="tcp://127.0.0.1:9", **QUICK)


@pytest.mark.filterwarnings("ignore")
def test_a_search_on_a_cluster_finds_the_same_points(models_dir: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip(
        "distributed", reason="needs the extra: pip install 'sparsecc[cluster]'"
    )
    options: dict[str, Any] = {**QUICK, "ratios": (0.2, 0.4), "rounds": 1}
    model = models_dir / "digits_lstm.onnx"
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as machines:
        there = sparsecc.search(model, output=tmp_path / "a", cluster=machines.scheduler_address, **options)
    here = sparsecc.search(model, output=tmp_path / "b", **options)
    assert [p["files"] for p in there["points"]] == [p["files"] for p in here["points"]]
    assert there["fronts"] == here["fronts"]
