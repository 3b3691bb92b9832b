"""Norms put back for a training: nothing changes at first, and folding keeps what was learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")

import sparsecc.torch as st  # noqa: E402
from sparsecc.torch.training import batch_norms as norms  # noqa: E402


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def test_norms_change_nothing_until_they_are_trained_and_folding_keeps_it(
    models_dir: Path, tmp_path: Path
) -> None:
    path = models_dir / "digits_resnet.onnx"
    module = st.from_onnx(path).eval()
    (name,), (output,) = module.input_names, module.output_names
    x = torch.rand(48, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    before = module({name: x})[output].detach()
    count = norms.put_back(module, [{name: x}])
    assert count == sum(node.op_type == "Conv" for node in module.nodes) > 3
    assert torch.allclose(module({name: x})[output], before, atol=1e-4)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    module.train()
    for _ in range(3):
        optimizer.zero_grad()
        module({name: x})[output].square().mean().backward()
        optimizer.step()
    trained = module.eval()({name: x})[output].detach()
    assert float((trained - before).abs().max()) > 1e-2, "statistics and weights moved"
    norms.fold(module)
    assert not module.norms
    assert torch.allclose(module({name: x})[output], trained, atol=1e-4)
    written = st.write_back(module, tmp_path / "trained.onnx")
    assert np.allclose(run(written, x.numpy()), trained.numpy(), atol=1e-3)


def test_a_distillation_with_norms_writes_the_nodes_that_were_there(models_dir: Path, tmp_path: Path) -> None:
    import onnx

    path = models_dir / "digits_resnet.onnx"
    name = onnx.load(path).graph.input[0].name
    feeds = [{name: np.random.default_rng(1).random((80, 1, 16, 16), dtype=np.float32)}]
    student = tmp_path / "student.onnx"
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) == 4:
            array = onnx.numpy_helper.to_array(tensor)
            noise = np.random.default_rng(2).standard_normal(array.shape) * array.std() * 0.3
            tensor.CopyFrom(onnx.numpy_helper.from_array((array + noise).astype(np.float32), tensor.name))
    onnx.save(proto, student)
    out = tmp_path / "o.onnx"
    facts = st.distill(path, student, feeds, budget="steps:60", batch=24, output=out, resume=False)
    assert facts["norms"] > 3
    assert facts["loss_after"] < 0.5 * facts["loss_before"]
    assert [n.op_type for n in onnx.load(out).graph.node] == [n.op_type for n in proto.graph.node]
    x = feeds[0][name][:16]
    gaps = [np.square(run(p, x) - run(path, x)).mean() for p in (student, out)]
    assert gaps[1] < 0.7 * gaps[0]
