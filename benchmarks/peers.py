"""Half of the channels of 30 architectures, by us and by two others, without hints: whose result is right?

    python benchmarks/peers.py [--json FILE] [--again] [--tool TOOL] [CASE ...]

sparsecc and onnxsim's structured pruning get an ONNX file (onnxsim's is put through onnxsim first, as it wants),
torch-pruning gets the torch module and example inputs. No tool is told about heads, groups or layers to leave
alone, except that torch-pruning is given the layers that compute the outputs. That something comes out that
runs is not the verdict: it is compared with the dense model in which the removed slots are masked, at the
example's batch and at another. `exact`: equal up to 1e-4; `wrong`: runs, but is another function, or gives
outputs of another shape; `nothing`: no parameter went; `unloadable`: written, but ONNX Runtime refuses it;
`crash`: an exception, a killed process, or no end within the time limit; `unjudged`: masking could not be
told from the weights. Every run is a process of its own. Rows in the JSON file are not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.judges.provenance import Kept, changed

RATIO = 0.5
EQUAL = 1e-4
SECONDS = 240.0
OUT = Path("out/benchmarks/peers.json")
ARCHITECTURES = """resnet_basic resnet_cifar_pad vgg_flatten nhwc_flatten densenet inception resnext mobilenet_v2
mobilenet_v3 efficientnet shufflenet_v2 ghostnet unet unet_pixelshuffle yolo_c2f convnext swin segformer vit
vit_fused_unbind bert gpt2 llama_gqa mixtral t5 whisper lstm_classifier gru_classifier diffusion_unet tcn""".split()
TOOLS = {"sparsecc": "sparsecc", "torch-pruning": "torch-pruning", "onnxsim": "onnxsim"}
"""Tool -> its package."""
Verdict = dict[str, Any]
Use = tuple[str, str]
"""(constant, the `node:operand` that reads it; empty for all that do)"""


# What is shared in a file ----------------------------------------------------------------------------

_CHAIN = """(float[N, 6] x{inputs}) => (float[N, 3] y) {{
    a = Gemm(x, first, {bias1}) b = Relu(a) c = Gemm(b, second, {bias2}) d = Relu(c) y = MatMul(d, last) }}"""
_TWICE = """(float[N, 6] x) => (float[N, 3] y) {
    a = MatMul(x, first) b = Relu(a) c = MatMul(b, second) d = Relu(c) e = MatMul(d, second) f = Relu(e)
    y = MatMul(f, last) }"""


def _shared(text: str, ir_version: int, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": 17]> agraph {text}')
    for name, shape in shapes.items():
        array = generator.normal(0, 0.6, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def _shared_weight() -> onnx.ModelProto:
    return _shared(_TWICE, 8, first=(6, 8), second=(8, 8), last=(8, 3))


def _shared_bias() -> onnx.ModelProto:
    text = _CHAIN.format(inputs="", bias1="bias", bias2="bias")
    return _shared(text, 8, first=(6, 8), second=(8, 8), bias=(8,), last=(8, 3))


def _weight_is_input() -> onnx.ModelProto:
    text = _CHAIN.format(inputs=", float[6, 8] first, float[8, 8] second", bias1="b1", bias2="b2")
    return _shared(text, 3, first=(6, 8), second=(8, 8), b1=(8,), b2=(8,), last=(8, 3))


def _bias_is_input() -> onnx.ModelProto:
    text = _CHAIN.format(inputs=", float[8] b1, float[8] b2", bias1="b1", bias2="b2")
    return _shared(text, 3, first=(6, 8), second=(8, 8), b1=(8,), b2=(8,), last=(8, 3))


SHARED: dict[str, Callable[[], onnx.ModelProto]] = {
    "shared weight": _shared_weight,
    "shared bias": _shared_bias,
    "weight is an input": _weight_is_input,
    "bias is an input": _bias_is_input,
}
"""Files in which a constant is shared or listed as an input; IR 3 files list them all."""


# The tools -------------------------------------------------------------------------------------------


def _onnx_file(case: str, form: Any, folder: Path) -> Path:
    if case in SHARED:
        path = folder / "model.onnx"
        onnx.save(SHARED[case](), path)
        return path
    from tests.zoo.export import onnx_path

    return onnx_path(case, "dynamo", form)


def by_sparsecc(case: str, folder: Path) -> Verdict:
    """From the ONNX file, with the peers' budget: half of the slots of every group."""
    import sparsecc

    path = _onnx_file(case, "plain", folder)
    made = sparsecc.compile(
        path, ratio=RATIO, metric="channels", allocator="uniform", measure=False, output=folder / "out"
    )
    assert made.bundle is not None
    left = {key: kept for name, entry in made.plan["tensors"].items() for key, kept in _by_use(name, entry)}
    verdict = _judged(path, made.bundle / "model.onnx", left, folder)
    before, after = made.report["before"]["params"], made.report["after"]["params"]
    return verdict | {"gone": 1 - after / before, "pinned": made.report["pinned"]}


