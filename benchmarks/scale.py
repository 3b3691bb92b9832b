"""Long graphs: CPU seconds and memory of every step of pruning, beside torch-pruning's graph of the same network.

    python benchmarks/scale.py [--nodes 1000 10000 100000] [--peer 1000] [--ratio 0.5] [--json FILE]

Every row is a process of its own. The networks have tiny weights, so that what is measured is the graph:
`tests.zoo.synthetic` for the steps, and a chain of convolutions and linear layers in torch for `--peer`, which is
exported and analysed here, and traced by torch-pruning's DependencyGraph there.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")


class Clock:
    """CPU seconds by name of step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, step: str, work: Callable[[], T]) -> T:
        begun = time.process_time()
        result = work()
        self.seconds[step] = round(time.process_time() - begun, 2)
        return result


def peak_mb() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def steps(nodes: int, ratio: float) -> dict[str, Any]:
    """Analysis, groups, choice, plan and rewriting of a long residual network."""
    from sparsecc.compilation import Compilation
    from sparsecc.decide.channels import choose
    from sparsecc.graph.analysis import analyse
    from sparsecc.graph.groups import find_groups
    from sparsecc.graph.rewrite import remove
    from sparsecc.options import CompileOptions
    from sparsecc.plan import make_plan
    from sparsecc.system.scratch import Scratch
    from tests.zoo.synthetic import synthetic_graph

    clock, model = Clock(), synthetic_graph(nodes)
    compilation = Compilation(Path(), CompileOptions(), Scratch(Path()))
    bare = peak_mb()
    analysis = clock.time("analyse", lambda: analyse(model))
    groups = clock.time("groups", lambda: find_groups(analysis))
    choice = clock.time("choose", lambda: choose(compilation, analysis, groups, ratio))
    clock.time("plan", lambda: make_plan(analysis, groups, choice.keep, {}))
    clock.time("rewrite", lambda: remove(analysis, choice.keep))
    total = round(sum(clock.seconds.values()), 2)
    memory = {"peak_mb": peak_mb(), "model_alone_mb": bare}
    return {"nodes": nodes, "groups": len(groups), **clock.seconds, "total": total, **memory}


def chain(layers: int) -> Any:
    """Half convolutions, half linear layers, each with a ReLU."""
    from torch import nn

    half = layers // 4
    maps = [part for _ in range(half) for part in (nn.Conv2d(8, 8, 1), nn.ReLU())]
    rows = [part for _ in range(half) for part in (nn.Linear(8, 8), nn.ReLU())]
    return nn.Sequential(*maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *rows).eval()


def peer(nodes: int) -> dict[str, Any]:
    """The same chain: exported and grouped here, traced by torch-pruning there."""
    import onnx_ir as ir
    import torch
    import torch_pruning

    from sparsecc.graph.analysis import analyse
    from sparsecc.graph.groups import find_groups
    from sparsecc.loading.models import load_ir
    from sparsecc.loading.normalise import normalise

    clock, module, image = Clock(), chain(nodes), torch.randn(1, 8, 4, 4)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "chain.onnx"
        torch.onnx.export(module, (image,), str(path), dynamo=False)
        model: ir.Model = normalise(load_ir(path))
    groups = clock.time("sparsecc", lambda: find_groups(analyse(model)))
    graph = torch_pruning.DependencyGraph()
    clock.time("torch-pruning build", lambda: graph.build_dependency(module, example_inputs=image))
    theirs = clock.time("torch-pruning groups", lambda: sum(1 for _ in graph.get_all_groups()))
    found = {"ours": len(groups), "theirs": theirs}
    return {"nodes": len(model.graph), "torch_pruning": torch_pruning.__version__, **found, **clock.seconds}


def alone(kind: str, nodes: int, ratio: float) -> dict[str, Any]:
    """One row in a process of its own."""
    command = [sys.executable, __file__, "--row", kind, "--nodes", str(nodes), "--ratio", str(ratio)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Print what was measured, row by row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--peer", type=int, nargs="*", default=[1000])
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--row", choices=("steps", "peer"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.row:
        print(
            json.dumps(steps(given.nodes[0], given.ratio) if given.row == "steps" else peer(given.nodes[0]))
        )
        return
    found: dict[str, list[dict[str, Any]]] = {"steps": [], "peer": []}
    for kind, sizes in (("steps", given.nodes), ("peer", given.peer)):
        for nodes in sizes:
            found[kind].append(alone(kind, nodes, given.ratio))
            print(kind, found[kind][-1], flush=True)
            if given.json:
                given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
