"""The zoo keeps its word: live seeded models, exports equal to torch, a cache that is written whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from tests.test_inspect import shares_of
from tests.zoo import FAST, ZOO
from tests.zoo.export import EXPORTERS, Exporter, ZooUnavailable, onnx_path
from tests.zoo.known import FAILURES, STATIC
from tests.zoo.report import check
from tests.zoo.synthetic import synthetic_graph

EXPORTED_HERE = ("resnet_cifar_pad", "vit_fused_unbind", "lstm_classifier")


def test_the_zoo_is_wide_enough() -> None:
    assert len(ZOO) >= 60
    assert set(FAST) <= set(ZOO)
    assert {name for name, _ in (*FAILURES, *STATIC)} <= set(ZOO)


@pytest.mark.parametrize("name", FAST)
def test_models_are_live(name: str) -> None:
    """Outputs are finite, differ between the items of a batch, and repeat; no weight is constant."""
    model = ZOO[name].build()
    outputs = model.run(model.example())
    for output in outputs:
        assert torch.isfinite(output).all()
        assert (output[0] - output[1]).abs().max() > 1e-3
    again = ZOO[name].build()
    assert torch.equal(again.run(again.example())[0], outputs[0])
    constant = [n for n, p in model.module.named_parameters() if p.numel() > 1 and p.unique().numel() == 1]
    assert constant == []
    for inputs in model.alternatives().values():
        assert torch.isfinite(model.run(inputs)[0]).all()


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", EXPORTED_HERE)
def test_exports_equal_torch(name: str, exporter: Exporter) -> None:
    row = check(name, exporter)
    assert (row.status, row.batch) == ("ok", "ok")
    assert row.size in ("ok", "-")


@pytest.mark.slow
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_export_equals_torch(name: str, exporter: Exporter) -> None:
    row = check(name, exporter)
    if (name, exporter) in FAILURES:
        assert row.status.startswith("unavailable")
        return
    assert row.status == "ok"
    assert row.batch == "ok" or row.batch.startswith("static")
    assert row.size in ("ok", "-") or row.size.startswith("static")


def test_dynamic_axes_are_named(root: Path) -> None:
    graph = onnx.load(onnx_path("resnet_cifar_pad", "torchscript")).graph
    dims = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]


def test_an_unavailable_export_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECC_ZOO_CACHE", str(tmp_path))
    (name, exporter), reason = next(iter(FAILURES.items()))
    assert exporter in EXPORTERS
    with pytest.raises(ZooUnavailable, match=name) as caught:
        onnx_path(name, "torchscript" if exporter == "torchscript" else "dynamo")
    assert reason in str(caught.value)
    with pytest.raises(ZooUnavailable, match="no zoo entry is named 'nothing'"):
        onnx_path("nothing")
    assert list(tmp_path.iterdir()) == []


def test_the_cache_holds_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECC_ZOO_CACHE", str(tmp_path))
    path = onnx_path("vit_fused_chunk", "torchscript")
    written = path.stat().st_mtime_ns
    assert onnx_path("vit_fused_chunk", "torchscript") == path
    assert path.stat().st_mtime_ns == written
    assert [p.name for p in path.parent.iterdir()] == ["vit_fused_chunk.torchscript.onnx"]


@pytest.mark.parametrize("nodes", [100, 1000])
def test_synthetic_graphs_run(nodes: int) -> None:
    model = synthetic_graph(nodes)
    assert nodes <= len(model.graph) <= nodes + 8
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)
    (logits,) = session.run(["logits"], {"image": image})
    assert np.isfinite(logits).all()
    assert logits.shape == (3, 5)


def check_shares(name: str) -> None:
    try:
        shares_of(onnx_path(name))
    except ZooUnavailable as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("name", ["squeezenet", "vit_fused_chunk", "lstm_classifier", "mixtral", "capsules"])
def test_shares_of_what_goes_and_stays_add_up(name: str) -> None:
    check_shares(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ZOO))
def test_shares_of_what_goes_and_stays_add_up_everywhere(name: str) -> None:
    check_shares(name)