def _by_use(name: str, entry: dict[str, Any]) -> Iterator[tuple[Use, Kept]]:
    for use, axes in entry["uses"].items() if "uses" in entry else [("", entry)]:
        yield (name, use), {int(axis): np.asarray(fact["keep"]) for axis, fact in axes.items()}


def by_onnxsim(case: str, folder: Path) -> Verdict:
    """onnxsim's structured pruning; what it kept is read off the values of its weights."""
    import onnxsim

    path = _onnx_file(case, "onnxsim", folder)
    dense = onnx.load(path)
    small = onnxsim.apply_structured_pruning(onnx.load(path), RATIO)
    onnx.save(small, folder / "small.onnx")
    arrays = [{i.name: numpy_helper.to_array(i) for i in m.graph.initializer} for m in (dense, small)]
    counts = [sum(a.size for a in found.values() if a.dtype.kind == "f") for found in arrays]
    gone = {"gone": 1 - counts[1] / counts[0]}
    if counts[0] == counts[1]:
        return {"verdict": "nothing", **gone}
    left = changed(*arrays)
    if any(kept is None for kept in left.values()):
        return {"verdict": "unjudged", "why": "its weights are no slices of the dense ones", **gone}
    whole: dict[Use, Kept] = {(name, ""): kept for name, kept in left.items() if kept is not None}
    return _judged(path, folder / "small.onnx", whole, folder) | gone


def _judged(dense: Path, small: Path, left: dict[Use, Kept], folder: Path) -> Verdict:
    """Compare with the dense model whose removed slots are masked, at every probe's sizes."""
    from sparsecc.backends.ort.cpu import OnnxRuntimeCpu
    from sparsecc.compilation import Compilation
    from sparsecc.errors import SparseccError
    from sparsecc.ir.save import write
    from sparsecc.loading.models import load_ir
    from sparsecc.loading.normalise import normalise
    from sparsecc.options import CompileOptions
    from sparsecc.reference.masked_channels import masked
    from sparsecc.runtime.numerics import worst_error
    from sparsecc.system.scratch import Scratch

    if not left:
        return {"verdict": "nothing"}
    model = normalise(load_ir(dense))
    compilation = Compilation(dense, CompileOptions(), Scratch(folder))
    analysis = compilation.begin(model)
    runtime = OnnxRuntimeCpu()
    try:
        runner = runtime.load(small, level="none")
        found = [runner.run(feeds) for feeds in compilation.feeds]
    except SparseccError as e:
        return {"verdict": "unloadable", "why": str(e)[:200]}
    keep = _keep(analysis, left)
    if keep is None:
        return {"verdict": "wrong", "why": "what is left of its weights does not go together"}
    error = 0.0
    for probe, (feeds, outputs) in enumerate(zip(compilation.feeds, found, strict=True)):
        reference = write(masked(analysis, keep, probe), folder / "masked" / "model.onnx")
        error = max(error, worst_error(runtime.load(reference, level="none").run(feeds), outputs))
    return {"verdict": "exact" if error <= EQUAL else "wrong", "error": error}


def _keep(analysis: Any, left: dict[Use, Kept]) -> dict[Any, np.ndarray] | None:
    """The slots left of every atom, from those left of the weights; None where they contradict each other."""
    from sparsecc.axes.algebra import atoms_of, mask
    from sparsecc.axes.owners import owners_of

    keep: dict[Any, np.ndarray] = {}
    lost = []
    for (node, operand), axes in analysis.record.uses.items():
        name = node.inputs[operand].name
        kept = left.get((name, f"{node.name}:{operand}"), left.get((name, ""), {}))
        lost += [(axes[axis], _flags(slots, axes[axis].size)) for axis, slots in kept.items()]
    for axis, slots in lost:
        for atom in atoms_of(axis):
            owners = owners_of(axis, atom)
            own = np.asarray([slots[owners == i].any() for i in range(atom.size)])
            keep[atom] = keep.get(atom, own) & own
    return keep if all(np.array_equal(mask(axis, keep), slots) for axis, slots in lost) else None


def _flags(kept: np.ndarray, size: int) -> np.ndarray:
    flags = np.zeros(size, dtype=bool)
    flags[kept] = True
    return flags


