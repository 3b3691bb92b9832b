"""Hostile files through the front door in a worker: refused or accepted as they must be, never a crash, a
hang or a byte from outside the model's folder. And no model that runs is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from sparsecc.errors import InputError
from sparsecc.escaping import escape
from sparsecc.loading.external import Extent, ExternalFiles
from sparsecc.loading.limits import Limits
from sparsecc.loading.models import load_ir
from sparsecc.loading.open_model import open_model
from sparsecc.worker import Worker

HERE = Path(__file__).parent
MEMORY = 2 << 30
SECONDS = 20.0
CANARY = b"CANARY: a byte of this outside means a leak".ljust(64)


@pytest.fixture(scope="module")
def child() -> Iterator[Worker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        with Worker(memory=MEMORY, allowed=("worker_tasks",)) as one:
            yield one


def verdict(child: Worker, path: Path) -> tuple[str, Any]:
    """("accept", facts) or ("refuse", message); any other error fails the test."""
    try:
        return "accept", child.run("worker_tasks:load", {"path": str(path)}, deadline=SECONDS)
    except InputError as e:
        message = str(e)
    assert message == escape(message)
    return "refuse", message


def external_model(folder: Path, *, where: str = "initializer", **entries: str) -> Path:
    """A model whose 4x4 float tensor lies in external data that `entries` describe."""
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1,4] x) => (float[1,4] y) { y = MatMul (x, w) }'
    )
    tensor = TensorProto(name="w", data_type=1, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "w.bin"} | entries).items():
        tensor.external_data.add(key=key, value=value)
    if where == "initializer":
        proto.graph.initializer.append(tensor)
    else:
        constant = helper.make_node("Constant", [], ["w"])
        constant.attribute.append(helper.make_attribute("value", tensor))
        wrap(proto, constant, where)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return folder / "model.onnx"


def wrap(proto: onnx.ModelProto, constant: onnx.NodeProto, where: str) -> None:
    """Put the constant beside the MatMul, into both branches of an If, or into a function."""
    nodes = proto.graph.node
    if where == "attribute":
        nodes.insert(0, constant)
        return
    if where == "function":
        opset = [helper.make_opsetid("", 17)]
        proto.functions.append(helper.make_function("f", "F", [], ["w"], [constant], opset))
        proto.opset_import.add(domain="f", version=1)
        nodes.insert(0, helper.make_node("F", [], ["w"], domain="f"))
        return
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("w", 1, [4, 4])])
    truth = numpy_helper.from_array(np.array(True), "c")
    proto.graph.initializer.append(truth)
    nodes.insert(0, helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder beside a secret."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.bin").write_bytes(CANARY)
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


PLACES = ["initializer", "attribute", "subgraph", "function"]


@pytest.mark.parametrize("where", PLACES)
def test_external_data_inside_is_mapped_wherever_it_is_used(folder: Path, where: str) -> None:
    (folder / "w.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    path = external_model(folder, where=where, length="64")
    assert open_model(path).files.names() == ["w.bin"]
    load_ir(path)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(
    "location",
    [
        "../outside/secret.bin",
        "sub/../../outside/secret.bin",
        "..",
        ".",
        "",
        "/etc/passwd",
        "//etc/passwd",
        "..\\outside\\secret.bin",
        "C:\\Windows\\win.ini",
        "C:/Windows/win.ini",
        "w\0.bin",
        "w\n\x1b[31m.bin",
        "a//w.bin",
        "w.bin/",
        "x" * 6000,
        "missing.bin",
        "folder",
        "\u202enib.w",
    ],
)
def test_locations_outside_are_refused(folder: Path, where: str, location: str) -> None:
    (folder / "w.bin").write_bytes(bytes(64))
    (folder / "folder").mkdir()
    with pytest.raises(InputError) as caught:
        load_ir(external_model(folder, where=where, location=location))
    assert str(caught.value) == escape(str(caught.value))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "entries",
    [
        {"length": "8"},
        {"length": "4096"},
        {"length": "-64"},
        {"length": " 64"},
        {"length": "\u0666\u0664"},
        {"offset": "1"},
        {"offset": "-1"},
        {"offset": "99999999999999999999"},
        {"offset": "9223372036854775807"},
        {"offset": "0x0"},
    ],
)
def test_offsets_and_lengths_out_of_bounds_are_refused(folder: Path, entries: dict[str, str]) -> None:
    (folder / "w.bin").write_bytes(bytes(64))
    with pytest.raises(InputError):
        load_ir(external_model(folder, **entries))


def link_file(folder: Path) -> None:
    (folder / "w.bin").symlink_to(folder.parent / "outside" / "secret.bin")


def link_inside(folder: Path) -> None:
    (folder / "real.bin").write_bytes(bytes(64))
    (folder / "w.bin").symlink_to("real.bin")


def hard_link(folder: Path) -> None:
    os.link(folder.parent / "outside" / "secret.bin", folder / "w.bin")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "w.bin")


def device(folder: Path) -> None:
    (folder / "w.bin").symlink_to("/dev/zero")


def empty(folder: Path) -> None:
    (folder / "w.bin").touch()


@pytest.mark.parametrize("make", [link_file, link_inside, hard_link, pipe, device, empty])
def test_what_is_no_plain_file_is_refused(child: Worker, folder: Path, make: Callable[[Path], None]) -> None:
    make(folder)
    assert verdict(child, external_model(folder, length="64"))[0] == "refuse"


def test_a_linked_folder_is_refused(child: Worker, folder: Path) -> None:
    (folder / "sub").symlink_to(folder.parent / "outside")
    assert verdict(child, external_model(folder, location="sub/secret.bin"))[0] == "refuse"


def test_the_model_itself_may_be_a_link_but_not_a_pipe(child: Worker, folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(64))
    external_model(folder).rename(folder.parent / "blob")
    (folder / "model.onnx").symlink_to("../blob")
    assert verdict(child, folder / "model.onnx")[0] == "accept"
    os.mkfifo(folder / "pipe.onnx")
    assert verdict(child, folder / "pipe.onnx")[0] == "refuse"


def cached(folder: Path) -> tuple[Path, Path]:
    """A download cache: snapshots/<revision> full of links into blobs."""
    blobs, snapshot = folder / "repo" / "blobs", folder / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    (blobs / "1234").write_bytes(bytes(64))
    path = external_model(snapshot, length="64")
    return path, snapshot / "w.bin"


def test_links_of_a_download_cache_need_leave(folder: Path) -> None:
    path, data = cached(folder)
    data.symlink_to("../../blobs/1234")
    with pytest.raises(InputError, match="link"):
        load_ir(path)
    load_ir(path, Limits(linked_data=True))


@pytest.mark.parametrize(
    "target", ["../../../../outside/secret.bin", "../../other/1234", "/etc/passwd", "../../blobs/sub/1234"]
)
def test_links_out_of_a_download_cache_are_refused(folder: Path, target: str) -> None:
    path, data = cached(folder)
    data.symlink_to(target)
    with pytest.raises(InputError):
        load_ir(path, Limits(linked_data=True))


def test_a_sparse_terabyte_is_refused_and_costs_no_memory(child: Worker, folder: Path) -> None:
    with open(folder / "w.bin", "wb") as file:
        file.truncate(1 << 40)
    path = external_model(folder)
    proto = onnx.ModelProto.FromString(path.read_bytes())
    proto.graph.initializer[0].dims[:] = [1 << 19, 1 << 19]
    path.write_bytes(proto.SerializeToString())
    result, text = verdict(child, path)
    assert result == "refuse"
    assert "external_bytes" in text


def test_gigabytes_of_external_data_are_mapped_within_little_memory(folder: Path) -> None:
    with open(folder / "w.bin", "wb") as file:
        file.truncate(8 << 30)
    path = external_model(folder)
    proto = onnx.ModelProto.FromString(path.read_bytes())
    proto.graph.initializer[0].dims[:] = [1 << 16, 1 << 15]
    path.write_bytes(proto.SerializeToString())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        with Worker(memory=400 << 20, allowed=("worker_tasks",)) as small:
            assert verdict(small, path)[1]["bytes"] == 8 << 30


def test_swapping_the_file_for_a_link_leaks_nothing(folder: Path) -> None:
    secret, name = folder.parent / "outside" / "secret.bin", folder / "w.bin"
    name.write_bytes(bytes(64))
    stop = threading.Event()

    def swap() -> None:
        (folder / "link").symlink_to(secret)
        (folder / "plain").write_bytes(bytes(64))
        while not stop.is_set():
            for other in ("link", "plain"):
                os.rename(folder / other, name)
                if other == "link":
                    (folder / other).symlink_to(secret)
                else:
                    (folder / other).write_bytes(bytes(64))

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = {"read": 0, "refused": 0}
    try:
        for _ in range(3000):
            files, extent = ExternalFiles(folder), Extent("w.bin", 0, 64)
            try:
                files.check(extent)
            except InputError:
                outcomes["refused"] += 1
                continue
            outcomes["read"] += 1
            assert files.payload(extent).tobytes() == bytes(64)
    finally:
        stop.set()
        thread.join()
    assert min(outcomes.values()) > 0


def can_trace() -> bool:
    """Whether strace is there and may trace."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace here")
