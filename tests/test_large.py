"""Models beyond memory: run, proved and written by parts, tensor by tensor."""

from __future__ import annotations

import hashlib
import mmap
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from benchmarks.growth import OPTIONS as PLAIN_HALF
from benchmarks.growth import linear
from benchmarks.large import Decoder, measured
from sparsecc.allocators.base import Candidate, Nearest
from sparsecc.axes.algebra import Atom
from sparsecc.backends.ort.cpu import OnnxRuntimeCpu
from sparsecc.compilation import Compilation
from sparsecc.criteria import weights
from sparsecc.data.random_inputs import random_feeds
from sparsecc.errors import InputError, InternalError
from sparsecc.graph.rewrite import remove
from sparsecc.ir import versions
from sparsecc.ir.mapped import MappedFile, Spool
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.runtime import partitioned as parts
from sparsecc.runtime.filed import Filed
from sparsecc.runtime.numerics import worst_error
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.rounding import nudged
from sparsecc.runtime.session import open_session
from sparsecc.system import memory
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.stages import DECIDING, Work, walk
from sparsecc.verify.prove import prove

BARE = 140
"""Megabytes of a worker that has loaded its libraries."""
SMALL = {"width": 128, "layers": 2, "words": 512}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of 1 MB with external data."""
    return Decoder(tmp_path_factory.mktemp("decoder"), **SMALL).write()


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model fits, and constants of all sizes count as large."""
    monkeypatch.setattr(memory, "fits", lambda weights: False)
    monkeypatch.setattr(parts, "HELD", 0)


BRANCHES = """
<ir_version: 8, opset_import: ["": 17]>
branches (float[2,4] x, bool flag) => (float[2,4] y, float[2,4] same)
<float[4,4] w = {1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}, float[2,4] same = {1,2,3,4,5,6,7,8}> {
  a = MatMul(x, w)
  b = Relu(a)
  c = If(flag) <then_branch = yes () => (float[2,4] p) { p = Add(a, b) },
                else_branch = no () => (float[2,4] q) { q = MatMul(b, w) }>
  d = SequenceConstruct(b, c)
  e = ConcatFromSequence <axis = 0, new_axis = 1> (d)
  y = ReduceSum <keepdims = 0> (e, axes)
}
"""


def branching() -> ir.Model:
    """A body that reads outer values and a constant, a sequence, a constant that is an output."""
    text = BRANCHES.replace("(e, axes)", "(e, zero)").replace(
        "<float[4,4] w", "<int64[1] zero = {0}, float[4,4] w"
    )
    return normalise(ir.from_onnx_text(text))


@pytest.mark.parametrize("size", [1, 1 << 30])
def test_parts_compute_what_the_whole_computes(no_room: None, size: int) -> None:
    model = branching()
    runner = PartedRunner(model, size=size)
    for flag in (True, False):
        feeds = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4), "flag": np.asarray(flag)}
        whole = open_session(ir.to_proto(model).SerializeToString(), level="none").run(feeds)
        assert worst_error(whole, runner.run(feeds)) == 0
    assert (len(runner.parts) > 1) is (size == 1)


def test_no_sequence_crosses_from_part_to_part(no_room: None) -> None:
    crossing = {v.name for part in PartedRunner(branching(), size=1).parts for v in part.gives}
    assert "d" not in crossing


def test_a_decoder_runs_by_parts(decoder: Path, tmp_path: Path, no_room: None) -> None:
    model = normalise(load_ir(decoder))
    feeds = random_feeds(model, seed=0, sizes={"ids": (2, 7)})
    whole = open_session(write(model, tmp_path / "model.onnx"), level="none").run(feeds)
    runner = PartedRunner(model, size=1 << 18)
    assert len(runner.parts) > 4
    assert worst_error(whole, runner.run(feeds)) < 2e-3  # halves are rounded at every cut
    with pytest.raises(InputError, match=r"ONNX Runtime .* refuses it"):
        runner.run({"ids": np.zeros((2, 7), np.float32)})


DEQUANTIZED = """
<ir_version: 8, opset_import: ["": 17]>
dequantized (float[1,8] x) => (float[1,8] y)
<int8[8,8] w1, int8[8,8] w2, float s = {0.5}> {
  a = DequantizeLinear(w1, s)
  b = DequantizeLinear(w2, s)
  c = MatMul(x, a)
  y = MatMul(c, b)
}
"""


def test_weights_are_dequantized_just_before_they_are_read(no_room: None) -> None:
    """Exporters put all of them first, where all would live at once."""
    found = [[node.op_type for node in part.nodes] for part in parts.parts_of(dequantized(), 100)]
    assert found == [["DequantizeLinear", "MatMul"], ["DequantizeLinear", "MatMul"]]


def dequantized() -> ir.Model:
    text = DEQUANTIZED
    for name in ("w1", "w2"):
        text = text.replace(f"[8,8] {name},", f"[8,8] {name} = {{{', '.join(['1'] * 64)}}},")
    return normalise(ir.from_onnx_text(text))


