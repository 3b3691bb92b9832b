"""Models beyond memory: inspecting, pruning, 2:4 and int4 of a synthetic float16 decoder, with peak memory.

    python benchmarks/large.py [--gigabytes 13.5] [--memory 6] [--tasks inspect prune ...] [--folder DIR]
                               [--json FILE]

The decoder has the blocks of a Llama (RMSNorm, rotary positions, gated feed-forward) with random weights,
streamed into external data; at 13.5 GB it has the sizes of one with 7 billion parameters. `--folder` keeps it
for the next run, and --json adds to what is there. `peak_mb` is the largest resident memory of the worker, mapped
pages included; `held_mb` is what of that the kernel could not take back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from sparsecc.errors import SparseccError
from sparsecc.worker import Worker

HALF = TensorProto.FLOAT16
LONGEST = 128
PLAIN = {"ratio": 0.3, "measure": False, "prune": ["channels", "heads"], "align": 32}
TASKS: dict[str, dict[str, Any]] = {
    "inspect": {},
    "prune": {**PLAIN, "target": "onnx"},
    "2:4": {**PLAIN, "target": "onnx", "sparsity": "2:4"},
    "int4": {**PLAIN, "target": "onnxruntime", "quantize": "int4"},
    "2:4+int4": {**PLAIN, "target": "onnx", "sparsity": "2:4", "quantize": "int4"},
}


class Decoder:
    """Writes a decoder of `layers` blocks of `width` into a folder, one weight at a time."""

    def __init__(self, folder: Path, width: int, layers: int, words: int) -> None:
        self.path = folder / "decoder.onnx"
        self.data = (folder / "decoder.onnx.data").open("wb")
        self.noise = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.width, self.layers, self.words = width, layers, words
        self.head = 128 if width >= 2048 else 64

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes)
        )
        return name

    def weight(self, name: str, *shape: int) -> str:
        """A random weight, written at once; the noise is repeated, moved and scaled."""
        start, count = self.data.tell(), int(np.prod(shape))
        block = (np.roll(self.noise, 7919 * len(self.tensors)) * shape[0] ** -0.5).astype(np.float16)
        for _ in range(count // block.size):
            self.data.write(block.tobytes())
        self.data.write(block[: count % block.size].tobytes())
        tensor = TensorProto(name=name, data_type=HALF, dims=shape, data_location=TensorProto.EXTERNAL)
        place = {"location": Path(self.data.name).name, "offset": start, "length": 2 * count}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        self.tensors.append(onnx.numpy_helper.from_array(array, name))
        return name

    def norm(self, x: str, name: str) -> str:
        """RMSNorm as exporters write it."""
        scale = self.constant(name, np.ones(self.width, np.float16))
        mean = self.op("ReduceMean", self.op("Mul", x, x), "last", keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, "epsilon"))
        return self.op("Mul", self.op("Div", x, root), scale)

    def rotated(self, x: str) -> str:
        """Rotary positions: x cos + rotate_half(x) sin."""
        left = self.op("Slice", x, "zero", "half", "last")
        right = self.op("Slice", x, "half", "whole", "last")
        turned = self.op("Concat", self.op("Neg", right), left, axis=-1)
        return self.op("Add", self.op("Mul", x, "cos"), self.op("Mul", turned, "sin"))

    def heads(self, x: str, name: str) -> str:
        flat = self.op("MatMul", x, self.weight(name, self.width, self.width))
        return self.op("Transpose", self.op("Reshape", flat, "heads"), perm=[0, 2, 1, 3])

    def attention(self, x: str, i: int) -> str:
        q, k, v = (self.heads(x, f"l{i}.{p}") for p in "qkv")
        keys = self.op("Transpose", self.rotated(k), perm=[0, 1, 3, 2])
        scores = self.op("Mul", self.op("MatMul", self.rotated(q), keys), "scale")
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        flat = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), "flat")
        return self.op("MatMul", flat, self.weight(f"l{i}.o", self.width, self.width))

    def feed_forward(self, x: str, i: int) -> str:
        wide = 43 * self.width // 16
        gate = self.op("MatMul", x, self.weight(f"l{i}.gate", self.width, wide))
        up = self.op("MatMul", x, self.weight(f"l{i}.up", self.width, wide))
        gated = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)
        return self.op("MatMul", gated, self.weight(f"l{i}.down", wide, self.width))

    def tables(self) -> None:
        """Constants, and the cosines and sines of as many positions as there are words."""
        head = self.head
        for name, value in (("zero", [0]), ("half", [head // 2]), ("whole", [head]), ("last", [-1])):
            self.constant(name, np.asarray(value))
        self.constant("heads", np.asarray([0, 0, self.width // head, head]))
        self.constant("flat", np.asarray([0, 0, self.width]))
        self.constant("scale", np.asarray(head**-0.5, np.float16))
        self.constant("epsilon", np.asarray(1e-5, np.float16))
        angles = np.outer(np.arange(LONGEST), 10000.0 ** -(np.arange(0, head, 2) / head))
        length = self.op("Shape", "ids", start=1, end=2)
        for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            rows = self.constant(f"{name}_table", np.concatenate([table, table], 1).astype(np.float16))
            self.op("Slice", rows, "zero", length, "zero", out=name)

    def write(self) -> Path:
        self.tables()
        x = self.op("Gather", self.weight("words", self.words, self.width), "ids")
        for i in range(self.layers):
            x = self.op("Add", x, self.attention(self.norm(x, f"l{i}.norm1"), i))
            x = self.op("Add", x, self.feed_forward(self.norm(x, f"l{i}.norm2"), i))
        self.op("MatMul", self.norm(x, "norm"), self.weight("lm_head", self.width, self.words), out="logits")
        self.data.close()
        ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
        logits = helper.make_tensor_value_info("logits", HALF, ["batch", "length", self.words])
        graph = helper.make_graph(self.nodes, "decoder", [ids], [logits], self.tensors)
        opset = [helper.make_opsetid("", 21)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), self.path)
        return self.path


def decoder(folder: Path, gigabytes: float) -> Path:
    """About so large: 4096 wide with 32000 words from 6 GB on, as a model of 7 billion parameters is."""
    width = 4096 if gigabytes >= 6 else 2048 if gigabytes >= 0.6 else 1024
    words = 32000 if gigabytes >= 6 else 4096
    block = 2 * (4 + 3 * 43 / 16) * width * width
    layers = max(1, round((gigabytes * 1e9 - 4 * words * width) / block))
    return Decoder(folder, width, layers, words).write()


class Watch:
    """Samples the memory of a process while it runs."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.peak = self.held = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(0.02):
            found = _status(self.worker.pid)
            self.peak = max(self.peak, found.get("VmHWM", 0))
            self.held = max(self.held, found.get("RssAnon", 0) + found.get("RssShmem", 0))


