"""What a compile costs beside tools that prove nothing: CPU seconds and peak memory, tool by tool in turn.

    python benchmarks/compiler_peers.py [--cases cnn50 cnn1000 cnn10000 resnet50 vit bert decoder] [--tools ...]
                                        [--rounds 1] [--json FILE]

Every row is a process of its own that begins with a file (torch-pruning: with the module) and ends with one; rows that
are in the JSON already are not run again. Networks have random weights of the sizes of the real ones. torch-pruning
traces its graph and removes half of the channels in one step; what it does not run on is told as refused. Floors are
what no proof does without: reading the file once, writing half of it once, and one run of the model in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sparsecc.system.process import THREADS_OF_BLAS

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("sparsecc", "onnxslim", "onnxsim", "torch-pruning")
RATIO = 0.5
TRANSFORMERS = {
    "resnet50": ("ResNetForImageClassification", "ResNetConfig"),
    "vit": ("ViTModel", "ViTConfig"),
    "bert": ("BertModel", "BertConfig"),
}


def module_of(case: str) -> tuple[Any, Any, list[Any]]:
    """A module in torch with random weights, an input, and the layers that torch-pruning is to leave alone."""
    import torch

    torch.manual_seed(0)
    if case.startswith("cnn"):
        from benchmarks.scale import chain

        whole = chain(int(case[3:]))
        return whole, torch.randn(1, 8, 4, 4), [whole[-2]]
    transformers = importlib.import_module("transformers")
    model, config = (getattr(transformers, name) for name in TRANSFORMERS[case])
    plain = {} if case == "resnet50" else {"attn_implementation": "eager"}
    inner = model(config(return_dict=False, **plain)).eval()
    given = torch.randint(0, 1000, (1, 16)) if case == "bert" else torch.randn(1, 3, 224, 224)

    class First(torch.nn.Module):  # type: ignore[misc]
        """Its first output alone."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Any) -> Any:
            return self.inner(x)[0]

    left = [inner.classifier] if case == "resnet50" else []
    return First(), given, left


def write_model(case: str, folder: Path) -> Path:
    """The case as a file. `decoder`: float16, 1 GB, its weights beside it."""
    if case == "decoder":
        from benchmarks.large import decoder

        return decoder(folder, 1.0)
    import torch

    module, given, _ = module_of(case)
    path = folder / "model.onnx"
    axes = {"x": {0: "n", 1: "l"} if case == "bert" else {0: "n"}}
    torch.onnx.export(
        module,
        (given,),
        str(path),
        dynamo=False,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=axes,
        opset_version=18,
    )
    return path


def _torch_pruning(case: str, path: Path) -> dict[str, Any]:
    """Trace, group, and remove in one step; the module is made and its imports are done before the clock begins."""
    import torch_pruning

    module, given, left = module_of(case)
    begun = time.process_time()
    pruner = torch_pruning.pruner.MagnitudePruner(
        module,
        given,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=left,
    )
    traced = time.process_time()
    pruner.step()
    return {"graph_cpu": round(traced - begun, 2), "step_cpu": round(time.process_time() - traced, 2)}


def _floors(case: str, path: Path) -> dict[str, Any]:
    """CPU seconds of reading the files once, of writing half as many bytes, and of one run of two samples."""
    from sparsecc.data.random_inputs import random_feeds
    from sparsecc.loading.models import load_ir
    from sparsecc.loading.normalise import normalise
    from sparsecc.runtime.session import open_session

    files = [file for file in path.parent.iterdir() if file.is_file()]
    clock = [time.process_time()]
    data = [file.read_bytes() for file in files]
    clock.append(time.process_time())
    with tempfile.TemporaryFile() as out:
        for part in data:
            out.write(memoryview(part)[: len(part) // 2])
    clock.append(time.process_time())
    del data
    model = normalise(load_ir(path))
    sizes = {
        value.name or "": tuple(
            dim if isinstance(dim, int) else 2 if axis == 0 else 16
            for axis, dim in enumerate(value.shape or ())
        )
        for value in model.graph.inputs
    }
    runner, feeds = open_session(path, level="none"), random_feeds(model, seed=0, sizes=sizes)
    clock.append(time.process_time())
    runner.run(feeds)
    read, write, _, run = (
        round(b - a, 2) for a, b in zip(clock, [*clock[1:], time.process_time()], strict=True)
    )
    return {"read": read, "write": write, "run": run}


def row(tool: str, case: str, path: Path) -> dict[str, Any]:
    """One tool on one model, in this process."""
    from benchmarks.growth import row as grown

    if tool == "torch-pruning":
        found = _torch_pruning(case, path)
    elif tool == "floor":
        return _floors(case, path)
    else:
        return grown(tool, path)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {**found, "cpu": round(used.ru_utime + used.ru_stime, 2), "peak_mb": used.ru_maxrss >> 10}


def alone(tool: str, case: str, path: Path, seconds: float) -> dict[str, Any]:
    """A row in a process of its own; how it failed where it did."""
    command = [sys.executable, __file__, "--row", tool, "--cases", case, "--model", str(path)]
    env = {**os.environ, **THREADS_OF_BLAS}  # as workers run
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=seconds, env=env)
    except subprocess.TimeoutExpired:
        return {"refused": f"no end in {seconds:.0f} s"}
    if done.returncode:
        return {"refused": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print what was measured, row by row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    everything = ["cnn50", "cnn1000", "cnn10000", *TRANSFORMERS, "decoder"]
    parser.add_argument("--cases", nargs="+", default=everything)
    parser.add_argument("--tools", nargs="+", default=["floor", *TOOLS])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--row")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.row:
        print(json.dumps(row(given.row, given.cases[0], given.model)))
        return
    stored = given.json is not None and given.json.exists()
    found: list[dict[str, Any]] = json.loads(given.json.read_text()) if stored else []
    done = {(one["case"], one["tool"], one["round"]) for one in found}
    for case in given.cases:
        with tempfile.TemporaryDirectory() as folder:
            wanted = [
                (n, tool) for n in range(given.rounds) for tool in given.tools if (case, tool, n) not in done
            ]
            path = write_in_a_process(case, Path(folder)) if wanted else Path()
            for number, tool in wanted:
                if case == "decoder" and tool == "torch-pruning":
                    continue  # a graph of ONNX alone
                made = {"case": case, "tool": tool, "round": number, **alone(tool, case, path, given.seconds)}
                found.append(made)
                print(made, flush=True)
                if given.json:
                    given.json.write_text(json.dumps(found, indent=1) + "\n")


def write_in_a_process(case: str, folder: Path) -> Path:
    """The case's file, written by a process that ends, so that this one stays small."""
    command = [sys.executable, "-c", WRITE, case, str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return Path(made.stdout.splitlines()[-1])


WRITE = """
import sys
from pathlib import Path
from benchmarks.compiler_peers import write_model
print(write_model(sys.argv[1], Path(sys.argv[2])))
"""

if __name__ == "__main__":
    main()
