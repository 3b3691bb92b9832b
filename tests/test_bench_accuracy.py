"""The accuracy benchmark goes on where it was, gives the digits their known figures, and publishes its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import accuracy
from benchmarks.accuracy import CHANCE, OTHERS, RIVALS, TWO_SETS, main, wanted
from benchmarks.accuracy_peers import at_equal_work
from benchmarks.accuracy_tables import CROWD, MARKS, ranked, tables
from sparsecc.criteria.gradient import NAMES
from sparsecc.reconstruct.layerwise import repair

METHODS = "l2:uniform,random:uniform"


def run(store: Path, *more: str) -> None:
    main(["--pairs", "digits_resnet", "--ratios", "0.5", "--json", str(store), *more])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("accuracy") / "accuracy.json"
    run(path, "--methods", METHODS)
    return path


def test_every_repair_and_seed_has_its_row(store: Path) -> None:
    rows = json.loads(store.read_text())["rows"]
    found = [(row["method"], row["seed"], row["repair"]) for row in rows]
    seeds = [("l2:uniform", 0), *(("random:uniform", seed) for seed in range(3))]
    assert found == [(*one, repair) for one in seeds for repair in ("none", "reconstruct")]
    assert all(0.5 <= row["removed"] < 0.55 for row in rows)
    assert len({row["score"] for row in rows if row["method"] == "random:uniform"}) > 1
    assert rows[1]["score"] >= 0.985, "group magnitude at half of the work, repaired, keeps the digits"


def test_what_is_stored_is_not_made_again(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads(store.read_text())
    before["rows"][0]["score"] = 0.125
    store.write_text(json.dumps(before))
    run(store, "--methods", f"{METHODS},first:uniform", "--seconds", "0")
    assert json.loads(store.read_text())["rows"] == before["rows"], "no time, nothing new"
    assert "1 points are left" in capsys.readouterr().out
    run(store, "--methods", f"{METHODS},first:uniform")
    after = json.loads(store.read_text())["rows"]
    assert after[: len(before["rows"])] == before["rows"]
    assert [row["method"] for row in after[len(before["rows"]) :]] == ["first:uniform"] * 2


def test_methods_that_cut_alike_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norms are folded here: `bn_scale` is `l2`, and `first` another cut."""
    repaired = []

    def watched(*given: Any) -> Any:
        repaired.append(given)
        return repair(*given)

    monkeypatch.setattr(accuracy, "_SCORED", {})
    monkeypatch.setattr(accuracy, "repair", watched)
    run(tmp_path / "a.json", "--methods", "l2:uniform,bn_scale:uniform,first:uniform")
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert len(repaired) == 2
    scores = {
        m: [r["score"] for r in rows if r["method"] == f"{m}:uniform"] for m in ("l2", "bn_scale", "first")
    }
    assert scores["l2"] == scores["bn_scale"] != scores["first"]


def test_the_rivals_come_first() -> None:
    methods = [point.method for point in wanted(["resnet20", "digits_vit"], [*OTHERS, *RIVALS], [0.1])]
    first = methods[: len([m for m in methods if m in RIVALS])]
    assert set(first) == set(RIVALS)
    assert methods.count("auto:auto") == 2
    assert methods.count("torch-pruning magnitude local") == 1, "digits_vit is no torch module here"
    of_two_sets = {method.partition(":")[0] for method in TWO_SETS}
    assert all(methods.count(f"{name}:uniform") == 6 for name in CHANCE - of_two_sets)


def test_criteria_that_draw_labels_are_those_that_do_not_look_at_the_outputs() -> None:
    gradients = pytest.importorskip("sparsecc.torch.scores.gradients")
    assert set(NAMES) - CHANCE == set(NAMES) & gradients.ON_OUTPUTS


def test_a_domain_is_compared_where_there_is_one() -> None:
    found = wanted(["resnet20", "resnet20_animals"], TWO_SETS, [0.1])
    assert {point.pair for point in found} == {"resnet20_animals"}
    assert [point.seed for point in found if point.method == TWO_SETS[0]] == [0, 1, 2]


def test_work_is_searched_until_it_is_that_asked_for() -> None:
    gone, _ = at_equal_work(lambda share: (share**2, lambda feeds: feeds), 0.3)
    assert abs(gone - 0.3) <= 0.003
    gone, _ = at_equal_work(lambda share: (min(share, 0.2), lambda feeds: feeds), 0.5)
    assert gone == 0.2, "as close as it comes"


