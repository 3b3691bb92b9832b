"""Quantize real models with real data: accuracy, size, latency, kernels, beside the defaults of onnxruntime, onnxsim.

    python benchmarks/quantization.py [--json FILE] [--pairs 12] [--part types|rounding|patterns|mixed] [MODEL ...]
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
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantization_cases import CASES, ROOT, UNTRAINED, Case, large, shared
from benchmarks.quantization_peers import onnxruntime, onnxsim
from benchmarks.quantization_tables import tables
from sparsecc import api
from sparsecc.compilation import Compilation
from sparsecc.measure.interleave import Budget, compare
from sparsecc.options import CompileOptions
from sparsecc.passes.base import Pass
from sparsecc.passes.quantize import Quantize
from sparsecc.passes.sparsity import Sparsify
from sparsecc.plan import Plan
from sparsecc.runtime.kernel_census import census
from sparsecc.runtime.runner import Feeds
from sparsecc.system.scratch import Scratch
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
    options = CompileOptions(target=target.name, measure=False)
    compilation = Compilation(Path(), options, Scratch(folder), pass_feeds=case.calibration)
    result = step.run(model, Plan({}), compilation)
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
    """The model as `sparsecc compile` writes it; with random weights, that nobody labelled, it is cut evenly, and not
    repaired."""
    samples = folder / "calibration.npz"
    np.savez(samples, **{key: np.concatenate([f[key] for f in case.calibration]) for key in case.test[0]})
    evenly = {"criterion": "l2", "allocator": "uniform", "recover": "none"} if case.labels is None else {}
    made = api.compile(case.path, output=folder / "bundle", calib=samples, measure=False, **evenly, **options)
    assert made.bundle is not None
    return made.bundle / "model.onnx", {"macs": made.report["after"]["macs"] / made.report["before"]["macs"]}


def within(share: float, case: Case, folder: Path) -> tuple[Path, Facts]:
    """A type for every layer within a share of the bytes of the float model, and what one type for all takes."""
    size = share * case.path.stat().st_size
    return mixed(Quantize(type="mixed", size=size, algorithm="gptq"), case.calibration, case, folder)


def as_fast(speedup: float, case: Case, folder: Path) -> tuple[Path, Facts]:
    """A type for every layer so that one sample takes so much less time than in float."""
    alone = {key: array[:1] for key, array in case.calibration[0].items()}
    return mixed(Quantize(type="mixed", speedup=speedup), [alone, *case.calibration], case, folder)


def mixed(quantize: Quantize, calibration: Sequence[Feeds], case: Case, folder: Path) -> tuple[Path, Facts]:
    """What a pass makes, with the facts that the table shows."""
    model, path = ir.load(case.path), folder / "model.onnx"
    compilation = Compilation(Path(), CompileOptions(), Scratch(folder), pass_feeds=calibration)
    facts = quantize.run(model, Plan({}), compilation).facts
    ir.save(model, path)
    names = ("chosen", "uniform", "predicted_error", "error", "gain_of_widths", "speedup")
    kept = {key: facts[key] for key in names if key in facts}
    return path, {**kept, "forms": dict(Counter(facts["types"].values()))}


PATH = 0.5
"""The share of a layer's work that low-rank paths may add here; nothing is timed for them."""
KINDS = ("int8", "int8-dynamic", "int4", "fp16")
TYPES: dict[str, Maker] = {
    "int8": partial(passed, Quantize(type="int8")),
    "int8-dynamic": partial(passed, Quantize(type="int8-dynamic")),
    "int4": partial(passed, Quantize(type="int4", algorithm="gptq")),
    "fp16": partial(passed, Quantize(type="fp16")),
    "pruned": partial(compiled, {"ratio": 0.5}),
    "pruned + int8": partial(compiled, {"ratio": 0.5, "quantize": "int8"}),
    **{f"onnxruntime {kind}": partial(onnxruntime, kind) for kind in KINDS},
    **{f"onnxsim {kind}": partial(onnxsim, kind) for kind in KINDS},
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
    "int4 kquant": partial(passed, Quantize(type="int4", algorithm="kquant")),
    "int4 awq": partial(passed, Quantize(type="int4", algorithm="awq")),
    "int4 path": partial(passed, Quantize(type="int4", algorithm="gptq", eora=PATH)),
    "onnxsim int4 path": partial(onnxsim, "int4 path"),
}
PATTERNS: dict[str, Maker] = {
    f"2:4 {method}{' permuted' if permute else ''}": partial(passed, Sparsify(method=method, permute=permute))
    for permute in (False, True)
    for method in ("magnitude", "wanda", "sparsegpt", "refit")
} | {
    "2:4 wanda path": partial(passed, Sparsify(method="wanda", eora=PATH)),
    "2:4 refit path": partial(passed, Sparsify(method="refit", eora=PATH)),
    "onnxsim 2:4 wanda": partial(onnxsim, "2:4 wanda"),
    "onnxsim 2:4 sparsegpt": partial(onnxsim, "2:4 sparsegpt"),
}
MIXED: dict[str, Maker] = {
    **{f"mixed {share}": partial(within, share) for share in (0.6, 0.5, 0.4, 0.3, 0.25, 0.2)},
    **{f"mixed {speedup}x": partial(as_fast, speedup) for speedup in (1.2, 1.4)},
    "onnxsim int4 and int8": partial(onnxsim, "int4 and int8"),
}
PARTS = {"types": TYPES, "rounding": ROUNDING, "patterns": PATTERNS, "mixed": MIXED}


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


def careful_point(make: Maker, case: Case, reference: np.ndarray, pairs: int) -> Facts:
    """`point`, or the message of a peer's tool that failed, or of a budget that types cannot reach."""
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
        ask = careful_point if part == "mixed" or variant.startswith(("onnxruntime", "onnxsim")) else point
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
