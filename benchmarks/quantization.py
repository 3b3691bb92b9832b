"""Quantize real models with real data: accuracy, size, latency and kernels, beside onnxruntime's defaults.

    python benchmarks/quantization.py [--json FILE] [--pairs 30] [--all] [MODEL ...]
    python benchmarks/quantization.py --large resnet50.onnx bert.onnx     any models, random inputs

MODEL is one of CASES: trained ones on the materials in SPARSECC_SHARED or ../shared, resnet50 and bert_base
of the zoo, without trained weights. Latency is the ratio of CPU time to the float model, one thread,
interleaved, with a 95 % interval. `--all` adds the calibration methods, int4 and the patterns. Pruned models
are as they come out: nothing was trained after the removal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsecc import api
from sparsecc.backends.kernel_census import census
from sparsecc.measure.interleave import Budget, compare
from sparsecc.passes.base import Pass, PassContext
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.sparsity import Sparsify
from sparsecc.plan import Plan
from sparsecc.targets import TARGETS

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
OURS: dict[str, list[Pass]] = {
    "int8": [Quantize(type="int8")],
    "int8 mse": [Quantize(type="int8", method="mse")],
    "int8 entropy": [Quantize(type="int8", method="entropy")],
    "int8 percentile": [Quantize(type="int8", method="percentile")],
    "int8 equalized": [Quantize(type="int8", equalize=True, correct_bias=True)],
    "int8-dynamic": [Quantize(type="int8-dynamic")],
    "int4": [Quantize(type="int4", algorithm="gptq")],
    "fp16": [Quantize(type="fp16")],
}
CORE = ("int8", "int8-dynamic", "fp16")
"""What is compared by default, beside pruning and ONNX Runtime's own tools."""
COMPILED: dict[str, dict[str, Any]] = {
    "pruned": {"ratio": 0.5},
    "pruned + int8": {"ratio": 0.5, "quantize": "int8"},
}
"""Options of `sparsecc.compile`."""
PATTERNS: dict[str, list[Pass]] = {
    "2:4 magnitude": [Sparsify(method="magnitude")],
    "2:4 wanda": [Sparsify(method="wanda")],
    "2:4 sparsegpt": [Sparsify(method="sparsegpt")],
    "2:4 refit": [Sparsify(method="refit")],
    "2:4 refit permuted": [Sparsify(method="refit", permute=True)],
}


@dataclass(frozen=True)
class Case:
    """A model with calibration feeds, test feeds, and labels where there are any."""

    path: Path
    calibration: list[dict[str, np.ndarray]]
    test: list[dict[str, np.ndarray]]
    labels: np.ndarray | None = None
    offset: int = 0


def shared() -> Path:
    """The folder of shared materials."""
    return (
        Path(os.environ.get("SPARSECC_SHARED") or Path(__file__).resolve().parents[2] / "shared")
        / "materials"
    )


def cifar(name: str) -> Case:
    """1,000 test images; 200 training images to calibrate with."""
    folder = shared() / "cifar10"
    text = (folder / "cifar10_labels.js").read_text()
    found = re.search(r"\[.*\]", text, re.DOTALL)
    assert found is not None
    labels = np.array(json.loads(found.group(0)))[50_000:51_000]
    train, test = _cifar_batch(folder, 0), _cifar_batch(folder, 50)
    return Case(
        folder / f"{name}_cifar10.onnx",
        [{"image": train[i : i + 50]} for i in range(0, 200, 50)],
        [{"image": test[i : i + 250]} for i in range(0, 1000, 250)],
        labels,
    )


def _cifar_batch(folder: Path, number: int) -> np.ndarray:
    from PIL import Image

    pixels = np.array(Image.open(folder / f"cifar10_batch_{number}.png").convert("RGB"))
    images = (pixels.reshape(1000, 32, 32, 3) / 255 - MEAN) / DEVIATION
    return np.asarray(images.transpose(0, 3, 1, 2), np.float32)