def decided(path: Path, scratch: Path, **options: Any) -> Work:
    """A compile up to the removal."""
    asked = CompileOptions(measure=False, **options)
    return walk(Work(Compilation(path, asked, Scratch(scratch))), DECIDING)


@pytest.mark.parametrize("corrupt", [False, True])
def test_proof_by_parts_finds_a_wrong_weight(
    decoder: Path, tmp_path: Path, no_room: None, corrupt: bool
) -> None:
    work = decided(decoder, tmp_path, ratio=0.3, target="onnx")
    analysis, probes, keep = work.analysis, work.probes, work.decision.choice.keep
    removal = probes.of_removal(analysis, keep)
    removal = replace(removal, cuts=remove(analysis, keep))
    if corrupt:
        value = analysis.model.graph.initializers["l1.up"]
        assert value.const_value is not None
        wrong = value.const_value.numpy().copy()
        wrong[:, 3] = wrong[:, 2]
        value.const_value = ir.Tensor(wrong, name=value.name)
        with pytest.raises(InternalError, match="differs from the masked dense one"):
            prove(analysis.model, probes, removal)
        return
    verdict = prove(analysis.model, probes, removal)
    assert verdict["planted"]["tried"] == verdict["planted"]["noticed"] == 8
    assert verdict["by_parts"]["parts"] == len(PartedRunner(analysis.model).parts)
    assert verdict["max_relative_error"] < 1e-2
    assert not list(tmp_path.rglob("*.onnx"))  # nothing was copied


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"calib": "synthetic"}, "--calib"),
        ({"prune": ("layers",)}, "--prune layers"),
        ({"recover": "bias"}, "--recover bias"),
        ({"emit": "ort"}, "--emit ort"),
        ({"target": "tensorrt"}, "target tensorrt"),
    ],
)
def test_what_needs_the_whole_model_is_refused(
    decoder: Path, tmp_path: Path, no_room: None, asked: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=f"{named} needs it whole: raise --memory-limit"):
        decided(decoder, tmp_path, **asked)


