"""GAPrune: what the domain alone needs stays, what general data alone needs goes, else magnitude decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.cli import main
from sparsecc.criteria.gradient import Gradients
from sparsecc.data.samples import Samples
from sparsecc.errors import InputError
from sparsecc.graph.groups import find_groups
from tests.repair_models import analysed, model_of, normal

torch = pytest.importorskip("torch", reason="dai needs gradients: pip install 'sparsecc[torch]'")
from sparsecc.torch.scores.domains import alignment  # noqa: E402

TWO_SIDED = "g (float[n, 6] x) => (float[n, 4] y) { a = MatMul(x, w1) h = Relu(a) y = MatMul(h, w2) }"
GENERAL = [1, 2, 5, 7]
"""The slots that read inputs 3 to 5; the others read inputs 0 to 2."""


def two_sided() -> dict[str, np.ndarray]:
    """All weights have one size, so that only their use tells slots apart."""
    w1, w2 = np.zeros((6, 8), np.float32), np.sign(normal(8, 4, seed=2)).astype(np.float32)
    for slot in range(8):
        rows = slice(3, 6) if slot in GENERAL else slice(0, 3)
        w1[rows, slot] = 1
    return {"w1": w1, "w2": w2}


def halves() -> tuple[np.ndarray, np.ndarray]:
    """Samples of the domain and of everything else: disjoint inputs."""
    data = np.abs(normal(48, 6, seed=3))
    domain, general = data.copy(), data.copy()
    domain[:, 3:], general[:, :3] = 0, 0
    return domain, general


@pytest.mark.parametrize("literal", [False, True])
def test_where_both_sets_say_the_same_magnitude_decides(literal: bool) -> None:
    """F_d = F_g, s = 0."""
    weight, fisher = torch.from_numpy(normal(7, 9, seed=1)), torch.from_numpy(normal(7, 9, seed=2)).square()
    nothing = torch.zeros(7, 9)
    found = alignment(weight, (fisher, fisher), (nothing, torch.ones(7, 9)), literal=literal)
    assert torch.equal(found.flatten().argsort(), weight.abs().flatten().argsort())
    assert 0 < float(found.min()) < float(found.max()) < 1


def test_the_number_is_its_formula() -> None:
    weight = torch.tensor([[0.5, -0.2, 0.1]])
    fishers = torch.tensor([[4e-6, 0.0, 2e-6]]), torch.tensor([[0.0, 4e-6, 2e-6]])
    gradients = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, -1.0]])

    def wanted(scale: float, agreement: np.ndarray) -> np.ndarray:
        w = np.array([0.5, 0.2, 0.1])
        difference = np.array([4e-6, -4e-6, 0]) / scale
        raw = difference * w * np.clip(1 + 0.2 * agreement, 0.8, 1.2) + 0.4 * np.sqrt(w)
        soft = np.log1p(np.exp(raw))
        return np.asarray(1 / (1 + np.exp(-(soft - soft.mean()) / soft.std())))

    smoothed = np.array([1, 1 / 3, 0])
    scaled = alignment(weight, fishers, gradients, literal=False)[0]
    np.testing.assert_allclose(scaled, wanted(2e-6, smoothed), rtol=1e-4)
    literal = alignment(weight, fishers, gradients, literal=True)[0]
    np.testing.assert_allclose(literal, wanted(1.0, smoothed / 3), rtol=1e-4)


def test_in_the_literal_form_magnitude_decides_whatever_the_domain_is() -> None:
    """Why it is not the default: Fishers of 1e-6 are lost beside the root of the magnitude."""
    weight = torch.from_numpy(normal(7, 9, seed=1))
    fishers = (
        1e-7 * torch.from_numpy(normal(7, 9, seed=2)).square(),
        1e-7 * torch.from_numpy(normal(7, 9, seed=3)).square(),
    )
    gradients = torch.zeros(7, 9), torch.zeros(7, 9)
    order = [alignment(weight, fishers, gradients, literal=one).flatten().argsort() for one in (True, False)]
    by_size = weight.abs().flatten().argsort()
    assert torch.equal(order[0], by_size)
    assert not torch.equal(order[1], by_size)


def test_a_slot_that_only_the_domain_uses_beats_one_that_only_general_data_uses() -> None:
    domain, general = (Samples(({"x": data},), True) for data in halves())
    analysis = analysed(TWO_SIDED, two_sided())
    (group,) = [g for g in find_groups(analysis) if g.is_free]
    found = Gradients(analysis, domain, 0, general).of("dai")[group.atom]
    others = [slot for slot in range(8) if slot not in GENERAL]
    assert found[others].min() > found[GENERAL].max()
    swapped = Gradients(analysis, general, 0, domain).of("dai")[group.atom]
    assert swapped[others].max() < swapped[GENERAL].min()


def test_a_compile_keeps_what_the_domain_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ir.save(model_of(TWO_SIDED, two_sided()), tmp_path / "m.onnx")
    for name, data in zip(("domain", "general"), halves(), strict=True):
        np.savez(tmp_path / f"{name}.npz", x=data)
    out = tmp_path / "out"
    given = f"--criterion dai --calib {tmp_path / 'domain.npz'} --calib-general {tmp_path / 'general.npz'}"
    more = f"--ratio 0.5 --allocator uniform --align 1 --recover none --no-measure -q -o {out}"
    assert main(["compile", str(tmp_path / "m.onnx"), *given.split(), *more.split()]) == 0, (
        capsys.readouterr()
    )
    kept = ir.load(out / "model.onnx").graph.initializers["w1"].const_value
    assert kept is not None
    wanted = np.delete(two_sided()["w1"], GENERAL, axis=1)
    np.testing.assert_array_equal(kept.numpy(), wanted)
    assert f"calib_general: {tmp_path / 'general.npz'}" in (out / "recipe.yaml").read_text()
    assert '"general_samples": 48' in (out / "report.json").read_text()
    again = ["verify", str(out), "--model", str(tmp_path / "m.onnx"), "--reproduce", "-q"]
    again += ["--calib", str(tmp_path / "domain.npz"), "--calib-general", str(tmp_path / "general.npz")]
    assert main(again) == 0, capsys.readouterr()


def compiled(folder: Path, **options: object) -> sparsecc.CompileResult:
    ir.save(model_of(TWO_SIDED, two_sided()), folder / "m.onnx")
    np.savez(folder / "domain.npz", x=halves()[0])
    given = {"ratio": 0.5, "calib": str(folder / "domain.npz"), "measure": False, "dry_run": True}
    return sparsecc.compile(folder / "m.onnx", **{**given, **options})  # type: ignore[arg-type]


def test_general_samples_are_checked_as_those_of_the_domain_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 6), np.float32))
    np.savez(tmp_path / "nan.npz", x=np.full((2, 6), np.nan, np.float32))
    for name, told in (
        ("none.npz", "none.npz"),
        ("empty.npz", "--calib-general .* holds no"),
        ("nan.npz", "x"),
    ):
        with pytest.raises(InputError, match=told):
            compiled(tmp_path, criterion="dai", calib_general=str(tmp_path / name))


def test_a_criterion_of_one_set_says_that_the_other_was_not_used(tmp_path: Path) -> None:
    np.savez(tmp_path / "general.npz", x=halves()[1])
    made = compiled(tmp_path, criterion="l2", calib_general=str(tmp_path / "general.npz"))
    assert any("--calib-general was not used: criterion l2" in line for line in made.report["warnings"])
