"""trtexec: its flags by version, what it writes, and the whole way over a device with a stand-in for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.backends.nvidia.engine import TensorrtEngine
from sparsecc.backends.nvidia.engine_inspector import census, parse_layers, sparsity_of_log, sparsity_table
from sparsecc.backends.nvidia.options import BuildOptions
from sparsecc.backends.nvidia.remote import build_on, find_trtexec, time_on
from sparsecc.backends.nvidia.trtexec import (
    build_argv,
    checked_version,
    failure_line,
    parse_profile,
    parse_times,
    time_argv,
    version_in,
)
from sparsecc.devices import Device, open_device
from sparsecc.errors import InputError, UnavailableError
from tests.tensorrt_graphs import conv_residual
from tests.trtexec_stand_in import LAYERS_OF_10, install

TEN, ELEVEN = (10, 13, 3), (11, 4, 1)
GONE_IN_11 = ("--fp16", "--bf16", "--int8", "--fp8", "--best", "--calib", "--stronglyTyped", "--useCudaGraph")


def _ignore(what: str, share: float) -> None:
    del what, share


@pytest.mark.parametrize(
    ("number", "version"), [("8601", (8, 6, 1)), ("100300", (10, 3, 0)), ("101303", TEN), ("110401", ELEVEN)]
)
def test_versions_are_read(number: str, version: tuple[int, int, int]) -> None:
    assert version_in(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec --help") == version


def test_versions_that_do_not_do() -> None:
    with pytest.raises(InputError, match=r"trtexec is 8\.6\.1: sparsecc needs TensorRT 10"):
        checked_version("[TensorRT v8601]")
    with pytest.raises(InputError, match="does not say its version"):
        version_in("hello")


@pytest.mark.parametrize("version", [TEN, ELEVEN])
def test_build_flags(version: tuple[int, int, int]) -> None:
    options = BuildOptions.from_mapping(
        {
            "workspace": "3GiB",
            "optimization_level": 5,
            "tactic_sources": "JIT_CONVOLUTIONS",
            "profiles": {"x": "1x3|2x3|4x3", "a:b": "1|1|2"},
            "stripped": True,
            "weight_streaming": True,
            "version_compatible": True,
            "sparse_weights": True,
            "tf32": False,
            "hardware_compatible": "same-compute-capability",
        }
    )
    argv = build_argv("trtexec", version, options, plugins=["./plugin0.so"], timing_cache="timing.cache")
    assert ("--stronglyTyped" in argv) == (version == TEN)
    assert set(argv) >= {
        "--memPoolSize=workspace:3072",
        "--builderOptimizationLevel=5",
        "--tacticSources=+JIT_CONVOLUTIONS",
        "--minShapes=x:1x3,'a:b':1",
        "--optShapes=x:2x3,'a:b':1",
        "--maxShapes=x:4x3,'a:b':2",
        "--refit",
        "--stripWeights",
        "--allowWeightStreaming",
        "--versionCompatible",
        "--sparsity=enable",
        "--noTF32",
        "--hardwareCompatibilityLevel=sameComputeCapability",
        "--dynamicPlugins=./plugin0.so",
        "--timingCacheFile=timing.cache",
        "--skipInference",
    }


@pytest.mark.parametrize("graph", [False, True])
def test_both_majors_measure_the_same_thing(graph: bool) -> None:
    ten, eleven = (set(time_argv("trtexec", v, graph=graph, layers=True)) for v in (TEN, ELEVEN))
    assert ten - eleven == {"--noDataTransfers", "--useSpinWait"} | ({"--useCudaGraph"} if graph else set())
    assert eleven - ten == (set() if graph else {"--noCudaGraph"})
    assert not [flag for flag in eleven if flag.startswith(GONE_IN_11)]


def test_names_that_trtexec_cannot_take() -> None:
    options = BuildOptions.from_mapping({"profiles": {"it's": "1|1|1"}})
    with pytest.raises(InputError, match="rename the input"):
        build_argv("trtexec", TEN, options)


SAMPLES = [{"computeMs": 1.5 + i / 100, "latencyMs": 1.75, "enqueueMs": 0.1} for i in range(20)]


def test_times_and_profiles_are_read() -> None:
    times = parse_times(json.dumps(SAMPLES))
    assert times.compute[0] == 1.5
    assert times.latency == (1.75,) * 20
    rows = [{"count": 10}, {"name": "conv1 + relu", "timeMs": 2.0, "averageMs": 0.2, "percentage": 100}]
    (layer,) = parse_profile(json.dumps(rows))
    assert layer.name == "conv1 + relu"
    assert layer.microseconds == pytest.approx(200)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "[1]", '[{"computeMs": -1}]', '[{"computeMs": NaN}]', '[{"computeMs": 1e12}]',
     '[{"computeMs": true}]', '[{"computeMs": "1"}]', '[{"latencyMs": 1}]'],
)  # fmt: skip
def test_times_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="run it again"):
        parse_times(text)

    errors = "[11/20/2026-10:00:00] [E] Error[4]: first\n[x] [E] Engine could not be \x1bcreated\n"
    log = f"[I] fine\n{errors}&&&& FAILED"
    assert failure_line(log) == "Engine could not be \\x1bcreated"
    assert failure_line("") == "it printed nothing"


LAYERS_OF_11 = {
    "Layers": [
        {
            "Name": "conv1",
            "LayerType": "Convolution",
            "Outputs": [{"Name": "b", "Dimensions": [1, 36], "Format": "CHW32", "Datatype": "Half"}],
            "OutMaps": 36,
            "TacticName": "cutlass_sparse_gemm",
        }
    ],
    "I/O Tensors": ["x", "b"],
}


def test_layers_of_10() -> None:
    first, second = parse_layers(json.dumps(LAYERS_OF_10))
    assert first.nodes == ("conv1", "relu")
    assert (first.type, first.channels, first.padded) == ("fp16", 36, 40)
    assert (first.weights_sparse, first.kernel_sparse) == (True, True)
    assert (second.type, second.padded, second.kernel_sparse) == ("int8", 64, False)
    assert second.nodes == ("conv2",)
    counts = census([first, second])
    assert counts["by_type"] == {"fp16": 1, "int8": 1}
    assert counts["sparse_kernels"] == 1


def test_layers_of_11() -> None:
    (layer,) = parse_layers(json.dumps(LAYERS_OF_11))
    assert (layer.type, layer.padded, layer.weights_sparse, layer.kernel_sparse) == ("fp16", 64, None, True)


def test_layers_without_details_and_damage() -> None:
    assert [layer.name for layer in parse_layers('{"Layers": ["a", "b"]}')] == ["a", "b"]
    for text in ("", "{", "{}", '{"Layers": 3}'):
        with pytest.raises(InputError, match="build"):
            parse_layers(text)


def test_eligible_against_picked() -> None:
    log = [
        "Layers eligible for sparse math: conv1, conv2, fc",
        "TRT inference plan picked sparse implementation for layers: conv1",
        "something else",
    ]
    assert sparsity_of_log(log) == ({"conv1", "conv2", "fc"}, {"conv1"})
    rows = {
        row["layer"]: (row["eligible"], row["picked"])
        for row in sparsity_table(parse_layers(json.dumps(LAYERS_OF_10)), log)
    }
    assert rows == {"conv1 + relu": (True, True), "conv2": (True, False), "fc": (True, False)}


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """This machine as the board, with the stand-in trtexec on its path."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(install(tools)), prepend=":")
    with open_device("local") as device:
        yield device