def test_no_file_outside_the_folder_is_opened(folder: Path) -> None:
    link_file(folder)
    (folder / "sub").symlink_to(folder.parent / "outside")
    locations = [
        "w.bin",
        "sub/secret.bin",
        "../outside/secret.bin",
        str(folder.parent / "outside" / "secret.bin"),
    ]
    paths = [
        str(external_model(folder / str(i), where=where, location=location))
        for i, (where, location) in enumerate((w, x) for w in PLACES for x in locations)
    ]
    for path in paths:
        for name in ("w.bin", "sub"):
            (Path(path).parent / name).symlink_to(folder / name)
    code = f"import sys; sys.path.insert(0, {str(HERE.parent)!r})\n" + (
        "from pathlib import Path\nfrom sparsecc.loading.models import load_ir\n"
        "from sparsecc.errors import InputError\n"
        "for path in sys.argv[1:]:\n"
        "    try: load_ir(Path(path))\n"
        "    except InputError: print('refused')\n"
    )
    trace = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", str(folder / "trace")]
    done = subprocess.run(
        [*trace, sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["refused"] * len(paths)
    lines = (folder / "trace").read_text().splitlines()
    assert sum("model.onnx" in line for line in lines) == len(paths)
    outside = [line for line in lines if "secret.bin" in line or 'outside"' in line]
    assert [line for line in outside if " = -1 " not in line] == []


def test_the_shared_hostile_files(child: Worker, shared: Path) -> None:
    expected = json.loads((shared / "hostile" / "expect.json").read_text())
    wrong, slow = [], []
    for name, want in expected.items():
        start = time.monotonic()
        got, text = verdict(child, shared / "hostile" / name / "model.onnx")
        if want not in (got, "either"):
            wrong.append(f"{name}: {want}, but {got} {text}")
        if time.monotonic() - start > SECONDS:
            slow.append(name)
    assert wrong == []
    assert slow == []


def test_no_model_that_runs_is_refused(child: Worker, shared: Path) -> None:
    check_runnable(child, sorted((shared / "materials").rglob("*.onnx")))


def runs(path: Path) -> bool:
    """Whether ONNX Runtime loads the model; files whose operators fail only when run are named *negative*."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001  the runtime raises a class of its own for every reason
        return False
    return "negative" not in path.name


def check_runnable(child: Worker, files: list[Path]) -> None:
    refused = [path for path in files if verdict(child, path)[0] == "refuse"]
    assert [str(path) for path in refused if runs(path)] == []


def test_a_sample_of_public_models_passes(child: Worker, shared: Path) -> None:
    files = sorted((shared / "corpus").rglob("*.onnx"))
    check_runnable(child, random.Random(0).sample(files, min(400, len(files))))


@pytest.mark.slow
def test_all_public_models_pass(child: Worker, shared: Path) -> None:
    check_runnable(child, sorted((shared / "corpus").rglob("*.onnx")))
