"""Running a plan: the CUDA calls against a stand-in driver of C, whose device memory is the host's.

The stand-in has the real functions' signatures, so a wrong argument or width shows; it computes nothing. The
engine is a stand-in too, in Python: it doubles its input, through the addresses it is given.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparsecc.backends.nvidia.cuda_runtime import Cuda
from sparsecc.backends.nvidia.layer_profile import profile_plan
from sparsecc.backends.nvidia.run import EngineRunner
from sparsecc.errors import InputError, SystemFailureError, UnavailableError

DRIVER = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef int R; typedef uint64_t P; typedef void *H;
static int live, capturing, launches; static double now;
int stand_in_live(void) { return live; }
int stand_in_launches(void) { return launches; }
static H handle(void) { live++; return malloc(8); }
static R gone(H h) { live--; free(h); return 0; }
R cuInit(unsigned f) { return 0; }
R cuDeviceGet(int *d, int i) { *d = i; return i > 0 ? 101 : 0; }
R cuDevicePrimaryCtxRetain(H *c, int d) { *c = handle(); return 0; }
R cuDevicePrimaryCtxRelease_v2(int d) { live--; return 0; }
R cuCtxSetCurrent(H c) { return 0; }
R cuMemAlloc_v2(P *p, size_t n) {
    if (n > ((size_t)1 << 40)) return 2;
    live++; *p = (P)malloc(n); return 0; }
R cuMemFree_v2(P p) { return gone((H)p); }
R cuMemcpyHtoDAsync_v2(P d, const void *s, size_t n, H st) { memcpy((H)d, s, n); return st ? 0 : 1; }
R cuMemcpyDtoHAsync_v2(void *d, P s, size_t n, H st) { memcpy(d, (H)s, n); return st ? 0 : 1; }
R cuStreamCreate(H *s, unsigned f) { *s = handle(); return 0; }
R cuStreamDestroy_v2(H s) { return gone(s); }
R cuStreamSynchronize(H s) { return capturing ? 900 : 0; }
R cuStreamBeginCapture_v2(H s, int m) { capturing = 1; return 0; }
R cuStreamEndCapture(H s, H *g) { capturing = 0; *g = handle(); return 0; }
R cuGraphInstantiateWithFlags(H *e, H g, unsigned long long f) { *e = handle(); return 0; }
R cuGraphLaunch(H e, H s) { launches++; return 0; }
R cuGraphExecDestroy(H e) { return gone(e); }
R cuGraphDestroy(H g) { return gone(g); }
R cuEventCreate(H *e, unsigned f) { *e = handle(); return 0; }
R cuEventRecord(H e, H s) { now += 0.25; *(double *)e = now; return 0; }
R cuEventSynchronize(H e) { return 0; }
R cuEventElapsedTime(float *ms, H a, H b) { *ms = (float)(*(double *)b - *(double *)a); return 0; }
R cuEventDestroy_v2(H e) { return gone(e); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in driver")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    target = folder / "libstandin.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(target), str(folder / "driver.c")], check=True)
    return str(target)


class StandInContext:
    """y = 2 x for float32, written through the addresses that were set."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= self.largest

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.runs += 1
        size = int(np.prod(self.shape))
        x, y = ((ctypes.c_float * size).from_address(self.addresses[n]) for n in ("x", "y"))
        for i in range(size):
            y[i] = 2 * x[i]
        return stream != 0

    def report_to_profiler(self) -> bool:
        self.profiler.report_layer_time("double", 0.125)
        return True


class StandInEngine:
    num_io_tensors = 2

    def __init__(self, largest: int = 8, word: str = "FLOAT") -> None:
        self.context = StandInContext(largest)
        self.word = word

    def create_execution_context(self) -> StandInContext:
        return self.context

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"x": "in", "y": "out"}[name]

    def get_tensor_dtype(self, name: str) -> object:
        return SimpleNamespace(name=self.word)


API: Any = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"), IProfiler=object)


