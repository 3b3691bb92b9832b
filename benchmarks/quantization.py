"""Quantize real models with real data: accuracy, size, latency and kernels, beside onnxruntime's defaults.

    python benchmarks/quantization.py [--json FILE] [--pairs 12] [--part types|rounding|patterns] [MODEL ...]
    python benchmarks/quantization.py --large resnet50.onnx bert.onnx     any models, random inputs
    python benchmarks/quantization.py --document                          the tables of docs/quantization.md

MODEL is one of CASES in quantization_cases.py. Every point is stored as it comes and not made again without
`--again`; `--seconds` stops before the next point. Latency is the ratio of CPU time to the float model, one
thread, interleaved, with a 95 % interval. Pruned models are as `sparsecc compile` leaves them: nothing was trained
after the removal.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantization_cases import CASES, ROOT, UNTRAINED, Case, Feeds, large, shared
from benchmarks.quantization_tables import tables
from sparsecc import api
from sparsecc.backends.kernel_census import census
from sparsecc.measure.interleave import Budget, compare
from sparsecc.passes.base import Pass, PassContext
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.sparsity import Sparsify
from sparsecc.plan import Plan
from sparsecc.targets import TARGETS

OUT = ROOT / "out" / "benchmarks" / "quantization.json"
DOCUMENT = ROOT / "docs" / "quantization.md"
Facts = dict[str, Any]
Maker = Callable[[Case, Path], tuple[Path, Facts]]
"""Writes a variant of a case's model into a folder: the file and what is known about it."""


def passed(step: Pass, case: Case, folder: Path) -> tuple[Path, Facts]:
    """The model after one of our passes."""
    model, path = ir.load(case.path), folder / "model.onnx"
    target = TARGETS["tensorrt" if isinstance(step, Sparsify) else "onnxruntime"]
    result = step.run(model, Plan({}), PassContext(target, folder, case.calibration))
    ir.save(model, path)
    return path, _layer_means(result.facts)


def _layer_means(facts: Facts) -> Facts:
    layers = list(facts.get("layers", {}).values())
    if not layers:
        return {}
    keys = ("kept_saliency", "output_error", "invalid_groups")
    means = {key: float(np.mean([one[key] for one in layers])) for key in keys if key in layers[0]}
    return {"layers": len(layers), **means}


def compiled(options: Facts, case: Case, folder: Path) -> tuple[Path, Facts]:
    """The model as `sparsecc compile` writes it; without labels nothing is repaired."""
    samples = folder / "calibration.npz"
    np.savez(samples, **{key: np.concatenate([f[key] for f in case.calibration]) for key in case.test[0]})
    made = api.compile(
        case.path, output=folder / "bundle", calibration=str(samples), measure=False,
        recover="none" if case.labels is None else "auto", **options,
    )  # fmt: skip
    assert made.bundle is not None
    return made.bundle / "model.onnx", {"macs": made.report["after"]["macs"] / made.report["before"]["macs"]}


class Reader:
    """Calibration feeds in the form that onnxruntime.quantization wants."""

    def __init__(self, feeds: list[Feeds]) -> None:
        self._feeds: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        """The next feeds, or None at the end."""
        return next(self._feeds, None)


def peer(kind: str, case: Case, folder: Path) -> tuple[Path, Facts]:
    """The same with onnxruntime's own tools as they come (fp16 with float32 inputs and outputs)."""
    import onnx
    from onnxruntime import quantization

    path = folder / "model.onnx"
    if kind == "int8":
        quantization.quantize_static(case.path, path, Reader(case.calibration))
    elif kind == "int8-dynamic":
        quantization.quantize_dynamic(case.path, path)
    elif kind == "int4":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        rounding = MatMulNBitsQuantizer(onnx.load(case.path))
        rounding.process()
        rounding.model.save_model_to_file(str(path))
    else:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(case.path), keep_io_types=True), path)
    return path, {}


TYPES: dict[str, Maker] = {
    "int8": partial(passed, Quantize(type="int8")),
    "int8-dynamic": partial(passed, Quantize(type="int8-dynamic")),
    "int4": partial(passed, Quantize(type="int4", algorithm="gptq")),
    "fp16": partial(passed, Quantize(type="fp16")),
    "pruned": partial(compiled, {"ratio": 0.5}),
    "pruned + int8": partial(compiled, {"ratio": 0.5, "quantize": "int8"}),
    **{f"onnxruntime {kind}": partial(peer, kind) for kind in ("int8", "int8-dynamic", "int4", "fp16")},
}
ROUNDING: dict[str, Maker] = {
    "int8 mse": partial(passed, Quantize(type="int8", method="mse")),
    "int8 entropy": partial(passed, Quantize(type="int8", method="entropy")),
    "int8 percentile": partial(passed, Quantize(type="int8", method="percentile")),
    "int8 equalized": partial(passed, Quantize(type="int8", equalize=True, correct_bias=True)),
    "int8 gptq": partial(passed, Quantize(type="int8", algorithm="gptq")),
    "int8 mse gptq": partial(passed, Quantize(type="int8", method="mse", algorithm="gptq")),
    "int8 7 bits": partial(passed, Quantize(type="int8", reduce_range=True)),
    "int8 7 bits gptq": partial(passed, Quantize(type="int8", reduce_range=True, algorithm="gptq")),
    "int4 rtn": partial(passed, Quantize(type="int4", algorithm="rtn")),
    "int4 awq": partial(passed, Quantize(type="int4", algorithm="awq")),
}
PATTERNS: dict[str, Maker] = {
    f"2:4 {method}{' permuted' if permute else ''}": partial(passed, Sparsify(method=method, permute=permute))
    for permute in (False, True)
    for method in ("magnitude", "wanda", "sparsegpt", "refit")
}
PARTS = {"types": TYPES, "rounding": ROUNDING, "patterns": PATTERNS}


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


