"""Cuts that are rehearsed: removed, repaired on some samples and compared on others, as the compile will do it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.allocators.base import Candidate
from sparsecc.allocators.output_error import Bench
from sparsecc.allocators.trial_repair import Rehearsal, Stage, counterparts
from sparsecc.axes.algebra import Atom
from sparsecc.calibrate.layer_statistics import collect
from sparsecc.compilation import Compilation
from sparsecc.data.samples import CalibrationSet, Samples
from sparsecc.decide.channels import Choice, choose
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.groups import find_groups
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.reference.masked_channels import masked
from sparsecc.runtime.segments import Walk
from sparsecc.shapes.dynamic_dims import takes_any_batch
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.stages import begin
from tests.compilations import compilation
from tests.repair_models import analysed, mlp, normal

MODELS = Path(__file__).parents[1] / "models"
DIGITS = ("digits_resnet", "digits_vit", "digits_lstm")
BATCH = Samples(({"x": normal(64, 6, seed=9)}, {"x": normal(64, 6, seed=8)}), True)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tried before says nothing here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def twin_of(analysis: Analysis) -> Analysis:
    return analyse(analysis.model.clone())


def digits(name: str) -> tuple[Analysis, Samples]:
    analysis = analyse(normalise(load_ir(MODELS / f"{name}.onnx")))
    spec = f"{MODELS / 'digits.py'}:calibration"
    return analysis, CalibrationSet(spec, analysis.model).samples.first(64)


def rehearsal_of(
    analysis: Analysis, samples: Samples, folder: Path, method: str = "reconstruct", memory: int = 2 << 30
) -> tuple[Rehearsal, list[Candidate], Stage]:
    generator = np.random.default_rng(3)
    groups = [g for g in find_groups(analysis) if g.is_free]
    candidates = [Candidate(g.atom, g.size, generator.random(g.size), 1, 1) for g in groups]
    fitted, held_out = samples.divided(whole_batches=not takes_any_batch(analysis.model))
    given = compilation(folder=folder, samples=fitted, held_out=held_out, working_memory=memory)
    stage = Stage.of(given, analysis, method, lambda: twin_of(analysis))
    assert stage is not None
    return Rehearsal(analysis, candidates, collect(analysis, samples, folder), stage), candidates, stage


def halves(candidates: list[Candidate]) -> dict[Atom, int]:
    return {c.atom: max(1, c.size // 2) for c in candidates}


@pytest.mark.parametrize("name", DIGITS)
def test_every_free_atom_has_a_counterpart_of_its_size_at_the_same_places(name: str) -> None:
    analysis, _ = digits(name)
    twin = twin_of(analysis)
    found = counterparts(analysis, twin)
    ours, theirs = ([g for g in find_groups(a) if g.is_free] for a in (analysis, twin))
    assert ours
    assert [found[g.atom] for g in ours] == [g.atom for g in theirs]
    assert all(a.size == b.size and a is not b for a, b in found.items())


@pytest.mark.parametrize("name", DIGITS)
def test_a_compile_analyses_its_model_again_as_it_was(name: str, tmp_path: Path) -> None:
    options = CompileOptions(measure=False, ratio=0.3)
    compilation = Compilation(MODELS / f"{name}.onnx", options, Scratch(tmp_path))
    analysis = begin(compilation)
    twin = compilation.analysed(analysis.model.clone())
    assert twin.shapes.works
    assert twin.shapes.inputs == analysis.shapes.inputs
    assert counterparts(analysis, twin).keys() >= {g.atom for g in find_groups(analysis) if g.is_free}


def test_where_the_model_comes_back_another_one_nothing_is_known(tmp_path: Path) -> None:
    analysis, other = mlp(), deep()
    rehearsal, candidates, stage = rehearsal_of(analysis, BATCH, tmp_path)
    strange = Rehearsal(
        analysis, candidates, collect(analysis, BATCH, tmp_path), replace(stage, again=lambda: twin_of(other))
    )
    assert strange(halves(candidates)) == np.inf
    assert rehearsal(halves(candidates)) < np.inf


@pytest.mark.parametrize("name", DIGITS)
def test_without_repair_it_is_the_loss_of_the_masked_model(name: str, tmp_path: Path) -> None:
    """Two ways to the same: slots sliced away in a twin, and slots masked in the dense model."""
    analysis, samples = digits(name)
    rehearsal, candidates, stage = rehearsal_of(analysis, samples, tmp_path, "none")
    counts = halves(candidates)
    cut = {c.atom: c.best(counts[c.atom]) for c in candidates}
    wanted = Bench(analysis.model, stage.held_out, tmp_path / "other", 1).moved(masked(analysis, cut))
    assert wanted > 0.01
    assert rehearsal(counts) == pytest.approx(wanted, rel=1e-3)


def test_repair_is_part_of_it(tmp_path: Path) -> None:
    analysis = mlp(duplicate=True)
    (group,) = [g for g in find_groups(analysis) if g.is_free]
    stats = collect(analysis, BATCH, tmp_path)
    losses = {}
    for method in ("none", "reconstruct"):
        fitted, held_out = BATCH.divided(whole_batches=False)
        given = compilation(folder=tmp_path, samples=fitted, held_out=held_out)
        stage = Stage.of(given, analysis, method, lambda: twin_of(analysis))
        assert stage is not None
        candidate = Candidate(group.atom, group.size, np.array([0.0, *range(1, 8)]), 1, 1)
        losses[method] = Rehearsal(analysis, [candidate], stats, stage)({group.atom: 7})
    assert losses["none"] > 0.01
    assert losses["reconstruct"] < 1e-4


def test_the_dense_model_is_as_before(tmp_path: Path) -> None:
    analysis = mlp()
    before = {
        n: v.const_value.numpy().copy() for n, v in analysis.model.graph.initializers.items() if v.const_value
    }
    rehearsal, candidates, _ = rehearsal_of(analysis, BATCH, tmp_path)
    rehearsal(halves(candidates))
    for name, array in before.items():
        found = analysis.model.graph.initializers[name].const_value
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), array)


def test_what_was_rehearsed_is_known_to_the_next_compile(tmp_path: Path) -> None:
    analysis = mlp()
    first, candidates, stage = rehearsal_of(analysis, BATCH, tmp_path)
    loss = first(halves(candidates))
    first.keep()
    again, candidates, _ = rehearsal_of(analysis, BATCH, tmp_path)
    assert (again(halves(candidates)), again.runs) == (loss, 0)
    other = replace(stage, method="none")
    plain = Rehearsal(analysis, candidates, collect(analysis, BATCH, tmp_path), other)
    assert plain(halves(candidates)) != loss


@pytest.mark.parametrize("memory", [2 << 30, 1 << 13])  # in which the values of one layer have no room
def test_the_dense_model_is_walked_for_the_first_cut_alone(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At other ratios too, in the same compile; what it gives is what a walk of its own gives."""
    analysis = deep()
    monkeypatch.setattr("sparsecc.reconstruct.layerwise.wide.needs_parts", lambda *sizes: False)
    monkeypatch.setattr("sparsecc.reconstruct.dense_values.needs_parts", lambda *sizes: False)
    rehearsal, candidates, stage = rehearsal_of(analysis, BATCH, tmp_path / "a", memory=memory)
    counts = [{c.atom: max(1, c.size // share) for c in candidates} for share in (2, 3, 4)]
    wanted = [rehearsal_of(analysis, BATCH, tmp_path / f"b{i}")[0](one) for i, one in enumerate(counts)]
    segments: list[str] = []
    run = Walk._run

    def counted(walk: Walk, segment: Sequence[ir.Node], kept: Sequence[str]) -> None:
        segments.extend([str(walk._store._folder)])
        run(walk, segment, kept)

    monkeypatch.setattr(Walk, "_run", counted)
    found = [rehearsal(one) for one in counts[:2]]
    other = Rehearsal(analysis, candidates, collect(analysis, BATCH, tmp_path / "a"), stage)
    found.append(other(counts[2]))
    assert found == pytest.approx(wanted, rel=1e-6)
    dense = [name for name in segments if "dense_walk" in name]
    assert 0 < len(dense) < len([name for name in segments if "pruned_walk" in name]) / 2
    assert all("first" in name for name in dense)


# Dividing samples ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "every"), [((64, 64), 5), ((10, 6), 2), ((20, 10), 3), ((3, 5, 1, 1, 1, 1), 4), ((1,) * 9, 4)]
)
def test_every_sample_is_on_one_side_and_enough_are_held_out(lengths: tuple[int, ...], every: int) -> None:
    total = sum(lengths)
    numbers = np.split(np.arange(total), np.cumsum(lengths)[:-1])
    rows = Samples(tuple({"x": n[:, None], "y": -n[:, None]} for n in numbers), True)
    seen, held_out = rows.divided(whole_batches=False)
    sides = [np.concatenate([batch["x"][:, 0] for batch in side.batches]) for side in (seen, held_out)]
    assert sorted(np.concatenate(sides)) == list(range(total))
    assert list(sides[1]) == list(range(total))[every - 1 :: every]
    assert total < 16 or len(sides[1]) >= 8
    for side in (seen, held_out):
        assert all(np.array_equal(batch["x"], -batch["y"]) for batch in side.batches)


def test_whole_batches_stay_whole_and_few_samples_are_all_fitted_to() -> None:
    batches = tuple({"x": np.arange(6) + i} for i in range(8))
    seen, held_out = Samples(batches, True).divided(whole_batches=True)
    assert held_out.batches == (batches[3], batches[7])
    assert len(seen.batches) == 6
    assert Samples(batches[:3], True).divided(whole_batches=True)[1].batches == ()


def test_a_model_of_a_fixed_batch_gets_whole_ones(tmp_path: Path) -> None:
    text = "g (float[16,6] x) => (float[16,3] y) { a = Gemm(x, w1) b = Relu(a) y = Gemm(b, w2) }"
    analysis = analysed(text, {"w1": normal(6, 8), "w2": normal(8, 3)})
    batches = tuple({"x": normal(16, 6, seed=i)} for i in range(5))
    rehearsal, candidates, stage = rehearsal_of(analysis, Samples(batches, True), tmp_path)
    assert [len(p.batches) for p in (stage.seen, stage.held_out)] == [4, 1]
    assert 0 < rehearsal(halves(candidates)) < np.inf


# Which compiles rehearse -----------------------------------------------------------------------------


DEEP = """g (float[n,6] x) => (float[n,3] y) {
    a = Gemm(x, w1) b = Relu(a) c = Gemm(b, w2) d = Relu(c) e = Gemm(d, w3) f = Relu(e) y = Gemm(f, w4) }"""


def deep() -> Analysis:
    sizes = [(6, 32), (32, 24), (24, 32), (32, 3)]
    return analysed(DEEP, {f"w{i + 1}": normal(*size, seed=i) for i, size in enumerate(sizes)})


def chosen(folder: Path, samples: Samples = BATCH, **given: object) -> Choice:
    options: dict[str, Any] = {"calib": "samples", "align": 1, **given}
    fitted, held_out = samples.divided(whole_batches=False)
    asked = compilation(folder=folder, samples=fitted, held_out=held_out, **options)
    analysis = asked.begin(deep().model)
    return choose(asked, analysis, find_groups(analysis), 0.5)


def lost(cut: dict[Atom, np.ndarray]) -> list[list[bool]]:
    """The masks that remove something, in order."""
    return [slots.tolist() for slots in cut.values() if not slots.all()]


def test_by_default_plans_are_rehearsed(tmp_path: Path) -> None:
    method = chosen(tmp_path).method
    assert (method["allocator"], method["tried"]) == ("rehearsed", "rehearsal")


def test_the_plan_that_is_nearest_to_the_dense_outputs_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: dict[str, float] = {}
    real = Rehearsal._loss

    def watched(self: Rehearsal, cut: dict[Atom, np.ndarray], share: float) -> float:
        name = json.dumps([slots.tolist() for slots in cut.values()])
        tried[name] = real(self, cut, share)
        return tried[name]

    monkeypatch.setattr(Rehearsal, "_loss", watched)
    choice = chosen(tmp_path)
    assert len(tried) > 1
    whole = json.loads(min(tried, key=tried.__getitem__))
    assert [slots.tolist() for slots in choice.keep.values()] == [s for s in whole if not all(s)]


def test_what_is_foreseen_is_of_the_plan_by_curves_that_was_beaten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsecc.allocators.dynamic_program.POWERS", (1.0,))
    wanted = chosen(tmp_path, criterion="obs", allocator="global").keep
    by_curves = chosen(tmp_path, criterion="obs", allocator="distortion").predicted

    def nearest(self: Rehearsal, cut: dict[Atom, np.ndarray], share: float) -> float:
        return float(lost(cut) != lost(wanted))

    monkeypatch.setattr(Rehearsal, "_loss", nearest)
    choice = chosen(tmp_path, criterion="obs")
    assert lost(choice.keep) == lost(wanted)
    assert choice.predicted == pytest.approx(by_curves)


@pytest.mark.parametrize(
    ("samples", "given"),
    [(BATCH, {"allocator": "distortion"}), (BATCH, {"prune_io": ("*",)}), (BATCH.first(3), {})],
    ids=["as asked", "outputs change shape", "too few"],
)
def test_elsewhere_the_joint_loss_decides(samples: Samples, given: dict[str, object], tmp_path: Path) -> None:
    if not given:
        samples = Samples(({"x": samples.batches[0]["x"][:3]},), True)
    assert chosen(tmp_path, samples, **given).method["tried"] == "joint"


def test_a_compile_rehearses_and_says_so(tmp_path: Path) -> None:
    result = sparsecc.compile(
        MODELS / "digits_vit.onnx",
        ratio=0.4,
        calib=f"{MODELS / 'digits.py'}:calibration",
        output=tmp_path / "out",
        measure=False,
    )
    (facts,) = [p["facts"] for p in result.report["passes"] if p["name"] == "choose" and "facts" in p]
    assert facts["tried"] == "rehearsal"
