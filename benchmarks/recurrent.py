"""Which plan by weights is safest for recurrent models of which no samples are known?

    python benchmarks/recurrent.py [--ratios 0.1,0.3,0.5]

The LSTM of the digits, and three models trained here (torch, seconds) to tell eight noisy kinds of waves apart: two
GRUs, two LSTMs, one bidirectional LSTM, between linear layers. For every plan that a compile without samples tries:
the share of test sequences told right, as cut, and how far it moves the outputs on random inputs; which is taken.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy_pairs import digits
from sparsecc.allocators import Problem, allocator_named, name_of
from sparsecc.compilation import Compilation
from sparsecc.decide import channels, data_free
from sparsecc.options import CompileOptions
from sparsecc.reference.masked_channels import masked
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.stages import DECIDING, Work, walk

Metric = Callable[[Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]], float]
STEPS, FEATURES, KINDS = 24, 12, 8
TRAINED: Mapping[str, dict[str, Any]] = {
    "two GRUs": {"kind": torch.nn.GRU, "num_layers": 2},
    "two LSTMs": {"kind": torch.nn.LSTM, "num_layers": 2},
    "bidirectional LSTM": {"kind": torch.nn.LSTM, "bidirectional": True},
}


class Waves(torch.nn.Module):
    """A recurrent model (n, time, features) -> (n, kinds)."""

    def __init__(self, kind: type[torch.nn.Module], **given: Any) -> None:
        super().__init__()
        self.before = torch.nn.Linear(FEATURES, 48)
        self.recurrent = kind(48, 64, batch_first=True, **given)
        self.middle = torch.nn.Linear(128 if given.get("bidirectional") else 64, 64)
        self.last = torch.nn.Linear(64, KINDS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.recurrent(torch.relu(self.before(x)))[0].mean(1)
        found: torch.Tensor = self.last(torch.relu(self.middle(hidden)))
        return found


def sequences(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(float32 (number, STEPS, FEATURES), kinds): sines of a kind's frequencies, of any tempo and phase, in noise."""
    draw, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    frequency, phase, size = (fixed.uniform(*r, (KINDS, FEATURES)) for r in ((0.1, 1.2), (0, 6.3), (0.2, 1)))
    kinds = draw.integers(0, KINDS, number)
    time = np.arange(STEPS)[None, :, None] * draw.uniform(0.85, 1.15, (number, 1, 1))
    late = draw.uniform(0, 1.5, (number, 1, 1))
    waves = size[kinds][:, None] * np.sin(frequency[kinds][:, None] * time + phase[kinds][:, None] + late)
    return (waves + 0.8 * draw.standard_normal(waves.shape)).astype(np.float32), kinds


def trained(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Waves(**TRAINED[name])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    data, kinds = (torch.from_numpy(array) for array in sequences(1500, seed=1))
    for _ in range(120):
        chosen = torch.randint(0, len(kinds), (64,))
        loss = torch.nn.functional.cross_entropy(net(data[chosen]), kinds[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = folder / f"{name.replace(' ', '_')}.onnx"
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "dynamo": False}
    torch.onnx.export(net.eval(), (data[:4],), path, dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, **names)
    return path


def told_right(run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]) -> float:
    data, kinds = sequences(1000, seed=2)
    return float((run({"x": data})["y"].argmax(1) == kinds).mean())


def row(path: Path, metric: Metric, ratio: float, folder: Path) -> dict[str, tuple[float, float, bool]]:
    """By plan: the metric as cut, the loss on random inputs, whether it is the one taken."""
    found: dict[str, tuple[float, float, bool]] = {}
    right = data_free.least_moved

    def tried(compilation: Any, analysis: Any, scores: Any, cost: Any, budget: float) -> Any:
        taken = right(compilation, analysis, scores, cost, budget)
        bench = data_free._bench(compilation, analysis)
        assert taken is not None
        assert bench is not None
        for criterion, allocator in data_free.PLANS:
            candidates, method = scores(criterion), allocator_named(allocator)
            keep = data_free.keep_of(candidates, method.allocate(Problem(candidates, cost, budget)))
            model = masked(analysis, keep)
            loss = bench.moved(model)
            is_taken = (taken.criterion, name_of(taken.allocator)) == (criterion, allocator)
            found[f"{criterion} {allocator}"] = metric(compilation.opened(model).run), loss, is_taken
        return taken

    channels.least_moved = tried
    try:
        walk(Work(Compilation(path, CompileOptions(ratio=ratio, measure=False), Scratch(folder))), DECIDING)
    finally:
        channels.least_moved = right
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ratios", default="0.1,0.3,0.5")
    ratios = [float(ratio) for ratio in parser.parse_args().ratios.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        home, pair = Path(folder), digits("digits_lstm")
        models: dict[str, tuple[Path, Metric]] = {"digits LSTM": (pair.model, pair.accuracy)}
        models |= {name: (trained(name, home), told_right) for name in TRAINED}
        for name, (path, metric) in models.items():
            for ratio in ratios:
                (scratch := home / f"{path.stem}{ratio}").mkdir()
                for plan, (score, loss, taken) in row(path, metric, ratio, scratch).items():
                    print(
                        f"{name}, {ratio:.0%}, {plan}: {score:.3f} ({loss:.2f}){' taken' if taken else ''}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
