"""Large models: memory and time of inspecting and pruning a synthetic decoder, and of analysing long graphs.

    python benchmarks/scale.py [--gigabytes 1] [--ratio 0.3] [--nodes 10000 100000] [--json FILE]

The decoder's float16 weights are streamed into external data. Memory is that of the worker: `held` is
what the kernel cannot take back (anonymous pages), sampled; mapped weights are not in it.
"""

from __future__ import annotations

import argparse
import json
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
from sparsecc.memory import held_by

HALF = TensorProto.FLOAT16
HEAD = 64
TASKS = {"inspect": "sparsecc.examine:inspect", "compile": "sparsecc.pipeline:compile_model"}


class Decoder:
    """Writes a decoder of `layers` blocks of `width` into a folder, one weight at a time."""

    def __init__(self, folder: Path, width: int, layers: int, words: int = 4096) -> None:
        self.path = folder / "decoder.onnx"
        self.data = (folder / "decoder.onnx.data").open("wb")
        self.noise = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.width, self.layers, self.words = width, layers, words

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
        for key, value in (
            ("location", self.data.name.rpartition("/")[2]),
            ("offset", start),
            ("length", 2 * count),
        ):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        self.tensors.append(onnx.numpy_helper.from_array(array, name))
        return name

    def norm(self, x: str, name: str) -> str:
        scale = self.constant(name, np.ones(self.width, np.float16))
        return self.op("LayerNormalization", x, scale, axis=-1)

    def block(self, x: str, i: int) -> str:
        wide = 11 * self.width // 4
        y = self.norm(x, f"l{i}.norm1")
        q, k, v = (self.op("MatMul", y, self.weight(f"l{i}.{p}", self.width, self.width)) for p in "qkv")
        q, k, v = (self.op("Transpose", self.op("Reshape", p, "heads"), perm=[0, 2, 1, 3]) for p in (q, k, v))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        mixed = self.op("MatMul", self.op("Softmax", self.op("Mul", scores, "scale"), axis=-1), v)
        flat = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), "flat")
        x = self.op("Add", x, self.op("MatMul", flat, self.weight(f"l{i}.o", self.width, self.width)))
        y = self.norm(x, f"l{i}.norm2")
        gate = self.op("MatMul", y, self.weight(f"l{i}.gate", self.width, wide))
        up = self.op("MatMul", y, self.weight(f"l{i}.up", self.width, wide))
        gated = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)
        return self.op("Add", x, self.op("MatMul", gated, self.weight(f"l{i}.down", wide, self.width)))

    def write(self) -> Path:
        self.constant("heads", np.asarray([0, 0, self.width // HEAD, HEAD]))
        self.constant("flat", np.asarray([0, 0, self.width]))
        self.constant("scale", np.asarray(HEAD**-0.5, np.float16))
        x = self.op("Gather", self.weight("words", self.words, self.width), "ids")
        for i in range(self.layers):
            x = self.block(x, i)
        self.op("MatMul", self.norm(x, "norm"), self.weight("lm_head", self.width, self.words), out="logits")
        self.data.close()
        ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
        logits = helper.make_tensor_value_info("logits", HALF, ["batch", "length", self.words])
        graph = helper.make_graph(self.nodes, "decoder", [ids], [logits], self.tensors)
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), self.path
        )
        return self.path


def decoder(folder: Path, gigabytes: float) -> Path:
    """About so large: 4096 wide from 6 GB on, as a model of 7 billion parameters is."""
    width = 4096 if gigabytes >= 6 else 2048 if gigabytes >= 2 else 1024
    layers = max(1, round(gigabytes * 1e9 / (2 * 12.25 * width * width)))
    return Decoder(folder, width, layers).write()


def measured(task: str, request: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Seconds and peak memory of one task in a fresh worker, per stage."""
    with Worker() as worker:
        stages: list[tuple[str, float, int]] = []
        peak = {"held": 0, "stage": ""}
        over = threading.Event()

        def sample() -> None:
            while not over.wait(0.02):
                held = held_by(worker.pid) if worker.pid else 0
                if held > peak["held"]:
                    peak.update(held=held, stage=stages[-1][0] if stages else "")

        begun = time.perf_counter()

        def note(event: dict[str, Any]) -> None:
            stages.append(
                (str(event.get("stage")), round(time.perf_counter() - begun, 1), peak["held"] >> 20)
            )

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            worker.run(task, request, deadline=deadline, on_event=note)
            line = "done"
        except SparseccError as e:
            line = f"exit {e.exit_code}: {e}"
        finally:
            over.set()
            thread.join()
    seconds = round(time.perf_counter() - begun, 1)
    return {
        "came": line,
        "seconds": seconds,
        "held_mb": peak["held"] >> 20,
        "at": peak["stage"],
        "stages": stages,
    }


def graphs(nodes: int) -> dict[str, Any]:
    """Seconds for the analysis, the groups and the choice at ratio 0.5 of a long residual network."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from sparsecc.choose import choose
    from sparsecc.graph.analysis import analyse
    from sparsecc.graph.groups import find_groups
    from sparsecc.options import CompileOptions
    from sparsecc.plan import make_plan
    from tests.zoo.synthetic import synthetic_graph

    model = synthetic_graph(nodes)
    times = [time.perf_counter()]
    analysis = analyse(model)
    times.append(time.perf_counter())
    groups = find_groups(analysis)
    times.append(time.perf_counter())
    choice = choose(analysis, groups, CompileOptions(), 0.5)
    times.append(time.perf_counter())
    make_plan(analysis, groups, choice.keep, {})
    times.append(time.perf_counter())
    steps = ("analyse", "groups", "choose", "plan")
    spent = {step: round(b - a, 2) for step, a, b in zip(steps, times, times[1:], strict=False)}
    return {"nodes": len(model.graph), "groups": len(groups), **spent}


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--nodes", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--deadline", type=float, default=3600.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"graphs": []}
    for nodes in given.nodes:
        found["graphs"].append(graphs(nodes))
        print(found["graphs"][-1], flush=True)
    if given.gigabytes:
        with tempfile.TemporaryDirectory(prefix="scale-", dir=".") as place:
            path = decoder(Path(place), given.gigabytes)
            size = sum(p.stat().st_size for p in Path(place).iterdir())
            print(f"decoder of {size / 1e9:.2f} GB", flush=True)
            options = {"ratio": given.ratio, "measure": False}
            request = {"model": str(path), "output": f"{place}/out"}
            for name, task in TASKS.items():
                own = {**request, "options": options if name == "compile" else {}}
                found[name] = measured(task, own, given.deadline)
                print(name, found[name], flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
