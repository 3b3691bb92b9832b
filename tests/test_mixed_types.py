"""A type for every layer: the solver is exact, the budget is kept, and it loses less than one type for all."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc import api
from sparsecc.errors import GoalError, InputError
from sparsecc.passes.base import PassResult
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.quantize.by_hand import FLOAT, forms_by_hand, written_by_hand
from sparsecc.passes.quantize.mixed_precision import Point, allocate, gain, widths
from sparsecc.plan import Plan
from sparsecc.runtime.session import open_session
from sparsecc.system.files import size_of
from tests.compilations import compilation
from tests.quantize_models import convolutions, feeds_for, transformer

ROOT = Path(__file__).resolve().parents[1]

TABLES = st.lists(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 900)), min_size=1, max_size=3), min_size=1, max_size=5
)


@settings(max_examples=150)
@given(TABLES, st.integers(0, 5000), st.booleans())
def test_the_solver_is_as_good_as_trying_everything(
    rows: list[list[tuple[float, int]]], room: int, by_size: bool
) -> None:
    """With bytes in units that the program's budget has, and losses in steps where they are the budget."""
    whole = 5000
    table = {
        str(i): {FLOAT: Point(0.0, whole)}
        | {f"f{j}": Point(loss, whole - saved) for j, (loss, saved) in enumerate(row)}
        for i, row in enumerate(rows)
    }
    budget = float(room) if by_size else room / 2500
    names = list(table)
    tried = [dict(zip(names, forms, strict=True)) for forms in itertools.product(*table.values())]

    def loss(choice: dict[str, str]) -> float:
        return sum(table[name][form].error for name, form in choice.items())

    def size(choice: dict[str, str]) -> int:
        return whole + sum(table[name][form].bytes - whole for name, form in choice.items())

    found = allocate(table, whole, budget, by_size=by_size)
    spent, aim = (size, loss) if by_size else (loss, size)
    fitting = [choice for choice in tried if spent(choice) <= budget]
    if found is None:
        tighter = [choice for choice in tried if spent(choice) <= budget * (1 - len(rows) / 2000) - len(rows)]
        assert not fitting or not tighter
        return
    assert spent(found) <= budget * (1 + 1e-9)
    # Rounding costs up takes at most a 2000th of the room per layer.
    least = min(spent(choice) for choice in tried)
    room_left = budget - len(rows) * (budget - (least if by_size else 0)) / 2000
    best = min((aim(choice) for choice in fitting if spent(choice) <= room_left), default=None)
    if best is not None:
        assert aim(found) <= best + 1e-9


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=8), st.integers(0, 1000), st.floats(2, 8))
def test_closed_form_widths_have_equal_losses_and_keep_the_mean(
    losses: list[float], seed: int, mean: float
) -> None:
    each = np.array(losses)
    numbers = np.random.default_rng(seed).integers(1, 100, len(each)).astype(float)
    bits = widths(each, numbers, mean)
    assert np.average(bits, weights=numbers) == pytest.approx(mean)
    lost = each * 4.0**-bits / numbers
    np.testing.assert_allclose(lost, lost[0], rtol=1e-9)
    equal = (each * 4.0**-mean).sum()
    assert (each * 4.0**-bits).sum() / equal == pytest.approx(gain(each, numbers))
    assert gain(each, numbers) <= 1 + 1e-12


def test_equal_losses_give_equal_widths() -> None:
    np.testing.assert_allclose(widths(np.full(5, 0.3), np.full(5, 7.0), 4.0), 4.0)
    assert gain(np.full(5, 0.3), np.full(5, 7.0)) == pytest.approx(1.0)


def mix(
    model: ir.Model, feeds: list[dict[str, np.ndarray]], folder: Path, target: str = "onnxruntime",
    **options: object,
) -> PassResult:  # fmt: skip
    given = compilation(target, feeds, folder)
    return Quantize(type="mixed", **options).run(model, Plan({}), given)  # type: ignore[arg-type]


def bytes_of(model: ir.Model, folder: Path) -> int:
    file = folder / "written.onnx"
    open_session(model, level="extended", optimized=file)
    return file.stat().st_size