def _runner(library: str, engine: Any = None) -> tuple[EngineRunner, Any]:
    engine = engine or StandInEngine()
    return EngineRunner(API, engine, Cuda(library=library), "model.engine"), engine


def test_outputs_come_back_and_memory_goes(library: str) -> None:
    before = ctypes.CDLL(library).stand_in_live()
    runner, _ = _runner(library)
    for rows in (2, 8, 3):
        x = np.arange(rows * 5, dtype=np.float64).reshape(rows, 5)
        np.testing.assert_array_equal(runner.run({"x": x})["y"], 2 * x.astype(np.float32))
    runner.close()
    runner.close()
    assert ctypes.CDLL(library).stand_in_live() == before


@pytest.mark.parametrize("graph", [False, True])
def test_times_are_those_between_events(library: str, graph: bool) -> None:
    before = ctypes.CDLL(library).stand_in_live()
    runner, engine = _runner(library)
    launches = ctypes.CDLL(library).stand_in_launches()
    times = runner.times({"x": np.ones((2, 5), np.float32)}, runs=10, warmup=3, graph=graph)
    assert times == [0.25] * 10
    launched = ctypes.CDLL(library).stand_in_launches() - launches
    assert launched == (13 if graph else 0)
    assert engine.context.runs == (2 if graph else 14)
    runner.close()
    assert ctypes.CDLL(library).stand_in_live() == before


def test_layer_times_are_means_in_microseconds(library: str) -> None:
    runner, _ = _runner(library)
    (layer,) = runner.layers({"x": np.ones((2, 5), np.float32)}, runs=4)
    assert (layer.name, layer.microseconds) == ("double", 125.0)
    runner.close()


def test_feeds_that_do_not_fit(library: str) -> None:
    runner, _ = _runner(library, StandInEngine(largest=4))
    with pytest.raises(InputError, match="input 'x' is missing"):
        runner.run({})
    with pytest.raises(InputError, match=r"shape \[5, 2\] is outside the shapes it was built for"):
        runner.run({"x": np.ones((5, 2), np.float32)})
    runner.close()
    odd, _ = _runner(library, StandInEngine(word="FP4"))
    with pytest.raises(InputError, match="has type FP4, which numpy lacks"):
        odd.run({"x": np.ones((2, 2), np.float32)})
    odd.close()


def test_cuda_failures_are_one_line(library: str) -> None:
    cuda = Cuda(library=library)
    with pytest.raises(SystemFailureError, match="memory is used up"):
        cuda.allocate(1 << 41)
    cuda.close()
    with pytest.raises(SystemFailureError, match=r"CUDA failed in cuDeviceGet \(error 101\)"):
        Cuda(device=1, library=library)
    with pytest.raises(UnavailableError, match="no CUDA driver here"):
        Cuda(library=str(Path("/no/such/libcuda.so")))


def test_a_bundle_is_profiled_on_the_gpu_here(library: str, tmp_path: Path) -> None:
    """Times by events, times per layer with kind and type from the stored information; the memory goes."""
    before = ctypes.CDLL(library).stand_in_live()
    layer = {"Name": "double", "LayerType": "Scale", "Outputs": [{"Name": "y", "Datatype": "Half"}]}
    (tmp_path / "model.engine").write_bytes(b"plan")
    (tmp_path / "model.layers.json").write_text(json.dumps({"Layers": [layer]}))
    backend: Any = SimpleNamespace(load=lambda path: _runner(library)[0])
    found = profile_plan(backend, tmp_path, {"x": np.ones((2, 5), np.float32)}, layers=True)
    assert found["samples_ms"]["gpu"] == [0.25] * 100
    assert (found["gpu_ms"]["p50"], found["gpu_ms"]["n"]) == (0.25, 100)
    (row,) = found["layers"]
    assert (row["name"], row["op_type"], row["type"], row["microseconds"]) == (
        "double",
        "Scale",
        "fp16",
        125.0,
    )
    assert ctypes.CDLL(library).stand_in_live() == before
