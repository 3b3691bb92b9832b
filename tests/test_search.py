"""Searches: the front, going on after a kill, points that come out the same bytes again."""

from __future__ import annotations

import json
import os
import shlex
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
from sparsecc.decide.goals import Trial
from sparsecc.errors import GoalError, InputError, UnavailableError
from sparsecc.options import CompileOptions
from sparsecc.search.front import front, fronts
from sparsecc.search.run import _order, _public, best_of
from sparsecc.search.space import Space

QUICK: dict[str, Any] = {"measure": False, "rounds": 0}
MODELS = Path(__file__).resolve().parent.parent / "models"
LSTM, DIGITS = MODELS / "digits_lstm.onnx", f"{MODELS / 'digits.py'}:calibration"


def point(name: str, macs: float, quality: float | None, speedup: float | None = None) -> dict[str, Any]:
    """A point of front.json."""
    sizes = {"bytes": 5, "dense_bytes": 10}
    return {"id": name, "quality": quality, "macs": macs, **sizes, "speedup": speedup}


# The front, and what is ordered ---------------------------------------------------------------------


def test_the_front_holds_what_nothing_beats() -> None:
    rows = [("a", 0.8, 0.9), ("b", 0.5, 0.8), ("c", 0.6, 0.7), ("d", 0.3, 0.8), ("e", 0.8, 0.95)]
    points = [point(*one) for one in rows]
    assert front(points, "macs") == ["d", "e"]
    assert front([*points, point("f", 0.1, None)], "macs") == ["d", "e"]
    assert fronts(points).keys() == {"macs", "bytes"}
    assert fronts([point("a", 0.8, 0.9, 1.5), point("b", 0.8, 0.8, 2.0)])["latency"] == ["b", "a"]


def test_what_the_dense_model_beats_is_not_on_the_front() -> None:
    """Slower than the model as it came, and worse; a score above its own may cost more."""
    slow, fast = point("a", 0.8, 26.4, 0.97), point("b", 0.8, 8.4, 1.7)
    assert fronts([slow, fast])["latency"] == ["b"]
    assert fronts([slow]) == {"latency": [], "macs": ["a"], "bytes": ["a"]}
    assert fronts([point("a", 0.8, 0.9, 0.97), point("b", 0.8, 0.8, 1.7)], 0.85)["latency"] == ["b", "a"]


def test_what_is_named_is_every_combination() -> None:
    space = Space(criteria=("l1", "auto"), recovers=("auto", "none"), quantizes=(None, "int8"))
    assert space.families([{"quantize": "fp16"}]) == [
        {"criterion": "l1"}, {"criterion": "l1", "recover": "none"}, {}, {"recover": "none"},
        {"criterion": "l1", "quantize": "int8"}, {"criterion": "l1", "recover": "none", "quantize": "int8"},
        {"quantize": "int8"}, {"recover": "none", "quantize": "int8"},
    ]  # fmt: skip
    types = [{"quantize": "int8"}, {}]
    assert Space(criteria=("l1",)).families(types) == [
        {"criterion": "l1", "quantize": "int8"}, {"criterion": "l1"},
    ]  # fmt: skip


def test_the_best_is_what_a_compile_without_a_goal_takes() -> None:
    def trial(speedup: float, quality_db: float, agreement: float = 1.0) -> Trial:
        return Trial(0, 0, 1, 1, speedup=speedup, quality_db=quality_db, agreement=agreement)

    trials = [trial(3.0, 20), trial(2.0, 31), trial(2.5, 35, 0.9), trial(1.5, 40)]
    assert best_of(trials, CompileOptions(calib="x.npz")) == trials[1]
    assert best_of(trials[:1], CompileOptions(calib="x.npz")) is None
    assert best_of(trials, CompileOptions()) is None