@pytest.mark.parametrize("share", [0.7, 0.4])
@pytest.mark.parametrize("build", [convolutions, transformer])
def test_the_budget_is_kept_and_the_facts_are_those_of_the_file(
    build: object, share: float, tmp_path: Path
) -> None:
    model = build()  # type: ignore[operator]
    feeds = [feeds_for(model)]
    size = share * bytes_of(model.clone(), tmp_path)
    result = mix(model, feeds, tmp_path, size=size)
    assert bytes_of(model, tmp_path) == result.facts["bytes"] <= size
    assert set(result.facts["types"]) == set(result.facts["losses"])
    for form in set(result.facts["types"].values()) - {FLOAT}:
        assert form in result.facts["uniform"]


def test_what_types_cannot_reach_is_refused_with_what_they_can(tmp_path: Path) -> None:
    model = convolutions()
    with pytest.raises(GoalError, match=r"1000 bytes are out of reach .* the smallest is \d+: .*--ratio"):
        mix(model, [feeds_for(model)], tmp_path, size=1000)


def test_the_least_bytes_within_a_loss(tmp_path: Path) -> None:
    model = transformer()
    feeds = [feeds_for(model)]
    tight, loose = (mix(model.clone(), feeds, tmp_path, max_drop=drop).facts for drop in (1e-5, 1e-2))
    assert tight["error"] <= 1e-5 < loose["error"] <= 1e-2
    assert loose["bytes"] < tight["bytes"]
    with pytest.raises(GoalError, match="allow more of either"):
        mix(model, feeds, tmp_path, max_drop=1e-6, size=0.5 * bytes_of(model.clone(), tmp_path))


@pytest.mark.parametrize(("share", "form", "least"), [(0.32, "int8", 0.9), (0.24, "int4/32", 0.5)])
def test_at_equal_bytes_a_mixture_loses_less_than_one_type(
    share: float, form: str, least: float, tmp_path: Path
) -> None:
    """A trained vision transformer: within bytes that one type alone takes, or nearly."""
    from benchmarks.quantization_cases import digits

    case = digits("digits_vit")
    size = share * case.path.stat().st_size
    facts = mix(ir.load(case.path), case.calibration, tmp_path, size=size).facts
    alone = facts["uniform"][form]
    assert alone["bytes"] <= size < 1.15 * alone["bytes"]
    assert facts["bytes"] <= size
    assert facts["chosen"] == "mixed"
    assert facts["error"] < least * alone["error"]
    assert facts["predicted_error"] == pytest.approx(facts["error"], rel=0.5)