def _status(pid: int | None) -> dict[str, int]:
    """Megabytes by name in the status of a process."""
    with contextlib.suppress(OSError, ValueError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {line.partition(":")[0]: int(line.split()[1]) >> 10 for line in lines if line.endswith(" kB")}
    return {}


def measured(task: str, request: dict[str, Any], memory: int, deadline: float) -> dict[str, Any]:
    """Seconds and peak memory of one task in a fresh worker; what had passed when each stage began."""
    stages: list[tuple[str, float, int]] = []
    begun = time.perf_counter()
    writable = [Path(request["output"]).parent] if "output" in request else []
    with Worker(memory=memory, write=writable) as worker, Watch(worker) as watch:

        def note(event: dict[str, Any]) -> None:
            stage = str(event.get("stage"))
            if not stages or stage != stages[-1][0]:
                stages.append((stage, round(time.perf_counter() - begun, 1), watch.peak))

        try:
            answer = worker.run(task, request, deadline=deadline, on_event=note)
            came = "done"
        except SparseccError as e:
            answer, came = {}, f"exit {e.exit_code}: {e}"
    found = {"came": came, "seconds": round(time.perf_counter() - begun, 1), "stages": stages}
    found |= {"peak_mb": watch.peak, "held_mb": watch.held}
    if "report" in answer:
        report = answer["report"]
        found |= {side: report[side] for side in ("before", "after")}
        found |= {"verification": report["verification"], "fidelity": report["fidelity"]}
    return found


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=13.5)
    parser.add_argument("--memory", type=float, default=6.0, help="GiB that the worker may hold")
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--deadline", type=float, default=3600.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    known = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    with tempfile.TemporaryDirectory(prefix="large-", dir=".") as place:
        folder = given.folder or Path(place)
        folder.mkdir(exist_ok=True)
        path = folder / "decoder.onnx"
        if not path.exists():
            decoder(folder, given.gigabytes)
        size = sum(p.stat().st_size for p in folder.iterdir())
        print(f"decoder of {size / 1e9:.2f} GB", flush=True)
        known["bytes"] = size
        os.environ["TMPDIR"] = place
        tempfile.tempdir = place
        for name in given.tasks:
            request = {"model": str(path), "output": f"{place}/out", "options": TASKS[name]}
            task = (
                "sparsecc.tasks.inspect:inspect"
                if name == "inspect"
                else "sparsecc.tasks.compile:compile_model"
            )
            known[name] = measured(task, request, int(given.memory * 2**30), given.deadline)
            shutil.rmtree(f"{place}/out", ignore_errors=True)
            print(name, known[name], flush=True)
            if given.json:
                given.json.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
