"""ONNX in torch: the same outputs as ONNX Runtime, gradients, weights written back, distillation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")

import sparsecc.torch as st  # noqa: E402
from sparsecc.errors import InputError  # noqa: E402
from sparsecc.torch.training.distillation import Budget  # noqa: E402
from tests.zoo import ZOO  # noqa: E402
from tests.zoo.export import EXPORTERS, Exporter, ZooUnavailable, onnx_path  # noqa: E402


def run(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [np.asarray(o) for o in session.run(None, feed)]


def network(path: Path, width: int, seed: int, batch: int | str = "n") -> Path:
    """Linear, tanh, linear: 6 inputs, `width` hidden units, 4 outputs."""
    random = np.random.default_rng(seed)
    shapes = {"a.weight": (6, width), "a.bias": (width,), "b.weight": (width, 4), "b.bias": (4,)}
    weights = [
        numpy_helper.from_array((random.standard_normal(s) / 2).astype(np.float32), n)
        for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "a.weight", "a.bias"], ["h"], name="first"),
        helper.make_node("Tanh", ["h"], ["t"], name="act"),
        helper.make_node("Gemm", ["t", "b.weight", "b.bias"], ["y"], name="second"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, s]) for n, s in (("x", 6), ("y", 4))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_zoo_file_gives_what_onnx_runtime_gives(name: str, exporter: Exporter) -> None:
    try:
        path = onnx_path(name, exporter)
    except ZooUnavailable as e:
        pytest.skip(str(e))
    module = st.from_onnx(path)
    feed = {n: t.numpy() for n, t in zip(module.input_names, ZOO[name].build().example(), strict=True)}
    with torch.no_grad():
        found = list(module(feed).values())
    for a, b in zip(found, run(path, feed), strict=True):
        assert np.allclose(a.numpy(), b, atol=1e-4 * max(1.0, float(np.abs(b).max())))


def test_it_runs_and_differentiates(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", 8, 0)
    module = st.from_onnx(path)
    x = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    found = module(torch.from_numpy(x))["y"]
    assert np.allclose(found.detach().numpy(), run(path, {"x": x})[0], atol=1e-6)
    assert set(module.named) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    found.square().mean().backward()
    gradient = module.named["a.weight"].grad
    assert gradient is not None
    with torch.no_grad():
        before = module({"x": x})["y"].square().mean()
        module.named["a.weight"][2, 3] += 1e-2
        slope = (module({"x": x})["y"].square().mean() - before) / 1e-2
    assert float(slope) == pytest.approx(float(gradient[2, 3]), rel=0.1, abs=1e-3)


def test_trained_weights_go_back_into_the_file(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", 8, 0)
    module = st.from_onnx(path)
    with torch.no_grad():
        module.named["b.bias"].fill_(3.0)
    x = np.ones((2, 6), np.float32)
    before = run(path, {"x": x})[0] - numpy_helper.to_array(onnx.load(path).graph.initializer[3])
    written = st.write_back(module, tmp_path / "out.onnx")
    assert np.allclose(run(written, {"x": x})[0], before + 3.0, atol=1e-5)


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", 8, 0)
    proto = onnx.load(path)
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "BiasGelu", "com.microsoft"
    proto.graph.node[1].input.append("a.bias")
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, path)
    with pytest.raises(InputError, match="without a torch function: BiasGelu"):
        st.from_onnx(path)


@pytest.mark.parametrize("batch", ["n", 8])
def test_distillation_recovers_without_labels(tmp_path: Path, batch: int | str) -> None:
    """A narrower student learns from inputs alone; a fixed batch stays as it is."""
    dense, student = network(tmp_path / "d.onnx", 12, 0, batch), network(tmp_path / "s.onnx", 9, 5, batch)
    random = np.random.default_rng(2)
    feeds = [{"x": random.standard_normal((8, 6)).astype(np.float32)} for _ in range(40)]
    seen: list[str] = []
    facts = st.distill(
        dense, student, feeds, budget="steps:400", seed=1, output=tmp_path / "o.onnx", rate=2e-2,
        progress=lambda share, line: seen.append(line),
    )  # fmt: skip
    assert facts["loss_after"] < 0.3 * facts["loss_before"]
    assert facts["agreement_after"] > facts["agreement_before"]
    assert facts["samples"] + facts["held_out"] == 320
    assert seen
    fresh = random.standard_normal((8, 6)).astype(np.float32)
    truth = run(dense, {"x": fresh})[0]
    truth = run(dense, {"x": fresh})[0]
    written = (student, tmp_path / "o.onnx")
    gaps = [np.abs(run(path, {"x": fresh})[0] - truth).mean() for path in written]
    assert gaps[1] < 0.6 * gaps[0]


def test_distillation_never_writes_something_worse(tmp_path: Path) -> None:
    dense = network(tmp_path / "d.onnx", 8, 0)
    feeds = [{"x": np.random.default_rng(3).standard_normal((40, 6)).astype(np.float32)}]
    facts = st.distill(dense, dense, feeds, budget="steps:20", rate=1.0, output=tmp_path / "o.onnx")
    assert facts["loss_after"] == facts["loss_before"] < 1e-6
    with pytest.raises(InputError, match="no calibration inputs"):
        st.distill(dense, dense, [], output=tmp_path / "o.onnx")


def test_budgets() -> None:
    assert Budget.of("90s") == Budget(seconds=90)
    assert Budget.of("10m") == Budget(seconds=600)
    assert Budget.of("steps:7") == Budget(steps=7)
    for wrong in ("soon", "0s", "steps:x", ""):
        with pytest.raises(InputError, match="write 90s, 10m, 1h or steps:2000"):
            Budget.of(wrong)
