"""What is left of a mixture takes over from what is gone: least squares on the last layers of its experts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc import compile
from sparsecc.axes.algebra import Atom
from sparsecc.calibrate.routers import mixtures_of
from sparsecc.data.samples import Samples
from sparsecc.graph.groups import find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.loading.normalise import normalise
from sparsecc.reconstruct.experts import fitted, refit_experts
from sparsecc.reconstruct.layerwise import Repair
from sparsecc.reconstruct.stage import kept_values
from sparsecc.runtime.segments import Walk
from tests.repair_models import normal
from tests.rule_checks import loaded, model_of
from tests.test_experts_routers import FUSED, KINDS

pytest.importorskip("torch", reason="the zoo is exported by torch: pip install 'sparsecc[torch]'")
from tests.mixture_models import NEVER, Studied, atom_of, biased, studied
from tests.zoo.export import Exporter


def without(found: Studied, gone: Mapping[Atom, list[int]], folder: Path) -> tuple[Repair, float, float]:
    """What refitting did once slots were removed, and the squared error of the outputs before and after it."""
    dense = normalise(ir.from_proto(ir.to_proto(found.analysis.model)))
    wanted = found.outputs(dense)
    keep = {atom: ~np.isin(np.arange(atom.size), slots) for atom, slots in gone.items()}  # type: ignore[arg-type]
    kept = kept_values(found.analysis, keep)
    remove(found.analysis, keep)
    before = error(wanted, found.outputs())
    mixtures = mixtures_of(found.analysis)
    names = [name for mixture in mixtures for name in mixture.names]
    batches = found.samples.batches
    one = Walk(dense, batches, folder / "one", wanted=names)
    (result,) = (value.name or "" for value in found.analysis.model.graph.outputs)
    other = Walk(found.analysis.model, batches, folder / "other", wanted=[*names, result])
    done = refit_experts(mixtures, one, other, kept, seed=0)
    other.reach(result)
    seen = [other.value(result, batch) for batch in range(other.batches)]
    after = found.outputs()
    assert error(seen, after) < 1e-8, "the walk goes on with what the refitted experts give"
    return done, before, error(wanted, after)


def error(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    return float(np.mean([np.mean(np.square(a - b)) for a, b in zip(wanted, found, strict=True)]))


FORMS: list[tuple[str, Exporter]] = [
    ("mixtral", "dynamo"),
    ("gpt_oss", "torchscript"),
    ("qwen_moe", "dynamo"),
]


@pytest.mark.parametrize(("name", "exporter"), FORMS)
def test_refitted_experts_lose_less(name: str, exporter: Exporter, tmp_path: Path) -> None:
    found = studied(biased(name, exporter, {0: -1.0}), tmp_path)
    done, before, after = without(found, {g.atom: [0, 3] for g in found.experts}, tmp_path)
    assert [row["error_after"] < row["error_before"] for row in done.layers] == [True, True]
    assert after < 0.9 * before
    assert len(set(done.changed)) == 2


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_what_an_unused_expert_leaves_is_not_touched(name: str, tmp_path: Path) -> None:
    found = studied(biased(name, bias={3: NEVER}), tmp_path)
    done, _, after = without(found, {g.atom: [3] for g in found.experts}, tmp_path)
    assert done == Repair()
    assert after < 1e-9


def test_the_width_of_experts_is_refitted_too(tmp_path: Path) -> None:
    found = studied(biased("mixtral"), tmp_path)
    inner = [atom_of(router.mixture.inner[0].axis) for router in found.stats.routers]
    done, before, after = without(found, {atom: list(range(0, 52, 3)) for atom in inner}, tmp_path)
    assert after < 0.8 * before
    assert done.remarks == []


def test_removed_channels_of_the_output_are_left_out(tmp_path: Path) -> None:
    found = studied(biased("mixtral"), tmp_path)
    hidden = next(
        g for g in find_groups(found.analysis) if g.is_free and g.kind == "channel" and g.size == 40
    )
    gone = {hidden.atom: [1, 7], found.experts[0].atom: [2]}
    done, _, _ = without(found, gone, tmp_path)
    assert done.remarks == []
    assert done.layers[0]["error_after"] < done.layers[0]["error_before"]


def test_experts_inside_an_operator_are_refitted(tmp_path: Path) -> None:
    text = FUSED.format(wide=12, norm=1, kind=KINDS["relu"])
    rows = Samples(({"x": normal(400, 8, seed=3)},), True)
    found = studied(loaded(model_of(text)), tmp_path, rows)
    done, before, after = without(found, {found.experts[0].atom: [1]}, tmp_path)
    assert after < 0.9 * before
    np.testing.assert_allclose(
        done.layers[0]["error_after"] / done.layers[0]["error_before"], after / before, rtol=1e-3
    )


def test_one_expert_is_ridge_regression() -> None:
    random = np.random.default_rng(0)
    active, missing = random.normal(size=(50, 4)), random.normal(size=(50, 3))
    change, left = fitted(np.zeros((50, 1), dtype=int), active, missing, 1, 0.1)
    powers = active.T @ active
    wanted = np.linalg.solve(powers + 0.1 * np.trace(powers) / 4 * np.eye(4), active.T @ missing)
    np.testing.assert_allclose(change[0], wanted)
    np.testing.assert_allclose(left, missing - active @ wanted)


def test_what_experts_can_make_up_for_is_made_up_for() -> None:
    """Two of three experts for each token: what is missing is linear in their activations."""
    random = np.random.default_rng(0)
    chosen = np.stack([random.permutation(3)[:2] for _ in range(400)])
    active, truth = random.normal(size=(800, 4)), random.normal(size=(3, 4, 5))
    missing = np.einsum("ps,psw->pw", active, truth[chosen.ravel()]).reshape(400, 2, 5).sum(axis=1)
    change, left = fitted(chosen, active, missing, 3, 1e-6)
    assert np.square(left).mean() < 1e-3 * np.square(missing).mean()
    np.testing.assert_allclose(change, truth, atol=0.1)


def test_a_compile_refits_experts(tmp_path: Path) -> None:
    path, samples = tmp_path / "mixture.onnx", tmp_path / "samples.npz"
    onnx.save(biased("mixtral", bias={3: -2.0}), path)
    ids = np.random.default_rng(0).integers(0, 50, (48, 11))
    np.savez(samples, input_ids=ids, attention_mask=np.ones_like(ids))
    report = compile(
        path,
        output=tmp_path / "out",
        ratio=0.2,
        metric="params",
        prune=("experts",),
        criterion="expert_gate",
        allocator="uniform",
        calib=str(samples),
        measure=False,
    ).report
    told = next(p["facts"] for p in report["passes"] if p["name"] == "repair")
    (stack,) = {row["layer"]: row for row in told["layers"] if row["layer"] == "node_mul_426"}.values()
    assert stack["error_after"] < stack["error_before"]
    assert told["tensors_changed"] >= 2