def imagenet(file: str, *, signed: bool, offset: int) -> Case:
    """500 images of as many classes; every tenth calibrates, the others test."""
    from PIL import Image

    folder = shared() / "imagenet1000"
    synsets = [line.split()[0] for line in (folder / "synsets.txt").read_text().splitlines() if line]
    images, labels = [], []
    for path in sorted(folder.glob("*.jpg")):
        image = Image.open(path).convert("RGB")
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.array(image.crop((left, top, left + 224, top + 224))) / 255
        images.append((pixels * 2 - 1 if signed else (pixels - MEAN) / DEVIATION).transpose(2, 0, 1))
        labels.append(synsets.index(path.stem.split("_")[0]))
    every = np.stack(images).astype(np.float32)
    tenth = np.arange(len(every)) % 10 == 0
    test = every[~tenth]
    return Case(
        folder / file,
        [{"image": every[tenth][i : i + 10]} for i in range(0, int(tenth.sum()), 10)],
        [{"image": test[i : i + 25]} for i in range(0, len(test), 25)],
        np.array(labels)[~tenth],
        offset,
    )


def zoo(name: str) -> Case:
    """A full-size architecture of the zoo. Needs torch for the first export."""
    from tests.zoo.large import large_path

    return large(large_path(name, "torchscript"))


CASES: dict[str, Callable[[], Case]] = {
    "resnet20": lambda: cifar("resnet20"),
    "resnet56": lambda: cifar("resnet56"),
    "mobilenetv2": lambda: imagenet("mobilenetv2_1.0_dy18.onnx", signed=True, offset=1),
    "squeezenet": lambda: imagenet("squeezenet1.1_ts13.onnx", signed=False, offset=0),
    "resnet50": lambda: zoo("resnet50"),
    "bert_base": lambda: zoo("bert_base"),
}


def large(path: Path) -> Case:
    """A model without data: random inputs of its shapes, 128 for a sequence."""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in ir.load(path).graph.inputs:
        assert value.shape is not None
        size = [
            side if isinstance(side, int) else 1 if axis == 0 else 128
            for axis, side in enumerate(value.shape)
        ]
        is_float = value.dtype == ir.DataType.FLOAT
        array = rng.standard_normal(size).astype(np.float32) if is_float else rng.integers(0, 1000, size)
        feeds[value.name or ""] = array
    return Case(path, [feeds], [feeds])


def session(path: Path) -> ort.InferenceSession:
    """One thread, no spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs(path: Path, case: Case) -> np.ndarray:
    """The first output over the test feeds, one row per sample."""
    run = session(path)
    return np.concatenate([np.asarray(run.run(None, feeds)[0]) for feeds in case.test])


class Reader:
    """Calibration feeds in the form that onnxruntime.quantization wants."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feeds, or None at the end."""
        return next(self._feeds, None)


def by_onnxruntime(kind: str, case: Case, out: Path) -> None:
    """The same with onnxruntime.quantization as it comes."""
    from onnxruntime import quantization

    if kind == "int8":
        quantization.quantize_static(case.path, out, Reader(case.calibration))
    else:
        quantization.quantize_dynamic(case.path, out)


def variants(case: Case, folder: Path, *, everything: bool) -> Iterator[tuple[str, Path | str]]:
    """(name, model or the reason why there is none) of everything compared."""
    passes = {**OURS, **PATTERNS} if everything else {name: OURS[name] for name in CORE}
    for name, steps in passes.items():
        target = TARGETS["tensorrt" if name.startswith("2:4") else "onnxruntime"]
        model = ir.load(case.path)
        for step in steps:
            step.run(model, Plan({}), PassContext(target, folder, case.calibration))
        path = folder / f"{name.replace(' ', '-').replace(':', '')}.onnx"
        ir.save(model, path)
        yield name, path
    samples = folder / "calibration.npz"
    np.savez(samples, **{key: np.concatenate([f[key] for f in case.calibration]) for key in case.test[0]})
    for name, options in COMPILED.items():
        out = folder / name.replace(" ", "")
        given = {**options, "recover": "auto" if case.labels is not None else "none", "measure": False}
        made = api.compile(case.path, output=out, calibration=str(samples), **given)
        assert made.bundle is not None
        yield name, made.bundle / "model.onnx"
    for kind in ("int8", "int8-dynamic"):
        path = folder / f"onnxruntime-{kind}.onnx"
        try:
            by_onnxruntime(kind, case, path)
            session(path)
            yield f"onnxruntime {kind}", path
        except Exception as e:  # noqa: BLE001 - a peer may fail in any way; its message is the result
            yield f"onnxruntime {kind}", str(e).splitlines()[0][:120]