def by_torch_pruning(case: str, folder: Path) -> Verdict:
    """torch-pruning with magnitude importance on the module itself."""
    import copy

    import torch
    import torch_pruning as tp
    from torch import nn

    from benchmarks.judges.torch_masks import CannotJudgeError, masked, result_layers
    from sparsecc.torch.masked import difference
    from tests.zoo import ZOO

    torch.set_num_threads(1)
    model = ZOO[case].build()
    example = model.example()
    small: nn.Module = copy.deepcopy(model.module)
    tp.pruner.MagnitudePruner(
        small, example, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=RATIO,
        ignored_layers=result_layers(small, example), global_pruning=False,
    ).step()  # fmt: skip
    counts = [sum(p.numel() for p in m.parameters()) for m in (model.module, small)]
    gone = {"gone": 1 - counts[1] / counts[0]}
    if counts[0] == counts[1]:
        return {"verdict": "nothing", **gone}
    cases = [example, *model.alternatives().values()]
    with torch.no_grad():
        found = [small(*inputs) for inputs in cases]
        try:
            reference = masked(model.module, small)
        except CannotJudgeError as e:
            return {"verdict": "unjudged", "why": str(e), **gone}
        error = max(difference(f, reference(*inputs)) for f, inputs in zip(found, cases, strict=True))
    return {"verdict": "exact" if error <= EQUAL else "wrong", "error": error, **gone}


RUNS: dict[str, Callable[[str, Path], Verdict]] = {
    "sparsecc": by_sparsecc,
    "torch-pruning": by_torch_pruning,
    "onnxsim": by_onnxsim,
}


# Running them ----------------------------------------------------------------------------------------


def alone(tool: str, case: str) -> Verdict:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--alone", tool, case]
    begun = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"verdict": "crash", "why": f"no end within {SECONDS:.0f} s"}
    seconds = {"seconds": time.perf_counter() - begun}
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == 0 and last.startswith("{"):
        return {**json.loads(last), **seconds}
    lines = done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"]
    return {"verdict": "crash", "why": lines[-1][:200], **seconds}


def row(tool: str, case: str) -> Verdict:
    """Verdict, reason and share of the parameters that went."""
    if tool == "torch-pruning" and case in SHARED:
        return {"tool": tool, "case": case, "verdict": "-"}
    return {"tool": tool, "case": case, "version": version(TOOLS[tool]), **alone(tool, case)}


def markdown(rows: list[Verdict]) -> str:
    """One line per case, then how often each verdict was given."""
    found = {(r["tool"], r["case"]): r for r in rows}
    lines = [f"| case | {' | '.join(TOOLS)} |", f"|---|{'---|' * len(TOOLS)}"]
    for case in (*ARCHITECTURES, *SHARED):
        cells = [_cell(found.get((tool, case))) for tool in TOOLS]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    for tool in TOOLS:
        counts = Counter(r["verdict"] for r in rows if r["tool"] == tool and r["case"] in ARCHITECTURES)
        lines.append(f"\n{tool}: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()))
    return "\n".join(lines)


def _cell(found: Verdict | None) -> str:
    if found is None or found["verdict"] == "-":
        return "-"
    gone = found.get("gone", 0)
    return f"{found['verdict']}, -{gone:.0%}" if gone else found["verdict"]


def main() -> None:
    """Run what is missing and print the table; fail where ours is not exact."""
    parser_ = argparse.ArgumentParser(description=__doc__)
    parser_.add_argument("cases", nargs="*")
    parser_.add_argument("--tool", choices=TOOLS)
    parser_.add_argument("--json", type=Path, default=OUT)
    parser_.add_argument("--again", action="store_true")
    parser_.add_argument("--alone", nargs=2, metavar=("TOOL", "CASE"), help="one run, in this process")
    given = parser_.parse_args()
    warnings.simplefilter("ignore")
    if given.alone:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(RUNS[given.alone[0]](given.alone[1], Path(scratch))))
        return
    rows: list[Verdict] = json.loads(given.json.read_text()) if given.json.exists() else []
    given.json.parent.mkdir(parents=True, exist_ok=True)
    for case in given.cases or (*ARCHITECTURES, *SHARED):
        for tool in [given.tool] if given.tool else TOOLS:
            known = [r for r in rows if (r["tool"], r["case"]) == (tool, case)]
            if known and not given.again:
                continue
            rows = [*(r for r in rows if r not in known), row(tool, case)]
            given.json.write_text(json.dumps(rows, indent=1))
            print(f"{case:20s} {tool:14s} {_cell(rows[-1]):16s} {rows[-1].get('why', '')[:120]}", flush=True)
    print(markdown(rows))
    sys.exit(any(r["verdict"] not in ("exact", "nothing") for r in rows if r["tool"] == "sparsecc"))


if __name__ == "__main__":
    main()
