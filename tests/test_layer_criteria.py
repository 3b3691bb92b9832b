"""By what layers are left out: distances of the outputs, spans of the residual stream, and their identities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sparsecc import api
from sparsecc.cost.model import macs_model
from sparsecc.decide.layer_spans import ends, spans_of, straightest, walked
from sparsecc.decide.layers import Greedy, shorten
from sparsecc.decide.output_distances import DISTANCES, angular, distances, divergence
from sparsecc.errors import InputError
from sparsecc.graph.residual_blocks import find_blocks
from sparsecc.options import LAYER_CRITERIA, CompileOptions
from sparsecc.reference.gated_layers import plugged
from tests.rule_checks import model_of
from tests.test_blocks import chain, opened, saved_chain

LONG = 8


def dropped(path: Path, folder: Path, **options: object) -> list[str]:
    """The first weights of the layers that went."""
    compilation, analysis = opened(path, folder, **options)
    norms = {n.name: n.inputs[1] for n in analysis.model.graph if n.op_type == "LayerNormalization"}
    _, depth = shorten(compilation, analysis)
    gone = [norms[name] for name in depth.nodes if name in norms]
    return sorted(value.name or "" for value in gone if value is not None)


@pytest.mark.parametrize("silent", [1, 3])
@pytest.mark.parametrize("criterion", LAYER_CRITERIA)
def test_the_layer_that_is_the_identity_goes_first(criterion: str, silent: int, tmp_path: Path) -> None:
    path = saved_chain(tmp_path, (silent,))
    assert dropped(path, tmp_path, ratio=0.1, layer_criterion=criterion) == [f"wn{silent}"]


@pytest.mark.parametrize("first", [1, 3, 4])
def test_the_planted_span_is_found(first: int, tmp_path: Path) -> None:
    """Three layers together; a fourth that is as idle stands alone elsewhere."""
    span = tuple(range(first, first + 3))
    alone = 6 if first == 1 else 1
    path = saved_chain(tmp_path, (*span, alone), layers=LONG)
    _, analysis = opened(path, tmp_path)
    (layer, *_) = [b for b in find_blocks(analysis) if b.is_free]
    ratio = 2.5 * layer.macs / macs_model(analysis).total({})
    assert dropped(path, tmp_path, ratio=ratio, layer_criterion="span") == [f"wn{i}" for i in span]


def test_identity_layers_do_not_turn_and_equal_spans_go_from_the_back(tmp_path: Path) -> None:
    path = saved_chain(tmp_path, tuple(range(LONG)), layers=LONG)
    compilation, analysis = opened(path, tmp_path)
    free = [b for b in find_blocks(analysis) if b.is_free]
    spans = spans_of(free, 2.0, lambda blocks: float(len(blocks)), overshoot=True)
    assert [[b.id for b in span] for span in spans] == [[i, i + 1] for i in range(1, LONG - 2)]
    walk = walked(analysis, spans, compilation.feeds, tmp_path / "walk")
    for name in {span[0].entry for span in spans}:
        entry, out = walk.value(name, 0), walk.value(spans[-1][-1].exit, 0)
        assert angular(entry, out).max() < 1e-3
    for name in ends(spans):
        walk.replace(name, 0, np.ones((2, 16)))
        walk.replace(name, 1, np.ones((2, 16)))
    assert [b.id for b in straightest(analysis, spans, walk)] == [LONG - 3, LONG - 2]


def test_spans_do_not_reach_over_a_layer_that_stays(tmp_path: Path) -> None:
    path = saved_chain(tmp_path, (3, 4, 5), layers=LONG)
    gone = dropped(path, tmp_path, ratio=0.3, layer_criterion="span", keep=["wn4"])
    assert gone
    assert "wn4" not in gone
    assert max(int(n[2:]) for n in gone) < 4 or min(int(n[2:]) for n in gone) > 4


def test_spans_fit_where_channels_go_too(tmp_path: Path) -> None:
    _, analysis = opened(saved_chain(tmp_path, layers=LONG), tmp_path)
    free = [b for b in find_blocks(analysis) if b.is_free]
    spans = spans_of(free, 2.5, lambda blocks: float(len(blocks)), overshoot=False)
    assert [len(span) for span in spans] == [2] * (len(free) - 1) + [1]
    assert spans_of(free, 0.5, lambda blocks: float(len(blocks)), overshoot=False) == []
    whole = spans_of(free, 100.0, lambda blocks: float(len(blocks)), overshoot=True)
    assert [len(span) for span in whole] == [len(free)]


def test_the_weakest_layer_is_the_first_of_the_greedy_ones_and_the_straightest(tmp_path: Path) -> None:
    model = model_of(chain())
    for tensor in model.graph.initializer:
        if tensor.name.startswith("wb"):
            scale = {"wb1": 0.5, "wb2": 0.02, "wb3": 0.3}.get(tensor.name, 1.0)
            weaker = (scale * onnx.numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(weaker, tensor.name))
    onnx.save(model, tmp_path / "chain.onnx")
    for criterion in LAYER_CRITERIA:
        assert dropped(tmp_path / "chain.onnx", tmp_path, ratio=0.1, layer_criterion=criterion) == ["wn2"]


@pytest.mark.parametrize("name", ["output", *DISTANCES])
def test_without_a_prior_the_closest_outputs_win(name: str, tmp_path: Path) -> None:
    compilation, analysis = opened(saved_chain(tmp_path), tmp_path)
    free = [b for b in find_blocks(analysis) if b.is_free]
    board = plugged(analysis.model, [b.branches[0].title for b in free], tmp_path / "g" / "m.onnx", 1)
    greedy = Greedy(free, board, compilation.feeds, 1.0, distance=DISTANCES.get(name), earliness=0.0)
    changes = {b.id: greedy.change([b.branches[0].title]) for b in free}
    (chosen,), change = greedy.choose()
    assert changes[chosen.id] == min(changes.values()) == change
    early = Greedy(free, board, compilation.feeds, 1.0, distance=DISTANCES.get(name), earliness=-0.5)
    early.change = lambda branches: 0.5  # type: ignore[method-assign]
    assert early.choose()[0] == [free[0]]


@pytest.mark.parametrize("name", ["output", *DISTANCES])
def test_the_change_is_told_in_the_asked_distance(name: str, tmp_path: Path) -> None:
    compilation, analysis = opened(saved_chain(tmp_path), tmp_path, ratio=0.1, layer_criterion=name)
    free = [b for b in find_blocks(analysis) if b.is_free]
    board = plugged(analysis.model, [b.branches[0].title for b in free], tmp_path / "g" / "m.onnx", 1)
    greedy = Greedy(free, board, compilation.feeds, 1.0, distance=DISTANCES.get(name))
    _, depth = shorten(compilation, analysis)
    assert depth.change == pytest.approx(greedy.change(depth.dropped))


def test_distances() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    for distance in DISTANCES.values():
        assert distance(a, a).max() < 1e-7
    assert divergence(a, a + 3.0).max() < 1e-12
    assert angular(a, 2 * a).max() < 1e-7
    assert np.allclose(angular(a, -a), 1)
    assert angular(np.eye(2), np.array([[0.0, 3.0], [0.0, 3.0]])) == pytest.approx([0.5, 0.0])
    assert np.allclose(divergence(a, b), divergence(b, a))
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (a, b))
    m = (p + q) / 2
    wanted = 0.5 * np.sum(p * np.log(p / m), axis=1) + 0.5 * np.sum(q * np.log(q / m), axis=1)
    assert np.allclose(divergence(a, b), wanted)
    assert divergence(np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]])) == pytest.approx(np.log(2))


def test_only_finite_floats_are_compared() -> None:
    ones = np.ones((2, 3), dtype=np.float32)
    assert np.isinf(distances({"y": ones}, {"y": ones * np.nan}, angular)).all()
    assert distances({"n": ones.astype(np.int64)}, {"n": 0 * ones}, angular).max() == 0


def test_a_compile_names_the_criterion(models_dir: Path, tmp_path: Path) -> None:
    path, out = models_dir / "digits_vit.onnx", tmp_path / "out"
    result = api.compile(
        path, output=out, prune=["layers"], ratio=0.2, layer_criterion="span", measure=False, recover="none"
    )
    (told,) = (p["facts"] for p in result.report["passes"] if p["name"] == "drop_blocks")
    assert (told["criterion"], told["blocks"]) == ("span", 1)
    assert 0 < told["change"] < 2
    assert result.report["removed"]["reached"]
    checks = api.verify(out, model=path)["checks"]
    assert {c["check"]: c["ok"] for c in checks}["numerics"]


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(InputError, match="unknown layer criterion 'outputs'"):
        CompileOptions(layer_criterion="outputs")
