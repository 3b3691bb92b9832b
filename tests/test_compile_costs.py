"""What a compile costs itself, counted: sessions, pieces that run, bytes that are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc.compilation import Compilation
from sparsecc.ir.apart import Apart, large
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.runtime import piecewise, session
from sparsecc.runtime.numerics import relative_error, worst_error
from sparsecc.runtime.piecewise import PiecewiseRunner, pieces_of
from sparsecc.runtime.session import open_graph, open_session, optimize
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.compile import compiled
from tests.test_growth import chain
from tests.zoo.synthetic import synthetic_graph

PLAIN = {"criterion": "l2", "allocator": "uniform"}
"""Without trials, whose number is another matter."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The nodes of every graph that a session is made of, in turn; 0 where it is a file's."""
    found: list[int] = []
    made = session._made

    def counting(source: Any, *rest: Any) -> Any:
        if isinstance(source, bytes):
            found.append(len(onnx.ModelProto.FromString(source).graph.node))
        elif isinstance(source, Path):
            found.append(0)
        return made(source, *rest)

    monkeypatch.setattr(session, "_made", counting)
    return found


def compile_within(folder: Path, model: Path, **options: Any) -> Path:
    """A compile whose scratch folder stays."""
    asked = CompileOptions(measure=False, **options)
    compilation = Compilation(model, asked, Scratch(folder / "scratch"))
    compiled(compilation, {"output": str(folder / "out")})
    return folder / "scratch"


def test_a_compile_writes_no_model_but_its_own(models_dir: Path, tmp_path: Path, opened: list[int]) -> None:
    scratch = compile_within(tmp_path, models_dir / "digits_resnet.onnx", ratio=0.5, **PLAIN)
    assert not list(scratch.rglob("*.onnx*"))
    nodes = len(load_ir(models_dir / "digits_resnet.onnx").graph)
    whole = [size for size in opened if size >= nodes]
    assert len(whole) == 2, opened  # the dense model, and what is optimized; the masked one runs in pieces
    assert opened.count(0) == 1  # the artefact


