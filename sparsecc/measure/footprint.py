"""Load time, first inference and peak memory of a model, each in a fresh process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.errors import InputError, WorkerError
from sparsecc.runtime import custom_ops
from sparsecc.runtime.runner import Feeds
from sparsecc.system import process
from sparsecc.system.temp_folders import temporary_folder

_SECONDS = 300.0
_REPEATABLE = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc then gives large blocks back at once. Otherwise what a process holds differs by whole weights between runs."""


@dataclass(frozen=True)
class Footprint:
    """What one fresh process saw: milliseconds, and bytes of resident memory.

    `peak_memory_bytes` counts the whole process; `model_memory_bytes` is what loading and running added.
    """

    load_ms: float
    first_inference_ms: float
    peak_memory_bytes: int
    model_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def footprint(path: Path, feeds: Feeds, *, threads: int = 1, seconds: float = _SECONDS) -> Footprint:
    """Load and run `path` once in a new process. WorkerError when it dies or takes over `seconds`."""
    with temporary_folder("scratch") as scratch:
        arrays = {f"{index}": _plain(array) for index, array in enumerate(feeds.values())}
        np.savez(scratch / "feeds.npz", **arrays)  # type: ignore[arg-type]
        task = {"model": str(path.absolute()), "threads": threads, "names": list(feeds)}
        task["types"] = [array.dtype.name for array in feeds.values()]
        task["libraries"] = custom_ops.libraries()
        (scratch / "task.json").write_text(json.dumps(task), encoding="ascii")
        entry, config = "sparsecc.measure.footprint:child", {"scratch": str(scratch)}
        try:
            ended = process.run(entry, config, scratch=scratch, seconds=seconds, env=_REPEATABLE)
        except TimeoutError as e:
            raise WorkerError(
                f"{path.name}: one load and run took over {seconds:.0f} s: try smaller inputs"
            ) from e
        return _read(path, scratch / "result.json", ended.status)


def _read(path: Path, result: Path, returncode: int) -> Footprint:
    if not result.exists():
        raise WorkerError(f"{path.name}: the process that measured its memory died with code {returncode}")
    answer = json.loads(result.read_text())
    if "error" in answer:
        raise InputError(answer["error"])
    return Footprint(**answer)


def child(config: Mapping[str, Any]) -> None:
    """The measuring process: `task.json` in its scratch folder is read, `result.json` there is the answer."""
    # Imported before anything is counted: the memory and import time of ONNX Runtime are not the model's.
    from sparsecc.runtime.session import open_session

    scratch = Path(config["scratch"])
    task = json.loads((scratch / "task.json").read_text())
    feeds = _feeds(task, scratch / "feeds.npz")
    at_rest = _memory()[0]
    try:
        with custom_ops.loaded(task["libraries"]):
            start = time.perf_counter()
            runner = open_session(Path(task["model"]), threads=task["threads"])
            loaded = time.perf_counter()
            runner.run(feeds)
            ran = time.perf_counter()
    except InputError as e:
        (scratch / "result.json").write_text(json.dumps({"error": str(e)}))
        return
    peak = _memory()[1]
    measured = Footprint((loaded - start) * 1e3, (ran - loaded) * 1e3, peak, max(0, peak - at_rest))
    (scratch / "result.json").write_text(json.dumps(measured.to_json()))


def _feeds(task: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {
            name: _restored(arrays[f"{index}"], kind)
            for index, (name, kind) in enumerate(zip(task["names"], task["types"], strict=True))
        }


def _plain(array: np.ndarray) -> np.ndarray:
    """What .npz can hold: strings as fixed-width text, types that numpy does not know as their bytes."""
    if array.dtype == object:
        return array.astype(str)
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def _restored(array: np.ndarray, kind: str) -> np.ndarray:
    if kind == "object":
        return array.astype(object)
    if kind == "bfloat16":
        import ml_dtypes

        return array.view(ml_dtypes.bfloat16)
    return array


def _memory() -> tuple[int, int]:
    """(resident now, highest resident so far) in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return tuple(int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scale = 1 if sys.platform == "darwin" else 1024
    return highest * scale, highest * scale