def test_points_are_in_one_order_whether_made_now_or_read_again(tmp_path: Path) -> None:
    """A ledger writes names in the order of the alphabet."""
    made = {"id": "a", "options": {"ratio": 0.5, "criterion": "l2", "quantize": "int8"}}
    assert _order(made) == _order(json.loads(json.dumps(made, sort_keys=True)))


def test_the_words_of_a_point_are_those_of_a_shell(tmp_path: Path) -> None:
    row = {"id": "a", "trial": {}, "seconds": 1.0}
    words = _public(row, {"calib": "my data.py:samples"}, folder := tmp_path / "a front")["compile"]
    recipe = f"{folder}/points/a.json"
    assert shlex.split(words) == ["--recipe", recipe, "--calib", "my data.py:samples"]


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


def test_a_search_writes_the_front_its_page_and_the_recipes(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, found = searched
    written = json.loads((folder / "front.json").read_text())
    assert written == {k: v for k, v in found.items() if k != "folder"}
    assert len(found["points"]) > 4
    assert {p["ratio"] for p in found["points"]} >= {0.2, 0.5}
    on_front = found["fronts"]["macs"]
    assert "l2" in {p["levers"]["criterion"] for p in found["points"] if p["id"] in on_front}
    page = (folder / "front.html").read_text()
    assert page.count("<circle") == 2 * (len(found["points"]) + 1)  # the dense model too
    assert "<polyline" in page
    for one in found["points"]:  # a dot leads to the row of its recipe
        assert page.count(f'<a href="#point-{one["id"]}">') == 2
        assert f'<tr id="point-{one["id"]}">' in page
    assert {f"{p['id']}.json" for p in found["points"]} == {f.name for f in (folder / "points").iterdir()}


def test_a_point_compiles_to_the_same_bytes_again(
    searched: tuple[Path, dict[str, Any]], models_dir: Path, tmp_path: Path
) -> None:
    folder, found = searched
    chosen = next(p for p in found["points"] if p["id"] == found["fronts"]["macs"][0])
    words = ["compile", str(models_dir / "digits_lstm.onnx"), "-q", "-o", str(tmp_path / "out")]
    _, _, after = chosen["compile"].partition("points/")
    recipe, *rest = after.split()
    assert main([*words, "--recipe", str(folder / "points" / recipe), *rest]) == 0
    assert Bundle.open(tmp_path / "out").manifest["files"]["model.onnx"]["sha256"] == chosen["sha256"]


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A search that is told nothing, and what it found; its cache is its own."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        found = sparsecc.search(LSTM, output=folder / "front", calib=DIGITS, measure=False, rounds=0)
    return folder, found


def test_a_search_pulls_the_levers_of_a_goal(whole: tuple[Path, dict[str, Any]]) -> None:
    _, found = whole
    ways = {json.dumps(p.get("levers", {})) for p in found["points"]}
    assert ways >= {"{}", json.dumps({"quantize": "int8!"})}
    assert {p["ratio"] for p in found["points"]} > {0.0, 0.2}
    assert found["fronts"].keys() == {"macs", "bytes"}
    assert all(p["quality_db"] is not None and p["sha256"] for p in found["points"])


def test_a_goal_takes_what_a_search_found(
    whole: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = whole
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    said: list[str] = []
    assert found["points"]
    sparsecc.compile(
        LSTM,
        output=folder / "out",
        calib=DIGITS,
        size=LSTM.stat().st_size // 2,
        measure=False,
        on_event=lambda event: said.append(event.get("say", "")),
    )
    trials = [line for line in said if line.startswith("trial")]
    assert trials[0].endswith("(of an earlier search)")


def test_an_ended_search_writes_what_was_made(tmp_path: Path) -> None:
    def end(event: dict[str, Any]) -> None:
        if "note" in event:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sparsecc.search(LSTM, output=tmp_path, ratios=(0.2, 0.4), on_event=end, **QUICK)
    assert len(json.loads((tmp_path / "front.json").read_text())["points"]) == 1
    assert "<circle" in (tmp_path / "front.html").read_text()


def test_points_of_other_samples_or_of_no_metric_stand_on_no_front_of_this_search(tmp_path: Path) -> None:
    """A folder keeps them; their figures compare with no others: decibels beside scores, or of other samples."""
    score = tmp_path / "score.py"
    score.write_text("def score(run):\n    return 0.75\n")
    others: tuple[dict[str, Any], ...] = ({"evaluate": f"{score}:score"}, {"calib": DIGITS})
    options: dict[str, Any] = {**QUICK, "output": tmp_path / "front", "quantizes": (None,)}
    for ratio, more in zip((0.2, 0.4), others, strict=True):
        found = sparsecc.search(LSTM, ratios=(ratio,), **{**options, **more})
        assert [point["ratio"] for point in found["points"]] == [ratio]
    assert found["quality"] == "quality_db"
    again = sparsecc.search(LSTM, ratios=(0.3,), **{**options, **others[1]})
    assert [point["ratio"] for point in again["points"]] == [0.3, 0.4]


def test_a_point_that_ends_its_worker_does_not_end_the_others(tmp_path: Path) -> None:
    score = tmp_path / "score.py"
    score.write_text(
        "import os, pathlib\n"
        f"calls = pathlib.Path({str(tmp_path / 'calls')!r})\n"
        "def score(run):\n"
        "    with calls.open('a') as file: file.write('.')\n"
        "    if calls.stat().st_size == 3: os._exit(9)\n"  # twice the dense model, then the first point
        "    return 1.0\n"
    )
    options: dict[str, Any] = {**QUICK, "evaluate": f"{score}:score", "quantizes": (None,)}
    found = sparsecc.search(LSTM, output=tmp_path / "front", ratios=(0.2, 0.4), **options)
    assert [p["ratio"] for p in found["points"]] == [0.4]
    assert [p["options"]["ratio"] for p in found["failed"]] == [0.2]
    assert "worker" in found["failed"][0]["error"]


def test_a_point_beyond_a_limit_is_named_and_left_out(tmp_path: Path) -> None:
    options: dict[str, Any] = {**QUICK, "calib": DIGITS, "quantizes": (None,), "min_quality": 8.0}
    found = sparsecc.search(LSTM, output=tmp_path, ratios=(0.1, 0.8), **options)
    assert [p["ratio"] for p in found["points"]] == [0.1]
    assert "dB loses more than --min-quality 8 allows" in found["failed"][0]["error"]


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
    words += ["--ratios", "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8", "--rounds", "0", "-o", str(tmp_path / "front")]
    ledger = tmp_path / "front" / "points.jsonl"
    process = subprocess.Popen(words, cwd=tmp_path, start_new_session=True)
    while not (ledger.exists() and ledger.read_bytes().count(b"\n")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = ledger.read_bytes()
    done = first[: first.rfind(b"\n") + 1]
    assert 1 <= done.count(b"\n") < 8
    subprocess.run(words, cwd=tmp_path, check=True)
    assert ledger.read_bytes().startswith(done)
    assert len(json.loads((tmp_path / "front" / "front.json").read_text())["points"]) == 8


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
    monkeypatch.setenv("COLUMNS", "110")  # narrower tables break lines
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
    assert all(name in shown for name in found["fronts"]["macs"]), "a point is named whole"
    command = f"compile {models_dir / 'digits_lstm.onnx'} --recipe {folder}/points/POINT.json"
    assert command in shown.replace("\n", " "), "the model as it was named: it runs from here"
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fronts"] == found["fronts"]


def test_a_folder_is_none_that_a_search_takes(models_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder: a search takes one ONNX file"):
        sparsecc.search(models_dir, output=tmp_path / "front", **QUICK)


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
    assert [p["sha256"] for p in there["points"]] == [p["sha256"] for p in here["points"]]
    assert there["fronts"] == here["fronts"]
