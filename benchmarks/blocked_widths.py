"""What ONNX Runtime's blocks of 16 channels leave of half of ResNet-20's work: widths chosen by hand, timed in turn.

    python benchmarks/blocked_widths.py [--seconds 60] [FILE.onnx ...]      files are timed beside the nets made here

Convolutions of the blocked layout pad their outputs to 16 channels, so 12 run like 16 and 24 like 32. The nets have
random weights: nothing is said of what they would know. Times are processor time of one thread; the ratio to the dense
net is the median over rounds, with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Widths = tuple[int, int, int]
DENSE: Widths = (16, 32, 64)
HAND: Sequence[tuple[Widths, Widths]] = (
    (DENSE, (8, 16, 32)),
    ((11, 22, 45), (11, 22, 45)),
    ((12, 24, 48), (10, 20, 40)),
    ((16, 24, 48), (8, 24, 24)),
    ((16, 16, 48), (16, 8, 16)),
    ((16, 16, 32), (16, 16, 16)),
)
"""Channels of the streams of the three stages, and inside their blocks; each has 46 to 51 % of the work."""
CALLS = 8


class Net:
    """A ResNet-20 of given widths, written node by node."""

    def __init__(self, stream: Widths, inner: Widths) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [
            numpy_helper.from_array(np.array(values, np.int64), name)
            for name, values in {"from": [0, 0], "to": [99, 99], "axes": [2, 3], "by": [2, 2]}.items()
        ]
        self.random = np.random.default_rng(0)
        self.work = 0
        value, channels = self.convolution("image", 3, stream[0], 1, 32, relu=True), stream[0]
        for stage, (out, middle) in enumerate(zip(stream, inner, strict=True)):
            for block in range(3):
                stride, side = 2 if stage and not block else 1, 32 >> stage
                branch = self.convolution(value, channels, middle, stride, side, relu=True)
                branch = self.convolution(branch, middle, out, 1, side)
                if stride == 2:
                    value = self.shortcut(value, out - channels)
                value, channels = self.add("Relu", self.add("Add", branch, value)), out
        weight = self.constant(self.random.standard_normal((channels, 10)).astype(np.float32))
        self.add("MatMul", self.add("Flatten", self.add("GlobalAveragePool", value)), weight)

    def add(self, operator: str, *operands: str, **attributes: object) -> str:
        """A node; the name of its output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, operands, [name], **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        """The name of a new initializer."""
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def convolution(
        self, value: str, inputs: int, outputs: int, stride: int, side: int, *, relu: bool = False
    ) -> str:
        """3x3 with bias; `side` is that of its output."""
        weight = self.random.standard_normal((outputs, inputs, 3, 3)).astype(np.float32) / np.float32(
            3 * inputs**0.5
        )
        self.work += weight.size * side * side
        operands = (value, self.constant(weight), self.constant(np.zeros(outputs, np.float32)))
        found = self.add("Conv", *operands, pads=[1, 1, 1, 1], strides=[stride, stride])
        return self.add("Relu", found) if relu else found

    def shortcut(self, value: str, more: int) -> str:
        """Every second pixel, channels of zeros on both sides (He et al., 2016, option A)."""
        amounts = self.constant(np.array([0, more // 2, 0, 0, 0, more - more // 2, 0, 0], np.int64))
        return self.add("Pad", self.add("Slice", value, "from", "to", "axes", "by"), amounts)

    def bytes(self) -> bytes:
        """The ONNX file."""
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])
        answer = helper.make_tensor_value_info(self.nodes[-1].output[0], TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "resnet20", [image], [answer], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(model.SerializeToString())


def timed(models: dict[str, bytes], seconds: float) -> dict[str, np.ndarray]:
    """Processor time of one run, round by round, every model in every round."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    sessions = {n: ort.InferenceSession(m, options, ["CPUExecutionProvider"]) for n, m in models.items()}
    image = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in models}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, session in sessions.items():
            feed = {session.get_inputs()[0].name: image}
            begin = time.process_time()
            for _ in range(CALLS):
                session.run(None, feed)
            times[name].append((time.process_time() - begin) / CALLS)
    return {name: np.array(found[1:]) for name, found in times.items()}  # the first round warms up


def main() -> None:
    """Time all, tell each beside the dense net."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    dense = Net(DENSE, DENSE)
    models = {"dense": dense.bytes()} | {str(file): file.read_bytes() for file in given.files}
    for stream, inner in HAND:
        net = Net(stream, inner)
        models[f"{stream}, inside {inner}: {net.work / dense.work:.0%} of the work"] = net.bytes()
    times, random = timed(models, given.seconds), np.random.default_rng(0)
    for name, found in times.items():
        ratio = times["dense"] / found
        medians = [np.median(random.choice(ratio, len(ratio))) for _ in range(500)]
        low, high = np.quantile(medians, (0.025, 0.975))
        print(f"{name}: {1e3 * np.median(found):.3f} ms, {np.median(ratio):.2f}x ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