def test_streamed_and_whole_builds_give_the_same_bytes(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(memory, "HELD", 1024)
    for name, fits in (("whole", True), ("streamed", False), ("again", False)):
        monkeypatch.setattr(memory, "fits", lambda weights, fits=fits: fits)
        (tmp_path / name).mkdir()
        options = {"level": "none", "external_above": 1024}
        made = OnnxRuntimeCpu().build(
            normalise(load_ir(decoder)), tmp_path / name, options, lambda what, share: None
        )
        assert set(made.files) == {"model.onnx", "model.onnx.data"}
        found.append({f: hashlib.sha256((tmp_path / name / f).read_bytes()).hexdigest() for f in made.files})
    assert found[0] == found[1] == found[2]


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """160 MB of weights under a limit of 512 MiB: pruned, zeroed in a pattern, rounded, and every step proved."""
    path = Decoder(tmp_path, 1024, 5, 8192).write()
    size = (tmp_path / "decoder.onnx.data").stat().st_size
    options = {"ratio": 0.3, "align": 32, "target": "onnx", "sparsity": "2:4", "quantize": "int4"}
    request = {"model": str(path), "output": str(tmp_path / "out"), "options": {**options, "measure": False}}
    found = measured("sparsecc.tasks.compile:compile_model", request, 512 << 20, 300)
    assert found["came"] == "done"
    assert size > 140e6
    assert found["peak_mb"] < 2 * size / 1e6 + BARE, found
    assert found["verification"]["by_parts"]["parts"] > 2
    assert found["after"]["bytes"] < 0.4 * size


def test_a_whole_model_takes_twice_its_weights(tmp_path: Path) -> None:
    """100 MB in the model's own file, pruned, proved and built whole."""
    model = linear(100)
    onnx.save(model, path := tmp_path / "model.onnx")
    del model
    request = {"model": str(path), "output": str(tmp_path / "out"), "options": PLAIN_HALF}
    found = measured("sparsecc.tasks.compile:compile_model", request, 2 << 30, 300)
    assert found["came"] == "done"
    assert found["verification"]["status"] == "proved"
    assert "by_parts" not in found["verification"]
    assert found["peak_mb"] < 2 * path.stat().st_size / 1e6 + BARE, found


RUN = """
import onnx_ir as ir
from sparsecc.runtime.session import open_graph
import numpy as np
open_graph(ir.load({path!r})).run({{"v0": np.ones((2, 1024), np.float16)}})
print(next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_halves_are_cast_as_they_are_used(tmp_path: Path) -> None:
    """100 MB of them, which ONNX Runtime casts to twice that: by default most before one is used."""
    model = linear(200)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights")
    del model
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(path=str(path))], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 1.5 * 100 + BARE, done.stdout


def test_large_pieces_leave_with_their_array(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    data = np.random.default_rng(0).integers(0, 256, 3 << 20, dtype=np.uint8)
    path.write_bytes(data.tobytes())
    with path.open("rb") as file:
        mapped = MappedFile(os.dup(file.fileno()), data.size)
    offset = mmap.PAGESIZE + 5
    piece = mapped.read(offset, 2 << 20)
    assert np.array_equal(piece, data[offset : offset + (2 << 20)])
    assert str(path) in Path("/proc/self/maps").read_text()
    del piece
    assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.INT4])
def test_spooled_tensors_are_what_they_were(tmp_path: Path, dtype: ir.DataType) -> None:
    spool = Spool(tmp_path)
    numbers = np.random.default_rng(0).integers(-8, 8, (2, 1536, 1024)).astype(dtype.numpy())
    tensors = [ir.Tensor(one, name=f"t{i}") for i, one in enumerate(numbers)]
    kept = [spool.keep(ir.tensor(t.numpy(), dtype=dtype, name=t.name)) for t in tensors]
    assert [t.nbytes > memory.HELD for t in kept] == [isinstance(t, ir.LazyTensor) for t in kept]
    for before, after in zip(tensors, kept, strict=True):
        assert (after.name, after.dtype, list(after.shape)) == (before.name, dtype, [1536, 1024])
        assert np.array_equal(after.numpy(), before.numpy())
        assert after.tobytes() == before.tobytes()
    assert list(tmp_path.iterdir()) == []


def test_arrays_that_wait_in_a_file_are_read_only_where_they_are_asked_for() -> None:
    """A look at which there are, as a proof takes at each layer for each planted fault, reads none."""
    filed, large = Filed(), np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)
    for name, array in {"large": large, "turned": large.T, "small": large[:1], "whole": np.arange(3)}.items():
        filed.put(name, array)
    with mock.patch.object(MappedFile, "read", side_effect=AssertionError):
        assert [name in filed for name in ("large", "turned", "whole", "none")] == [True, True, True, False]
        assert list(filed.only(["whole", "large"])) == ["whole", "large"]
    assert np.array_equal(filed["large"], large)
    assert np.array_equal(filed["turned"], large.T)
    assert np.array_equal(filed["small"], large[:1])
    assert filed["whole"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_every_entry_of_a_large_array_moves_by_about_a_rounding_step(dtype: str) -> None:
    array = np.random.default_rng(0).uniform(0.5, 1, (300, 1000)).astype(dtype)
    array[7, :2] = np.inf, -np.inf
    moved = nudged({"x": array, "n": np.arange(3)}, 0)
    assert moved["x"].dtype == array.dtype
    assert moved["x"][7, :2].tolist() == [np.inf, -np.inf]
    assert moved["n"].tolist() == [0, 1, 2]
    after, before = (np.delete(one, 7, axis=0).astype("f8") for one in (moved["x"], array))
    steps = (after - before) / np.finfo(dtype).eps
    assert 1 < np.abs(steps).max() <= 2.5
    assert (steps != 0).mean() > 0.5
    assert (
        np.abs(np.corrcoef(steps)[~np.eye(len(steps), dtype=bool)]).max() < 0.5
    )  # rows move each in its own way


def test_raising_the_opset_leaves_large_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "HELD", 16)
    model = branching()
    before = model.graph.initializers["w"].const_value
    assert versions.raise_opset(model, 21)
    assert model.opset_imports[""] == 21
    assert model.graph.initializers["w"].const_value is before


@pytest.mark.parametrize("shape", [(7,), (5, 9), (4, 3, 2, 2)])
@pytest.mark.parametrize("power", [1, 2])
def test_sums_per_axis_come_block_by_block(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], power: int
) -> None:
    monkeypatch.setattr(weights, "BLOCK", 11)
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    array.flat[2] = np.nan
    found = weights.axis_sums(array, power, range(len(shape)))
    for position, sums in found.items():
        others = tuple(axis for axis in range(len(shape)) if axis != position)
        wanted = (np.abs(array.astype(np.float64)) ** power).sum(axis=others)
        assert np.allclose(sums, np.where(np.isnan(wanted), np.inf, wanted), rtol=1e-6)


def test_counts_round_to_the_nearest_that_may_be_kept() -> None:
    grid = [(n, s, f) for n in (1, 2, 5, 12, 17, 64) for s in (1, 2, 3, 8) for f in (1, 7) if f <= n]
    candidates = [Candidate(Atom(n), n, np.zeros(n), step, floor) for n, step, floor in grid]
    nearest = Nearest(candidates)
    for wanted in range(65):
        counts = np.array([min(wanted, c.size) for c in candidates])
        found = nearest(counts)
        for candidate, count in zip(candidates, counts.tolist(), strict=True):
            assert found[candidate.atom] == min((abs(n - count), n) for n in candidate.counts())[1]
