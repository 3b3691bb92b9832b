"""Dense against pruned against pruned and fp16, int8, 2:4, on the NVIDIA GPU of this machine.

    python benchmarks/gpu/measure.py -o results.json               all models and variants, timed
    python benchmarks/gpu/measure.py --build-only -o sizes.json      sizes of TensorRT-RTX plans, no GPU

Every variant is timed interleaved with the dense fp32 engine in one process, by CUDA events, in pairs of
random order; the raw samples stand in the JSON with the GPU's name, TensorRT's version and the options.
Models have seeded random weights: latency does not depend on their values, except 2:4, which is enforced.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VARIANTS: dict[str, list[str]] = {
    "dense": ["--ratio", "0"],
    "dense fp16": ["--ratio", "0", "--quantize", "fp16"],
    "dense int8": ["--ratio", "0", "--quantize", "int8"],
    "pruned": ["--ratio", "0.5"],
    "pruned fp16": ["--ratio", "0.5", "--quantize", "fp16"],
    "pruned int8": ["--ratio", "0.5", "--quantize", "int8"],
    "dense fp16 2:4": ["--ratio", "0", "--quantize", "fp16", "--sparsity", "2:4"],
    "pruned fp16 2:4": ["--ratio", "0.5", "--quantize", "fp16", "--sparsity", "2:4"],
}
"""Name -> the flags of `sparsecc compile` that make it."""

MODELS = ("resnet50", "bert-base", "vit-b")
RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """Variant's time over the dense one's: median of the paired ratios with a 95 % bootstrap interval."""

    estimate: float
    low: float
    high: float


def export(name: str, path: Path, batch: int) -> dict[str, np.ndarray]:
    """Write the model to `path` with static shapes; returns one set of inputs."""
    import torch
    import transformers

    torch.manual_seed(0)
    pixels = torch.randn(batch, 3, 224, 224)
    tokens = torch.randint(0, 30522, (batch, 128))
    table: dict[str, tuple[Callable[[], Any], str, Any]] = {
        "resnet50": (
            lambda: transformers.ResNetForImageClassification(transformers.ResNetConfig()),
            "x",
            pixels,
        ),
        "bert-base": (lambda: transformers.BertModel(transformers.BertConfig()), "tokens", tokens),
        "vit-b": (lambda: transformers.ViTForImageClassification(transformers.ViTConfig()), "x", pixels),
    }
    make, input_name, example = table[name]
    module = make().eval()
    module.config.return_dict = False
    torch.onnx.export(module, (example,), path, input_names=[input_name], dynamo=True, verbose=False)
    return {input_name: example.numpy()}


def compile_argv(model: Path, target: str, variant: str, out: Path) -> list[str]:
    """The command that makes a variant."""
    command = [sys.executable, "-m", "sparsecc", "compile", str(model), "--target", target]
    calibration = ["--calib", str(model.with_suffix(".npz"))] if "int8" in variant else []
    return [*command, *VARIANTS[variant], *calibration, "-o", str(out)]


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


def ratio_of(dense: Sequence[float], variant: Sequence[float], seed: int = 0) -> Ratio:
    """The paired ratio variant / dense."""
    logs = np.log(np.asarray(variant) / np.asarray(dense))
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(logs, (RESAMPLES, len(logs))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return Ratio(*(float(np.exp(v)) for v in (np.median(logs), low, high)))


def measure(model: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compile every variant of one model, and time it against the dense one unless only sizes are asked."""
    path = folder / f"{model}.onnx"
    feeds = export(model, path, arguments.batch)
    arrays: dict[str, Any] = dict(feeds)
    np.savez(path.with_suffix(".npz"), **arrays)
    target = "tensorrt-rtx" if arguments.build_only else "tensorrt"
    rows: dict[str, Any] = {}
    for variant in VARIANTS:
        out = folder / f"{model}-{variant.replace(' ', '-').replace(':', '')}"
        done = subprocess.run(
            compile_argv(path, target, variant, out), capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            rows[variant] = {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
            continue
        rows[variant] = {"plan_bytes": (out / "model.engine").stat().st_size}
        if not arguments.build_only and "plan_bytes" in rows["dense"]:
            dense = folder / f"{model}-dense" / "model.engine"
            rows[variant] |= timed(dense, out / "model.engine", feeds, arguments)
    return rows


def timed(
    dense: Path, variant: Path, feeds: dict[str, np.ndarray], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Raw samples of both, their ratio, and the layers of the variant."""
    from sparsecc.backends.tensorrt_engine import TensorrtEngine

    backend = TensorrtEngine()
    runners = [backend.load(path) for path in (dense, variant)]
    try:
        a, b = (_timer(runner, feeds, graph=arguments.graph) for runner in runners)
        times = interleaved(a, b, arguments.pairs)
        layers = [vars(layer) for layer in runners[1].layers(feeds, runs=20)]
    finally:
        for runner in runners:
            runner.close()
    ratio = ratio_of(*times)
    facts = {"ratio": vars(ratio), "dense_ms": times[0], "variant_ms": times[1], "layer_times": layers}
    return facts | backend.layers(variant)


def _timer(runner: Any, feeds: dict[str, np.ndarray], *, graph: bool) -> Callable[[], float]:
    step = runner.step(feeds, graph=graph)
    for _ in range(50):
        runner.milliseconds(step)
    return lambda: float(runner.milliseconds(step))


def main() -> int:
    """Parse the options, measure, write the JSON and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--graph", action="store_true", help="time CUDA graphs")
    parser.add_argument("--build-only", action="store_true", help="TensorRT-RTX plan sizes; needs no GPU")
    arguments = parser.parse_args()
    options = {key: value for key, value in vars(arguments).items() if key != "output"}
    results: dict[str, Any] = {"machine": describe_machine(arguments.build_only), "options": options}
    with tempfile.TemporaryDirectory(prefix="sparsecc-gpu-") as folder:
        results["models"] = {m: measure(m, arguments, Path(folder)) for m in arguments.models}
    arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table_of(results["models"]))
    return 0


def describe_machine(build_only: bool) -> dict[str, str]:
    """The GPU's name and TensorRT's version."""
    from sparsecc.backends.tensorrt_api import RTX, TENSORRT, installed_version
    from sparsecc.backends.tensorrt_device import NoGpuError, gpus

    try:
        gpu = gpus()[0].name
    except NoGpuError as e:
        gpu = f"none ({e})"
    return {"gpu": gpu, "version": installed_version(RTX if build_only else TENSORRT)}


def table_of(models: dict[str, Any]) -> str:
    """One Markdown row per model and variant."""
    lines = ["| model | variant | plan, MB | time / dense | 95 % |", "|---|---|---|---|---|"]
    for model, rows in models.items():
        for variant, row in rows.items():
            ratio = row.get("ratio")
            size = f"{row['plan_bytes'] / 1e6:.1f}" if "plan_bytes" in row else row["failed"]
            estimate = f"{ratio['estimate']:.3f}" if ratio else "not timed"
            interval = f"{ratio['low']:.3f} to {ratio['high']:.3f}" if ratio else ""
            lines.append(f"| {model} | {variant} | {size} | {estimate} | {interval} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