@pytest.mark.parametrize("options", [{"types": ("int8", "fp8")}, {"types": ("fp16",)}, {}])
def test_what_cannot_be_mixed_is_one_line(options: dict[str, object], tmp_path: Path) -> None:
    model = convolutions()
    with pytest.raises(
        InputError, match=r"needs a budget|give int4 and one of|does not accelerate"
    ) as caught:
        mix(model, [feeds_for(model)], tmp_path, target="tensorrt", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("types", [("int8", "int4"), ("fp8", "int4"), ("int4",)])
def test_tensorrt_gets_mixed_types_with_the_rest_in_half(types: tuple[str, ...], tmp_path: Path) -> None:
    model = transformer()
    whole = len(ir.to_proto(model).SerializeToString())
    result = mix(model, [feeds_for(model)], tmp_path, "tensorrt", size=0.4 * whole, types=types, rest="fp16")
    assert result.facts["bytes"] <= 0.4 * whole
    assert len(ir.to_proto(model).SerializeToString()) <= 0.4 * whole
    assert len(set(result.facts["types"].values())) > 1


def test_a_compile_keeps_the_size_by_types_and_by_removal_where_both_are_asked(tmp_path: Path) -> None:
    path = ROOT / "models" / "digits_vit.onnx"
    samples = f"{ROOT / 'models' / 'digits.py'}:calibration"

    def bundle(folder: str, share: float, ratio: float | None = None) -> tuple[float, bool]:
        """The share of the bytes that is left, and whether anything was removed."""
        made = api.compile(
            path, output=tmp_path / folder, calib=samples, measure=False, quantize="mixed",
            size=share * path.stat().st_size, ratio=ratio,
        )  # fmt: skip
        assert made.bundle is not None
        cut = any(group["kept"] < group["size"] for group in made.plan["groups"])
        return size_of(made.bundle) / path.stat().st_size, cut

    left, cut = bundle("types", 0.3)
    assert left <= 0.3
    assert not cut
    left, cut = bundle("both", 0.15, 0.5)
    assert left <= 0.15
    assert cut


def test_bytes_that_do_not_add_up_are_made_up_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where layers share a weight: what was saved alone is saved once."""
    from sparsecc.passes.quantize import mixed_precision as mixed

    honest = mixed.measured

    def misled(judge: mixed.Judge, whole: Point) -> mixed.Table:
        table = honest(judge, whole)
        return {
            name: {
                form: replace(p, bytes=int(whole.bytes - 1.3 * (whole.bytes - p.bytes)))
                for form, p in row.items()
            }
            for name, row in table.items()
        }

    monkeypatch.setattr(mixed, "measured", misled)
    model = transformer()
    size = 0.5 * bytes_of(model.clone(), tmp_path)
    assert mix(model, [feeds_for(model)], tmp_path, size=size).facts["bytes"] <= size


def test_a_better_single_type_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the sum of losses misleads the solver, measuring again finds it out."""
    from sparsecc.passes.quantize import mixed_precision as mixed

    honest = mixed.measured

    def misled(*given: object) -> object:
        table = honest(*given)  # type: ignore[arg-type]
        return {
            name: {form: replace(p, error=0.0 if "int4" in form else p.error) for form, p in row.items()}
            for name, row in table.items()
        }

    monkeypatch.setattr(mixed, "measured", misled)
    model = transformer()
    size = 0.5 * bytes_of(model.clone(), tmp_path)
    facts = mix(model, [feeds_for(model)], tmp_path, size=size).facts
    assert facts["chosen"] == "int8"
    assert set(facts["types"].values()) == {"int8"}


def test_types_by_hand_are_those_that_layers_get(tmp_path: Path) -> None:
    """The last pattern that names a layer counts; what none names stays in float."""
    model = transformer()
    layers = ("type:MatMul=int8", "down.weight=int4", "query.weight=float")
    facts = mix(model, [feeds_for(model)], tmp_path, layers=layers).facts
    by_weight = {name.removeprefix("MatMul_"): form for name, form in facts["types"].items()}
    assert by_weight["down.weight"] == "int4/32"
    assert by_weight["query.weight"] == "float"
    assert {form for name, form in by_weight.items() if name not in ("down.weight", "query.weight")} == {
        "int8"
    }
    kinds = Counter(node.op_type for node in model.graph)
    assert (kinds["MatMulIntegerToFloat"], kinds["MatMulNBits"]) == (4, 1)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (("query.weight",), "write PATTERN=TYPE"),
        (("Softmax_shares=int8",), "cannot be int8: it may be float"),
        (("query.weight=int4/128",), "cannot be int4/128: it may be float, int4/32, int8"),
    ],
)
def test_types_by_hand_that_cannot_be_are_refused(
    layers: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    model = transformer()
    with pytest.raises(InputError, match=words):
        mix(model, [feeds_for(model)], tmp_path, layers=layers, types=("int8", "int4"))


def test_a_choice_is_written_so_that_it_is_made_again() -> None:
    """Names with commas and wildcards, and one that is a module of another."""
    model = transformer()
    nodes = [node for node in model.graph if node.op_type == "MatMul"][:3]
    for node, name in zip(nodes, ("a", "a/b", "c[0],d"), strict=True):
        node.name = name
    forms = {node.name or "": ("float", "int8") for node in nodes}
    names = [node.name or "" for node in model.graph]
    for kept in itertools.product(("float", "int8"), repeat=3):
        choice = dict(zip(forms, kept, strict=True))
        text = written_by_hand(choice, names)
        assert forms_by_hand(model, text.split(","), forms) == choice