def test_long_graphs_run_in_pieces(
    tmp_path: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sessions hold the whole chain, whatever its length: what is optimized, and what was built."""
    monkeypatch.setattr(piecewise, "LONG", 50)
    onnx.save(chain(400), tmp_path / "m.onnx")
    compile_within(tmp_path, tmp_path / "m.onnx", ratio=0.5)
    assert [size for size in opened if size > 50] == [400]
    assert opened.count(0) == 1


def network() -> ir.Model:
    return normalise(synthetic_graph(120))


def test_pieces_compute_what_the_whole_computes() -> None:
    model = network()
    feeds = {"image": np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)}
    runner = PiecewiseRunner(model, most=pieces_of(model.graph))
    assert 8 <= len(runner.parts) <= 17
    assert worst_error(open_graph(model).run(feeds), runner.run(feeds)) < 1e-5


def test_a_changed_weight_runs_its_piece_and_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight gives what a session on a model with that weight gives, whatever was run before."""
    model = network()
    weights = [value for value in model.graph.initializers.values() if value.uses()]
    model.graph.inputs.extend(weights)
    runner = PiecewiseRunner(model, most=pieces_of(model.graph), again=True)
    feeds = {"image": np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)}
    ran: list[Any] = []
    run_part = PiecewiseRunner._run_part

    def counting(self: PiecewiseRunner, part: Any, *rest: Any) -> Any:
        ran.append(part)
        return run_part(self, part, *rest)

    monkeypatch.setattr(PiecewiseRunner, "_run_part", counting)
    right = runner.run(feeds)
    for number in (0, len(weights) // 2, len(weights) - 1):
        value, tensor = weights[number], weights[number].const_value
        assert tensor is not None
        other = np.flip(tensor.numpy()).copy()
        first = next(n for n, part in enumerate(runner.parts) if value in _twins(part.weights, value))
        ran.clear()
        found = runner.run({**feeds, value.name or "": other})
        assert ran == runner.parts[first:]
        wanted = open_session(model, level="none").run({**feeds, value.name or "": other})
        assert worst_error(wanted, found) < 1e-5
        assert worst_error(right, found) > 1e-3
    assert worst_error(right, runner.run(feeds)) == 0
    moved = {"image": feeds["image"] + 1}
    assert worst_error(open_session(model, level="none").run(moved), runner.run(moved)) < 1e-5


def test_outputs_wait_in_a_file_and_are_mapped_as_they_are_read() -> None:
    """Of a whole run and of one that begins later; those of other names are not given."""
    model = network()
    model.graph.outputs.append(next(node for node in model.graph if node.op_type == "Conv").outputs[0])
    weight = [value for value in model.graph.initializers.values() if value.uses()][-1]
    model.graph.inputs.append(weight)
    feeds = {"image": np.random.default_rng(0).standard_normal((4096, 3, 4, 4)).astype(np.float32)}
    wanted = open_graph(model).run(feeds)
    assert max(array.nbytes for array in wanted.values()) > 1 << 20
    runner = PiecewiseRunner(model, most=8, files=True, again=True)
    found = runner.run(feeds)
    assert list(found) == list(wanted)
    large = max(wanted, key=lambda name: wanted[name].nbytes)
    assert found[large] is not found[large]  # no array is held
    assert worst_error(wanted, found) < 1e-5
    assert weight.const_value is not None
    again = runner.run({**feeds, weight.name or "": weight.const_value.numpy()}, names=[large])
    assert list(again) == [large]
    np.testing.assert_allclose(again[large], wanted[large], rtol=1e-4, atol=1e-5)


def _twins(values: Any, value: ir.Value) -> list[ir.Value]:
    """The runner works on a copy: values of the same name."""
    return [value for one in values if one.name == value.name]


def test_weights_are_held_once(models_dir: Path) -> None:
    """A graph apart keeps the tensors of the model, and is the model again, its weights constants."""
    model = load_ir(models_dir / "digits_resnet.onnx")
    apart = Apart.of(model)
    assert apart.weights == {n: t for n, t in large(model).items() if n in apart.weights}
    assert len(apart.graph) + sum(t.nbytes for t in apart.weights.values()) < 1.1 * model_bytes(model)
    again = apart.model()
    assert [v.name for v in again.graph.inputs] == [v.name for v in model.graph.inputs]
    assert {n: v.const_value for n, v in again.graph.initializers.items()}.items() >= apart.weights.items()
    assert set(again.graph.initializers) == set(model.graph.initializers)


def model_bytes(model: ir.Model) -> int:
    return len(ir.to_proto(model).SerializeToString())


@pytest.mark.parametrize("beside", [1 << 30, 1024], ids=["inside", "beside"])
def test_what_is_written_is_the_model(models_dir: Path, tmp_path: Path, beside: int) -> None:
    model = load_ir(models_dir / "digits_resnet.onnx")
    path = write(model, tmp_path / "one" / "m.onnx", beside)
    onnx.checker.check_model(str(path))
    again = ir.load(path)
    assert list(again.graph.initializers) == list(model.graph.initializers)
    for name, value in model.graph.initializers.items():
        tensor = again.graph.initializers[name].const_value
        assert value.const_value is not None
        assert tensor is not None
        assert np.array_equal(value.const_value.numpy(), tensor.numpy())
    other = write(again, tmp_path / "two" / "m.onnx", beside)
    assert {f.name: f.read_bytes() for f in path.parent.iterdir()} == {
        f.name: f.read_bytes() for f in other.parent.iterdir()
    }


def test_what_is_optimized_in_memory_is_what_a_file_would_be(models_dir: Path, tmp_path: Path) -> None:
    model = load_ir(models_dir / "digits_resnet.onnx")
    found = ir.load(optimize(model, tmp_path / "found" / "m.onnx", "extended"))
    wanted = tmp_path / "wanted.onnx"
    open_session(models_dir / "digits_resnet.onnx", level="extended", optimized=wanted)
    same = ir.load(wanted)
    assert [n.op_type for n in found.graph] == [n.op_type for n in same.graph]
    for name, value in same.graph.initializers.items():
        tensor = found.graph.initializers[name].const_value
        assert value.const_value is not None
        assert tensor is not None
        assert relative_error(value.const_value.numpy(), tensor.numpy()) == 0