def quality(path: Path, case: Case, reference: np.ndarray) -> Facts:
    """Accuracy or fidelity, and size on the disk."""
    result = outputs(path, case)
    noise = float(np.square(result - reference).sum() / np.square(reference).sum())
    beside = path.with_name(path.name + ".data")
    size = path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
    agreement = float((result.argmax(-1) == reference.argmax(-1)).mean())
    return {"score": case.score(result), "relative_error": noise, "agreement": agreement, "bytes": size}


def speed(path: Path, case: Case, pairs: int) -> Facts:
    """The latency ratio of one sample, and the kernels that run."""
    kernels = census(path)
    feeds = {key: array[:1] for key, array in case.test[0].items()}
    before, after = session(case.path), session(path)
    timed = compare(lambda: before.run(None, feeds), lambda: after.run(None, feeds), budget=Budget(pairs, 20))
    counts = {"integer": sum(kernels["integer"].values()), "float": sum(kernels["float"].values())}
    return {**counts, "speedup": timed.ratio().to_json()}


def point(make: Maker, case: Case, reference: np.ndarray, pairs: int) -> Facts:
    """One point; `pairs` of 0 leave latency out."""
    with tempfile.TemporaryDirectory() as folder:
        path, facts = make(case, Path(folder))
        found = {**facts, **quality(path, case, reference)}
        return found | (speed(path, case, pairs) if pairs else {})


def peer_point(make: Maker, case: Case, reference: np.ndarray, pairs: int) -> Facts:
    """`point`, or the message of the peer's tool that failed."""
    try:
        return point(make, case, reference, pairs)
    except Exception as e:  # noqa: BLE001 - a peer may fail in any way; its message is the result
        return {"error": (str(e).strip() or type(e).__name__).splitlines()[0][:120]}


class Store:
    """Points by model and variant in a JSON file, written after each."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.points: dict[str, dict[str, Facts]] = {}
        if file.is_file():
            self.points = json.loads(file.read_text())["points"]

    def put(self, model: str, variant: str, facts: Facts) -> None:
        """Store one point and show it."""
        self.points.setdefault(model, {})[variant] = facts
        host = {"machine": platform.machine(), "onnxruntime": ort.__version__}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps({"host": host, "points": self.points}, indent=1) + "\n")
        print(model, variant, json.dumps(facts), flush=True)


def run_case(name: str, case: Case, store: Store, part: str, pairs: int, end: float, *, again: bool) -> bool:
    """All missing points of one model; whether time was left for all of them."""
    known, timed = store.points.get(name, {}), part == "types" and pairs > 0
    missing = {
        variant: make
        for variant, make in PARTS[part].items()
        if again or variant not in known or (timed and not known[variant].keys() & {"speedup", "error"})
    }
    if not missing:
        return True
    reference = outputs(case.path, case)
    if "fp32" not in known:
        facts = {"bytes": case.path.stat().st_size, "score": case.score(reference), "measure": case.measure}
        store.put(name, "fp32", facts)
    for variant, make in missing.items():
        if time.monotonic() > end:
            return False
        begun = time.monotonic()
        ask = peer_point if variant.startswith("onnxruntime") else point
        facts = ask(make, case, reference, pairs if part == "types" else 0)
        store.put(name, variant, {**facts, "seconds": round(time.monotonic() - begun, 1)})
    return True


def document(store: Store) -> None:
    """Write the tables between their marks in the document."""
    text = DOCUMENT.read_text()
    for title, table in tables(store.points).items():
        marks = f"<!-- {title} -->", f"<!-- end of {title} -->"
        text = re.sub(f"(?s){marks[0]}.*?{marks[1]}", lambda _, t=table, m=marks: f"{m[0]}\n{t}{m[1]}", text)
    DOCUMENT.write_text(text)


def main() -> None:
    """Make what is missing, or write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=OUT)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--part", choices=list(PARTS), default="types")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--document", action="store_true")
    parser.add_argument("--large", type=Path, nargs="*", default=[])
    parser.add_argument("names", nargs="*", choices=[[], *CASES])
    given = parser.parse_args()
    store, end = Store(given.json), time.monotonic() + given.seconds
    if given.document:
        return document(store)
    chosen = {name: CASES[name] for name in given.names or ([] if given.large else CASES)}
    if chosen.keys() - UNTRAINED and not shared().is_dir():
        sys.exit(f"no materials under {shared()}: set SPARSECC_SHARED")
    chosen |= {path.stem: partial(large, path) for path in given.large}
    for name, build in chosen.items():
        if not run_case(name, build(), store, given.part, given.pairs, end, again=given.again):
            sys.exit("out of time: run again for the rest")


if __name__ == "__main__":
    main()
