"""Dense against pruned against pruned and fp16, int8, 2:4, on the NVIDIA GPU of this machine.

    python benchmarks/gpu/measure.py                                    TensorRT 10.13+ or 11
    python benchmarks/gpu/measure.py --runtime onnxruntime-cuda         where onnxruntime-gpu is at hand, not TensorRT
    python benchmarks/gpu/measure.py --runtime tensorrt-rtx             plan sizes only; needs no GPU
    python benchmarks/gpu/measure.py --runtime onnxruntime --quick      tiny models on the CPU: does the script work?

Every variant that the runtime accelerates is timed interleaved with the dense fp32 one in one process, in pairs of
random order: by CUDA events with TensorRT, by wall clock (copies included) with ONNX Runtime. The raw samples stand
in the JSON with the GPU's name, the runtime's version, the options and each layer's time. Models have seeded random
weights: latency does not depend on their values, except 2:4, which is enforced.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sparsecc.backends import backend_named
from sparsecc.backends.nvidia.device import NoGpuError, gpus
from sparsecc.backends.nvidia.run import EngineRunner
from sparsecc.measure.statistics import log_ratio
from sparsecc.system.versions import versions
from sparsecc.targets import TARGETS

VARIANTS: dict[str, dict[str, str]] = {
    "dense": {},
    "dense fp16": {"--quantize": "fp16"},
    "dense int8": {"--quantize": "int8"},
    "dense int8, rest fp16": {"--quantize": "int8", "--quantize-option": "rest=fp16"},
    "pruned": {"--ratio": "0.5"},
    "pruned fp16": {"--ratio": "0.5", "--quantize": "fp16"},
    "pruned int8": {"--ratio": "0.5", "--quantize": "int8"},
    "pruned int8, rest fp16": {"--ratio": "0.5", "--quantize": "int8", "--quantize-option": "rest=fp16"},
    "dense fp16 2:4": {"--quantize": "fp16", "--sparsity": "2:4"},
    "pruned fp16 2:4": {"--ratio": "0.5", "--quantize": "fp16", "--sparsity": "2:4"},
}
"""Name -> the flags of `sparsecc compile` that make it. "dense" comes first: the others are held against it."""
RUNTIMES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime")
MODELS = ("resnet50", "bert-base", "vit-b")
QUICK_LAYERS = 2
WARMUP, LAYER_RUNS = 50, 20


def export(name: str, path: Path, batch: int, *, quick: bool) -> dict[str, np.ndarray]:
    """Write the model to `path` with static shapes; returns one set of inputs. `quick`: a tiny one of its kind."""
    import torch
    import transformers

    hf: Any = transformers

    torch.manual_seed(0)
    side, small = 64, {"num_hidden_layers": QUICK_LAYERS, "hidden_size": 128, "num_attention_heads": 4}
    small["intermediate_size"] = 256
    pixels = torch.randn(batch, 3, side if quick else 224, side if quick else 224)
    tokens = torch.randint(0, 30522, (batch, 128))
    vision = {**small, "image_size": side} if quick else {}
    tiny = {"depths": [1, 1], "hidden_sizes": [64, 128], "embedding_size": 32} if quick else {}
    table: dict[str, tuple[Callable[[], Any], str, Any]] = {
        "resnet50": (lambda: hf.ResNetForImageClassification(hf.ResNetConfig(**tiny)), "x", pixels),
        "bert-base": (lambda: hf.BertModel(hf.BertConfig(**(small if quick else {}))), "tokens", tokens),
        "vit-b": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**vision)), "x", pixels),
    }
    make, input_name, example = table[name]
    module = make().eval()

    class FirstOutput(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, x: torch.Tensor) -> Any:
            return self.model(x)[0]

    torch.onnx.export(FirstOutput(), (example,), path, input_names=[input_name], dynamo=True, verbose=False)
    return {input_name: example.numpy()}


def variants_for(runtime: str, names: Sequence[str]) -> Iterator[str]:
    """Those of `names` whose types and patterns the runtime accelerates, the dense one always."""
    target = TARGETS[runtime]
    for name in VARIANTS:
        flags = VARIANTS[name]
        types = {flags.get("--quantize", "fp16"), *(["fp16"] if "--quantize-option" in flags else [])}
        fits = types <= target.types or "--quantize" not in flags
        fits &= "--sparsity" not in flags or flags["--sparsity"] in target.patterns
        if fits and (name in names or name == "dense"):
            yield name


def compile_argv(model: Path, target: str, variant: str, out: Path) -> list[str]:
    """The command that makes a variant."""
    flags = {"--ratio": "0"} | VARIANTS[variant]
    flags |= {"--calib": str(model.with_suffix(".npz"))} if "int8" in variant else {}
    command = [sys.executable, "-m", "sparsecc", "compile", str(model), "--target", target, "--no-measure"]
    return [*command, *(word for pair in flags.items() for word in pair), "-o", str(out)]


def interleaved(
    a: Callable[[], float], b: Callable[[], float], pairs: int, seed: int = 0
) -> tuple[list[float], list[float]]:
    """`pairs` times of each, taken in pairs whose order is drawn."""
    order = random.Random(seed)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for which in order.sample((0, 1), 2):
            times[which].append((a, b)[which]())
    return times


def ratio_of(dense: Sequence[float], variant: Sequence[float]) -> dict[str, float]:
    """Variant's time over the dense one's: the median of the paired ratios with its 95 % interval."""
    found = log_ratio(np.asarray(dense), np.asarray(variant), seed=0)
    return {"estimate": math.exp(found.median), "low": math.exp(found.low), "high": math.exp(found.high)}


def measure(model: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compile every variant of one model; time it against the dense one where the runtime runs here."""
    path = folder / f"{model}.onnx"
    feeds = export(model, path, given.batch, quick=given.quick)
    arrays: dict[str, Any] = dict(feeds)
    np.savez(path.with_suffix(".npz"), **arrays)
    rows: dict[str, Any] = {}
    for number, variant in enumerate(variants_for(given.runtime, given.variants)):
        out = folder / f"{model}-{number}"
        argv = compile_argv(path, given.runtime, variant, out)
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            rows[variant] = {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        else:
            rows[variant] = built(out)
        print(f"{model}, {variant}: {rows[variant].get('failed', 'built')}", file=sys.stderr, flush=True)
        if "bytes" in rows[variant] and "bytes" in rows["dense"] and given.runtime != "tensorrt-rtx":
            rows[variant] |= timed(folder / f"{model}-0", out, feeds, given)
    return rows


def built(out: Path) -> dict[str, Any]:
    """Sizes of a bundle's model and engine, and what the build said, each layer's kernel included."""
    report = json.loads((out / "report.json").read_text())
    sizes = {key: report["after"][key] for key in ("bytes", "engine_bytes") if key in report["after"]}
    return {**sizes, "build": report.get("build", {})}


def timed(
    dense: Path, variant: Path, feeds: dict[str, np.ndarray], given: argparse.Namespace
) -> dict[str, Any]:
    """Raw samples of both in milliseconds, their ratio, and the layers of the variant."""
    backend = backend_named(TARGETS[given.runtime].backend)
    file = "model.engine" if given.runtime == "tensorrt" else "model.onnx"
    runners: list[Any] = [backend.load(bundle / file) for bundle in (dense, variant)]
    try:
        a, b = (_timer(runner, feeds, graph=given.graph) for runner in runners)
        times = interleaved(a, b, given.pairs)
    finally:
        for runner in runners:
            if isinstance(runner, EngineRunner):
                runner.close()
    layers = [vars(layer) for layer in backend.profile(variant / file, feeds, runs=LAYER_RUNS)]
    return {"ratio": ratio_of(*times), "dense_ms": times[0], "variant_ms": times[1], "layer_times": layers}


def _timer(runner: Any, feeds: dict[str, np.ndarray], *, graph: bool) -> Callable[[], float]:
    """Milliseconds of one run: by CUDA events where it is an engine, else by wall clock."""
    if isinstance(runner, EngineRunner):
        time_once = partial(runner.milliseconds, runner.step(feeds, graph=graph))
    else:
        time_once = partial(_wall, runner.prepared(feeds))
    for _ in range(WARMUP):
        time_once()
    return time_once


def _wall(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begun)


def describe_machine(runtime: str) -> dict[str, Any]:
    """The GPU's name, and the versions of what was used."""
    try:
        gpu = gpus()[0].name
    except NoGpuError as e:
        gpu = f"none ({e})"
    found = backend_named(TARGETS[runtime].backend).availability()
    return {"gpu": gpu, "runtime": runtime, "version": found.version, "versions": versions()}


def table_of(models: dict[str, Any]) -> str:
    """One Markdown row per model and variant."""
    lines = ["| model | variant | ONNX, MB | engine, MB | time / dense | 95 % |", "|---|---|---|---|---|---|"]
    for model, rows in models.items():
        for variant, row in rows.items():
            sizes = [f"{row[key] / 1e6:.1f}" if key in row else "" for key in ("bytes", "engine_bytes")]
            ratio = row.get("ratio")
            estimate = f"{ratio['estimate']:.3f}" if ratio else row.get("failed", "not timed")
            interval = f"{ratio['low']:.3f} to {ratio['high']:.3f}" if ratio else ""
            lines.append(f"| {model} | {variant} | {' | '.join(sizes)} | {estimate} | {interval} |")
    return "\n".join(lines)


def layer_table(rows: dict[str, Any], most: int = 10) -> str:
    """The slowest layers of every variant that was timed, with the kernel's type where it is known."""
    lines = ["| variant | layer | us | type | tactic |", "|---|---|---|---|---|"]
    for variant, row in rows.items():
        kernels = {layer["name"]: layer for layer in row.get("build", {}).get("layers", ())}
        slowest = sorted(row.get("layer_times", ()), key=lambda layer: -layer["microseconds"])
        for layer in slowest[:most]:
            kernel = kernels.get(layer["name"], {})
            words = (kernel.get("type") or layer["op_type"], kernel.get("tactic", ""))
            lines.append(
                f"| {variant} | {layer['name'][:60]} | {layer['microseconds']:.1f} | {' | '.join(words)} |"
            )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the options, measure, write the JSON and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("out/benchmarks/gpu.json"))
    parser.add_argument("--runtime", choices=RUNTIMES, default="tensorrt")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--graph", action="store_true", help="time CUDA graphs (TensorRT)")
    parser.add_argument("--quick", action="store_true", help="tiny models of the same kinds")
    given = parser.parse_args(argv)
    options = {key: value for key, value in vars(given).items() if key != "output"}
    results: dict[str, Any] = {"machine": describe_machine(given.runtime), "options": options}
    with tempfile.TemporaryDirectory(prefix="sparsecc-gpu-") as folder:
        results["models"] = {m: measure(m, given, Path(folder)) for m in given.models}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table_of(results["models"]))
    for model, rows in results["models"].items():
        if any("layer_times" in row for row in rows.values()):
            print(f"\n{model}, slowest layers\n\n{layer_table(rows)}")
    return 0 if all("bytes" in row for rows in results["models"].values() for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
