"""Compile zoo architectures for TensorRT-RTX, for real and without a GPU: what builds, how long, how large.

    python benchmarks/rtx.py [--json FILE] [--types fp32,fp16,int8] [--exporter torchscript] [NAME …]

Every model goes through `sparsecc.compile` at ratio 0.5 in each type; its plan is compared with the dense
one in fp32. Sizes are exact; times are wall clock of one build on a machine that may be busy.
Needs the extra: pip install 'sparsecc[tensorrt-rtx]'.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsecc import api
from sparsecc.errors import SparseccError
from tests.zoo import ZOO
from tests.zoo.export import EXPORTERS, ZooUnavailable, onnx_path
from tests.zoo.registry import Model

ARCHITECTURES = (
    "resnet_basic", "resnet_bottleneck", "resnext", "densenet", "inception", "se_resnet", "mobilenet_v2",
    "efficientnet", "shufflenet_v2", "unet", "unet_resize", "yolo_c2f", "ssd", "detr", "diffusion_unet",
    "convnext", "vit_fused_chunk", "swin", "segformer", "mlp_mixer", "bert", "gpt2", "llama_gqa",
    "t5_encoder", "lstm_classifier", "mixtral", "wav2vec2", "mamba",
)  # fmt: skip
RATIO = 0.5
TYPES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"quantize": "fp16", "calibration": "synthetic"},
    "int8": {"quantize": "int8", "calibration": "synthetic"},
    "2:4": {"sparsity": "2:4"},
    "fp8": {"quantize": "fp8", "calibration": "synthetic"},
    "int4": {"quantize": "int4"},
}
"""Options per type. 2:4 is laid over layers of any width, so that the small models of the zoo have some."""


def ranges(model: Model) -> dict[str, list[list[int]]]:
    """(least, usual, largest) shape per input, for the sizes that the zoo runs the model at."""
    sizes, others = {**model.sizes, "batch": 2}, {**model.sizes, **model.other_sizes, "batch": 5}
    least = {**{name: min(sizes[name], others[name]) for name in sizes}, "batch": 1}
    most = {name: max(sizes[name], others[name]) for name in sizes}
    return {
        one.name: [
            [d if isinstance(d, int) else found[d] for d in one.shape] for found in (least, sizes, most)
        ]
        for one in model.inputs
    }


def compiled(path: Path, inputs: dict[str, Any], ratio: float, options: dict[str, Any]) -> dict[str, Any]:
    """Plan size, build time and what was laid over the layers; or the one line of the refusal."""
    given = {"target": "tensorrt-rtx", "ratio": ratio, "inputs": inputs, "measure": False, **options}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        try:
            made = api.compile(path, output=out, **given)
        except SparseccError as e:
            return {"built": False, "kind": type(e).__name__, "reason": str(e)}
        plan = (out / "model.engine").stat().st_size
    stages = {one["name"]: one["seconds"] for one in made.report["passes"] if "seconds" in one}
    return {
        "built": True,
        "plan_bytes": plan,
        "build_seconds": stages["build"],
        "compile_seconds": round(time.perf_counter() - begun, 2),
        "layers": {**Counter(entry["type"] for entry in made.plan["quantization"].values())},
        "patterns": len(made.plan["patterns"]),
        "skipped": {**Counter(one["reason"] for one in made.report["skipped"])},
        "warnings": made.report["warnings"],
    }


def rows_of(name: str, exporter: Any, types: list[str]) -> list[dict[str, Any]]:
    """The dense model's plan and the compiled ones'."""
    path, inputs = onnx_path(name, exporter), ranges(ZOO[name].build())
    dense = compiled(path, inputs, 0.0, {})
    rows = [{"name": name, "type": "dense", **dense}]
    show(rows[0])
    for type_ in types:
        found = compiled(path, inputs, RATIO, TYPES[type_])
        if dense["built"] and found["built"]:
            found["size_ratio"] = round(found["plan_bytes"] / dense["plan_bytes"], 3)
            found["time_ratio"] = round(found["build_seconds"] / max(dense["build_seconds"], 1e-3), 2)
        rows.append({"name": name, "type": type_, **found})
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    start = f"{row['name']:18s} {row['type']:6s}"
    if not row["built"]:
        print(f"{start} {row['kind']}: {row['reason']}", flush=True)
        return
    layers = ", ".join(f"{n} {kind}" for kind, n in row["layers"].items())
    pattern = f"{row['patterns']} layers 2:4" if row["patterns"] else ""
    print(
        f"{start} {row['plan_bytes'] / 1e3:8.0f} kB  x{row.get('size_ratio', 1.0):<5.2f} "
        f"{row['build_seconds']:6.2f} s  x{row.get('time_ratio', 1.0):<5.2f} {layers or pattern}",
        flush=True,
    )


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--exporter", choices=EXPORTERS, default="dynamo")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in given.names or ARCHITECTURES:
        try:
            rows += rows_of(name, given.exporter, given.types.split(","))
        except ZooUnavailable as e:
            print(f"{name:18s} not exported: {e}", flush=True)
    asked = [row for row in rows if row["type"] != "dense"]
    built = sum(row["built"] for row in asked)
    print(f"{built} of {len(asked)} build, of {len({row['name'] for row in rows})} architectures")
    if given.json:
        host = {"machine": platform.machine(), "tensorrt_rtx": version("tensorrt_rtx_cu12_bindings")}
        given.json.write_text(json.dumps({"host": host, "ratio": RATIO, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
