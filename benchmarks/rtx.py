"""Compile zoo architectures for TensorRT-RTX, for real and without a GPU: what builds, how long, how large.

    python benchmarks/rtx.py [--json FILE] [--seconds 280] [NAME …]     again until it says that all is done
    python benchmarks/rtx.py --publish docs/tensorrt.md                  write its tables between the marks there

Every model is compiled as by `sparsecc compile --ratio 0.5`; its plan stands beside that of the dense model in fp32.
Types in `CORE` are made of all architectures, the others of the first `MANY`. Each row is stored as soon as it
stands, and rows that are stored are not made again. Sizes are exact; times are wall clock of one build on
a machine that may be busy. Needs the extra: pip install 'sparsecc[tensorrt-rtx]'.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsecc.errors import SparseccError
from sparsecc.worker import Worker
from tests.zoo import ZOO, known
from tests.zoo.export import ZooUnavailable, onnx_path

ARCHITECTURES = (
    "resnet_basic", "resnet_bottleneck", "resnext", "densenet", "inception", "se_resnet", "mobilenet_v2",
    "efficientnet", "shufflenet_v2", "unet", "yolo_c2f", "ssd", "detr", "convnext", "vit_fused_chunk", "swin",
    "mlp_mixer", "bert", "gpt2", "llama_gqa",
    "unet_resize", "diffusion_unet", "segformer", "t5_encoder", "lstm_classifier", "mixtral", "wav2vec2",
    "mamba",
)  # fmt: skip
MANY = 20
RATIO = 0.5
DEADLINE = 300.0
_DATA = {"calib": "synthetic"}
_ANY_WIDTH = {"sparsity": "2:4", "sparsity_options": {"min_channels": "4"}}
_HALF_REST = {"quantize_options": {"rest": "fp16"}}
TYPES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"quantize": "fp16"} | _DATA,
    "int8": {"quantize": "int8!"} | _DATA,
    "bf16": {"quantize": "bf16"},
    "fp8": {"quantize": "fp8"} | _DATA,
    "nvfp4": {"quantize": "nvfp4"} | _DATA,
    "mxfp8": {"quantize": "mxfp8"},
    "int4": {"quantize": "int4"},
    "2:4": _ANY_WIDTH,
    "int8, rest fp16": {"quantize": "int8!"} | _HALF_REST | _DATA,
    "fp8, rest fp16": {"quantize": "fp8"} | _HALF_REST | _DATA,
    "int4, rest fp16": {"quantize": "int4"} | _HALF_REST,
    "2:4 and fp16": _ANY_WIDTH | {"quantize": "fp16"} | _DATA,
    "2:4 and int8": _ANY_WIDTH | {"quantize": "int8"} | _DATA,
    "2:4 and fp8": _ANY_WIDTH | {"quantize": "fp8"} | _DATA,
    "2:4 and int4": _ANY_WIDTH | {"quantize": "int4"},
}
"""Options per type. 2:4 is laid over layers of any width, so that the small models of the zoo have some."""
CORE = ("dense", "fp32", "fp16", "int8")
STORE = Path("out/benchmarks/rtx.json")
MARKS = ("<!-- made by benchmarks/rtx.py -->", "<!-- end of benchmarks/rtx.py -->")

Row = dict[str, Any]


def ranges(name: str) -> dict[str, list[list[int]]]:
    """(least, usual, largest) shape per input, for the sizes that the zoo runs the model at."""
    model, static = ZOO[name].build(), known.STATIC.get((name, "dynamo"), known.Static())
    free = {key: size for key, size in model.other_sizes.items() if key not in static.dimensions}
    sizes, others = {**model.sizes, "batch": 2}, {**model.sizes, **free, "batch": 5}
    least = {**{name: min(sizes[name], others[name]) for name in sizes}, "batch": 1}
    most = {name: max(sizes[name], others[name]) for name in sizes}
    return {
        one.name: [
            [d if isinstance(d, int) else found[d] for d in one.shape] for found in (least, sizes, most)
        ]
        for one in model.inputs
    }


def compiled(
    worker: Worker, path: Path, inputs: dict[str, Any], ratio: float, options: dict[str, Any]
) -> Row:
    """Plan size, build time and what was laid over the layers; or the one line of the refusal."""
    given = {"target": "tensorrt-rtx", "ratio": ratio, "inputs": inputs, "recover": "none", **options}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        request = {"model": str(path), "output": str(Path(folder) / "out"), "options": given}
        try:
            made = worker.run("sparsecc.tasks.compile:compile_model", request, deadline=DEADLINE)
        except SparseccError as e:
            return {"built": False, "kind": type(e).__name__, "reason": str(e)}
        plan = (Path(folder) / "out" / "model.engine").stat().st_size
    stages = {one["name"]: one["seconds"] for one in made["report"]["passes"] if "seconds" in one}
    return {
        "built": True,
        "plan_bytes": plan,
        "build_seconds": stages["build"],
        "compile_seconds": round(time.perf_counter() - begun, 2),
        "types": {**Counter(entry["type"] for entry in made["plan"]["quantization"].values())},
        "patterns": len(made["plan"]["patterns"]),
        "skipped": {**Counter(one["reason"] for one in made["report"]["skipped"])},
        "warnings": made["report"]["warnings"],
    }


def wanted(names: Sequence[str]) -> list[tuple[str, str]]:
    """(architecture, type) of every row: the core types of all first, the dense one before the others."""
    others = [type_ for type_ in TYPES if type_ not in CORE]
    core = [(name, type_) for name in names for type_ in CORE]
    return core + [(name, type_) for name in names if name in ARCHITECTURES[:MANY] for type_ in others]


def run(names: Sequence[str], store: Path, seconds: float) -> list[Row]:
    """Make the rows that `store` lacks, for as long as there is time; returns all that stand."""
    stored: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {"rows": []}
    rows: list[Row] = stored["rows"]
    done = {(row["name"], row["type"]) for row in rows}
    todo = [one for one in wanted(names) if one not in done]
    host = {"machine": platform.machine(), "tensorrt_rtx": version("tensorrt_rtx_cu12_bindings")}
    store.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    with Worker(write=[Path(tempfile.gettempdir())]) as worker:
        while todo and time.monotonic() < end:
            name, type_ = todo.pop(0)
            rows.append({"name": name, "type": type_, **row_of(worker, name, type_)})
            print(line_of(rows[-1]), flush=True)
            store.write_text(json.dumps({"host": host, "ratio": RATIO, "rows": rows}, indent=1))
    print(f"{len(todo)} rows are left: run it again" if todo else "all is done")
    return rows


def row_of(worker: Worker, name: str, type_: str) -> Row:
    """One architecture in one type."""
    try:
        path = onnx_path(name)
    except ZooUnavailable as e:
        return {"built": False, "kind": "not exported", "reason": str(e)}
    inputs = ranges(name)
    ratio, options = (0.0, {}) if type_ == "dense" else (RATIO, TYPES[type_])
    return compiled(worker, path, inputs, ratio, options)


def line_of(row: Row) -> str:
    """A row for the terminal."""
    start = f"{row['name']:18s} {row['type']:16s}"
    if not row["built"]:
        return f"{start} {row['kind']}: {row['reason']}"
    return f"{start} {row['plan_bytes'] / 1e3:8.0f} kB {row['build_seconds']:6.2f} s  {laid_over(row)}"


def laid_over(row: Row) -> str:
    """How many tensors got a type of their own, and how many layers the pattern."""
    parts = [f"{number} {type_}" for type_, number in sorted(row["types"].items())]
    return ", ".join(parts + ([f"{row['patterns']} 2:4"] if row["patterns"] else []))


def tables(rows: Sequence[Row]) -> str:
    """Both tables in Markdown: sizes and times of the core types, and what builds of every type."""
    by_key = {(row["name"], row["type"]): row for row in rows}
    names = [name for name in ARCHITECTURES if (name, "dense") in by_key]
    lines = [
        "| architecture | dense fp32 | " + " | ".join(f"half, {t}" for t in CORE[1:]) + " |",
        "|---" * (len(CORE) + 1) + "|",
    ]
    for name in names:
        cells = (_cell(by_key.get((name, type_)), by_key[name, "dense"]) for type_ in CORE)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| type | built | with a layer in it | plan over dense fp32 (middle, range) |",
        "|---|---|---|---|",
    ]
    lines += [_summary(type_, by_key, names) for type_ in TYPES]
    refused = [row for row in rows if not row["built"]]
    lines += ["", *(f"- {row['name']}, {row['type']}: {row['reason']}" for row in refused)] if refused else []
    return "\n".join(lines)


def _cell(row: Row | None, dense: Row) -> str:
    if row is None:
        return ""
    if not row["built"]:
        return "refused"
    ratio = f"x{row['plan_bytes'] / dense['plan_bytes']:.2f}, " if row is not dense and dense["built"] else ""
    return f"{row['plan_bytes'] / 1e3:.0f} kB, {ratio}{row['build_seconds']:.1f} s"


def _summary(type_: str, by_key: dict[tuple[str, str], Row], names: Sequence[str]) -> str:
    rows = [by_key[name, type_] for name in names if (name, type_) in by_key]
    built = [row for row in rows if row["built"]]
    touched = [row for row in built if row["types"] or row["patterns"]]
    ratios = sorted(
        row["plan_bytes"] / by_key[row["name"], "dense"]["plan_bytes"]
        for row in built
        if by_key[row["name"], "dense"]["built"]
    )
    middle = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if ratios else ""
    number = f"{len(touched)}" if type_ != "fp32" else ""
    return f"| {type_} | {len(built)} of {len(rows)} | {number} | {middle} |"


def publish(rows: Sequence[Row], document: Path) -> None:
    """Replace what stands between the marks."""
    head, _, rest = document.read_text().partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    if not tail:
        sys.exit(f"{document} lacks the marks: {' … '.join(MARKS)}")
    document.write_text(f"{head}{MARKS[0]}\n\n{tables(rows)}\n\n{MARKS[1]}{tail}")


def main() -> None:
    """Make what is missing, print the tables, publish them when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", type=Path, default=STORE)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--publish", type=Path)
    given = parser.parse_args()
    if given.publish:
        publish(json.loads(given.json.read_text())["rows"], given.publish)
        return
    print(tables(run(given.names or ARCHITECTURES, given.json, given.seconds)))


if __name__ == "__main__":
    main()