def test_build_and_time_on_a_board(board: Device, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    ir.save(ir.from_proto(conv_residual()), folder / "model.onnx")
    facts = build_on(board, folder, BuildOptions(), _ignore)
    assert facts["version"] == "10.13.3"
    assert facts["sparsity"] == ["Layers eligible for sparse math: conv1"]
    assert (folder / "model.engine").read_bytes().startswith(b"stand-in plan")
    assert TensorrtEngine().census(folder / "model.engine")["layers"] == 2
    times, layers, how = time_on(board, folder / "model.engine", iterations=7, layers=True)
    assert times.compute == (1.5,) * 7
    assert [layer.microseconds for layer in layers] == [500.0]
    assert how["version"] == "10.13.3"
    assert {p.name for p in folder.iterdir()} == {
        "model.onnx",
        "model.engine",
        "model.layers.json",
        "build.log",
    }


def test_failed_build_on_a_board_is_one_line(board: Device, tmp_path: Path) -> None:
    model = conv_residual()
    model.graph.node[2].name = "poison"
    ir.save(ir.from_proto(model), tmp_path / "model.onnx")
    with pytest.raises(
        InputError, match=r"the model: node 'poison' \(Conv\): no kernel fits it: raise"
    ) as caught:
        build_on(board, tmp_path, BuildOptions(), _ignore)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.engine").exists()


def test_board_without_trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        open_device("local") as device,
        pytest.raises(UnavailableError, match="sudo apt install libnvinfer-bin"),
    ):
        find_trtexec(device)


def test_backend_builds_on_a_device(board: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`device` in the options sends the build there, and nothing of TensorRT is needed here."""
    monkeypatch.setattr("sparsecc.backends.nvidia.engine.open_device", lambda spec: board)
    folder = tmp_path / "bundle"
    folder.mkdir()
    options = {"device": "ssh://nano@jetson"}
    artefact = TensorrtEngine().build(ir.from_proto(conv_residual()), folder, options, _ignore)
    assert artefact.main == "model.engine"
    assert all((folder / name).is_file() for name in artefact.files)
    assert np.isclose(artefact.facts["plan_bytes"], (folder / "model.engine").stat().st_size)