def row(method: str, repair: str, score: float, removed: float = 0.5, seed: int = 0) -> dict[str, object]:
    facts = {"pair": "p", "ratio": 0.5, "method": method, "seed": seed, "repair": repair}
    return {**facts, "score": score, "removed": removed}


def stored(*rows: dict[str, object], measure: str = "top-1") -> dict[str, object]:
    return {"pairs": {"p": {"dense": 0.9, "measure": measure}}, "rows": list(rows)}


def test_the_best_of_a_tool_at_the_asked_work_stands_in_its_column() -> None:
    text = tables(
        stored(
            row("auto:auto", "reconstruct", 0.8),
            row("l2:uniform", "none", 0.1), row("l2:uniform", "reconstruct", 0.81),
            row("onnxsim l2", "none", 0.89, removed=0.2), row("onnxsim wanda", "none", 0.2),
            row("torch-pruning taylor local", "none", 0.3), row("torch-pruning taylor global", "none", 0.4),
        )
    )  # fmt: skip
    assert "| p (0.900 top-1) | 50% | 0.800 | 0.100 | 0.810 | 0.400 (taylor global) | 0.200 (wanda) |" in text
    assert "p at 50%: group magnitude, repaired is better by 0.010" in text
    assert text.count("is better by") == 1


def test_less_is_better_where_nats_are_measured() -> None:
    rows = [
        row("auto:auto", "reconstruct", 1.5),
        row("l2:uniform", "none", 1.4),
        row("l2:uniform", "reconstruct", 2),
    ]
    assert "group magnitude is better by 0.100 nats" in tables(stored(*rows, measure="nats"))


def test_seeds_are_averaged() -> None:
    scores = np.array([0.1, 0.2, 0.6])
    drawn = [row("random:uniform", "none", score, seed=seed) for seed, score in enumerate(scores.tolist())]
    others = [row(method, "none", 0.5) for method in ("l1:uniform", "l2:uniform")]
    assert f"| random, uniform | {scores.mean():.3f} ± {scores.std(ddof=1):.3f} → - |" in tables(
        stored(*drawn, *others)
    )


@pytest.mark.parametrize(("measure", "first"), [("top-1", "c59"), ("nats", "c0")])
def test_methods_are_ranked_by_how_many_they_leave_behind(measure: str, first: str) -> None:
    """Each with three allocators, of which the second is always better; `lone` met only one."""
    rows = [
        row(f"c{i}:{allocator}", "reconstruct", i + bonus)
        for i in range(CROWD)
        for allocator, bonus in (("a", 0.0), ("b", 0.5))
    ]
    lines = ranked(stored(*rows, row("c0:lone", "reconstruct", 1e3), measure=measure)).splitlines()
    assert lines[0] == f"Over 1 pairs and ratios, {len(rows) + 1} methods:"
    ahead = [line.split("|")[1].strip() for line in lines[4:] if line.startswith("|")]
    assert ahead[0 if measure == "nats" else 1] == f"{first}, {'a' if measure == 'nats' else 'b'}"
    (by_allocator,) = [line for line in lines if line.startswith("By allocator")]
    assert "lone" not in by_allocator
    assert (by_allocator.index("`b`") < by_allocator.index("`a`")) == (measure == "top-1")


def test_few_methods_have_no_order() -> None:
    assert ranked(stored(row("a:b", "reconstruct", 1.0))) == ""


def test_tables_are_published_between_the_marks(store: Path, tmp_path: Path) -> None:
    document = tmp_path / "methods.md"
    document.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    (tmp_path / "accuracy.md").write_text("# Accuracy\n\n")
    main(["--json", str(store), "--publish", str(document)])
    text = document.read_text()
    assert text.startswith(f"before\n{MARKS[0]}")
    assert text.endswith(f"{MARKS[1]}\nafter\n")
    assert "old" not in text
    assert "digits_resnet (0.99" in (tmp_path / "accuracy.md").read_text()
    document.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the marks"):
        main(["--json", str(store), "--publish", str(document)])


def test_a_plot_is_drawn(store: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot needs the bench extra")
    run(store, "--methods", METHODS)
    assert store.with_suffix(".svg").read_text().startswith("<?xml")


def test_a_repair_that_is_missing_is_made_for_the_same_plan(store: Path) -> None:
    before = json.loads(store.read_text())["rows"]
    run(store, "--methods", "l2:uniform", "--repairs", "none,bn")
    made = json.loads(store.read_text())["rows"][len(before) :]
    assert [(row["method"], row["repair"]) for row in made] == [("l2:uniform", "bn")]
    assert made[0]["removed"] == before[0]["removed"]