def measured(name: str, path: Path, case: Case, reference: np.ndarray, pairs: int) -> dict[str, Any]:
    """One row: accuracy or fidelity, size, latency ratio and kernels."""
    result = outputs(path, case)
    noise = float(np.square(result - reference).sum() / np.square(reference).sum())
    row: dict[str, Any] = {"variant": name, "relative_error": noise, "bytes": path.stat().st_size}
    row["agreement"] = float((result.argmax(-1) == reference.argmax(-1)).mean())
    if case.labels is not None:
        row["top1"] = float((result.argmax(-1) == case.labels + case.offset).mean())
    kernels = census(path)
    row["integer"], row["float"] = sum(kernels["integer"].values()), sum(kernels["float"].values())
    feeds = {key: array[:1] for key, array in case.test[0].items()}
    before, after = session(case.path), session(path)
    timed = compare(lambda: before.run(None, feeds), lambda: after.run(None, feeds), budget=Budget(pairs, 20))
    ratio = timed.ratio()
    row["speedup"] = ratio.to_json()
    return row


def show(row: dict[str, Any], float_bytes: int) -> None:
    """One line of the table."""
    if "error" in row:
        print(f"{row['variant']:26s} fails: {row['error']}", flush=True)
        return
    top1 = f"{row['top1']:.3f}" if "top1" in row else "  -  "
    speed = row["speedup"]
    print(
        f"{row['variant']:26s} top1 {top1} agree {row['agreement']:.3f} error {row['relative_error']:.1e} "
        f"size {row['bytes'] / float_bytes:.2f} speed x{speed['estimate']:.2f} "
        f"[{speed['ci95'][0]:.2f}, {speed['ci95'][1]:.2f}] int {row['integer']} float {row['float']}",
        flush=True,
    )


def run_case(name: str, case: Case, pairs: int, *, everything: bool) -> list[dict[str, Any]]:
    """All rows of one model."""
    size = case.path.stat().st_size
    reference = outputs(case.path, case)
    top1 = (
        ""
        if case.labels is None
        else f", top1 {(reference.argmax(-1) == case.labels + case.offset).mean():.3f}"
    )
    print(f"\n{name}: float{top1}, {size / 1e6:.1f} MB", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for variant, path in variants(case, Path(folder), everything=everything):
            if isinstance(path, str):
                row: dict[str, Any] = {"variant": variant, "error": path}
            else:
                row = measured(variant, path, case, reference, pairs)
            rows.append({"model": name, **row})
            show(rows[-1], size)
    return rows


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--large", type=Path, nargs="*", default=[])
    parser.add_argument("names", nargs="*", choices=[[], *CASES])
    given = parser.parse_args()
    if set(given.names or CASES) - {"resnet50", "bert_base"} and not given.large and not shared().is_dir():
        sys.exit(f"no materials under {shared()}: set SPARSECC_SHARED")
    rows = []
    for path in given.large:
        rows += run_case(path.stem, large(path), given.pairs, everything=given.all)
    for name in given.names or ([] if given.large else CASES):
        rows += run_case(name, CASES[name](), given.pairs, everything=given.all)
    if given.json:
        facts = {
            "processor": platform.processor(),
            "machine": platform.machine(),
            "onnxruntime": ort.__version__,
        }
        given.json.write_text(json.dumps({"host": facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
