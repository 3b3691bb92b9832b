"""Accuracy brought back without labels: CIFAR-10 ResNets from their ONNX files, and torch-pruning beside them.

    python benchmarks/recovery.py [--models resnet56,resnet20] [--ratios 0.5] [--budget 15m] [--methods …]
    python benchmarks/recovery.py --markdown [--budget …]      the table of docs/torch.md, from the stored points

A point is a model, a share of the multiply-accumulates to remove, and a way of recovery: `none`, `bias`, `bn`
and `reconstruct` see 512 training images, `distill` learns from 24,000 unlabelled ones within the budget,
starting from `reconstruct`. `peer` is what torch-pruning leaves of the torch module at the same share, `peer
distill` the same after the same budget of the same training (same teacher, images, steps, rule of the rate),
its batch norms in training mode. Accuracy is top-1 on 1,000 test images.

Points are stored as they are done and skipped when they are there; a training that is killed goes on where it
was. Needs the shared materials (SPARSECC_SHARED or ../shared), pillow and torch-pruning.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy_pairs import Pair, cifar, cifar_batch
from benchmarks.cifar_data import FOLDER, module, training_images
from sparsecc.compilation import Compilation
from sparsecc.data.samples import CalibrationSet, Samples
from sparsecc.decide.channels import choose
from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.reconstruct.layerwise import repair
from sparsecc.reconstruct.stage import kept_values
from sparsecc.runtime.session import open_session
from sparsecc.system.scratch import Scratch
from sparsecc.torch.onnx_ops.module import from_onnx
from sparsecc.torch.training.checkpoints import Checkpoints, key_of
from sparsecc.torch.training.distillation import FAR, RATES, Budget, distill, gap
from sparsecc.torch.training.loop import Training
from sparsecc.torch.training.samples import TrainingData

ROOT = Path(__file__).resolve().parents[1]
REPAIRS = ("none", "bias", "bn", "reconstruct")
METHODS = (*REPAIRS, "distill", "peer", "peer distill")
CALIBRATION = 512
BATCH = 64

pair = cache(cifar)
images = cache(training_images)


class Kept:
    """Which slots of the dense model's values are left, stored beside the pruned file."""

    def __init__(self, masks: Mapping[str, np.ndarray]) -> None:
        self.masks = masks

    def __call__(self, name: str, axis: int) -> np.ndarray | None:
        return self.masks.get(f"{name}:{axis}")


def prepare(name: str, ratio: float, folder: Path) -> dict[str, Any]:
    """Prune once, repair in every way, and store the files; facts of the choice."""
    facts = folder / "facts.json"
    if facts.exists():
        return dict(json.loads(facts.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    given, _ = cifar_batch(0)
    batches = tuple({"image": given[i : i + 64]} for i in range(0, CALIBRATION, 64))
    samples, dense = Samples(batches, True), pair(name).model
    begun = time.perf_counter()
    analysis = analyse(normalise(load_ir(dense)))
    options = CompileOptions(ratio=ratio, calib="samples", allocator="distortion")
    compilation = Compilation(dense, options, Scratch(folder), calibration=CalibrationSet.of(samples))
    chosen = choose(compilation, analysis, find_groups(analysis, prune=options.prune), ratio)
    kept = kept_values(analysis, chosen.keep)
    values = [v.name or "" for node in analysis.model.graph for v in node.outputs]
    ranks = {v.name: len(axes) for v, axes in analysis.record.axes.items()}
    masks = {f"{v}:{axis}": kept(v, axis) for v in values for axis in range(ranks.get(v, 0))}
    np.savez(folder / "kept.npz", **{k: m for k, m in masks.items() if m is not None})  # type: ignore[arg-type]
    remove(analysis, chosen.keep)
    found = {"removed": chosen.removed, "choose_s": time.perf_counter() - begun}
    for method in REPAIRS:
        begun = time.perf_counter()
        model = analysis.model.clone()
        if method != "none":
            repair(compilation, normalise(load_ir(dense)), model, kept, samples, method)
        write(model, folder / f"{method}.onnx")
        found[f"{method}_s"] = time.perf_counter() - begun
    facts.write_text(json.dumps(found, indent=1))
    return found


def accuracy_of(path: Path, of: Pair) -> float:
    """Top-1 of an ONNX file."""
    return of.accuracy(open_session(path, threads=1).run)


def repaired(name: str, ratio: float, method: str, budget: str, folder: Path) -> dict[str, Any]:
    facts = prepare(name, ratio, folder)
    accuracy = accuracy_of(folder / f"{method}.onnx", pair(name))
    return {"accuracy": accuracy, "removed": facts["removed"], "seconds": facts[f"{method}_s"]}


def distilled(name: str, ratio: float, method: str, budget: str, folder: Path) -> dict[str, Any]:
    facts = prepare(name, ratio, folder)
    output = folder / f"distill_{budget.replace(':', '_')}.onnx"
    kept = Kept(np.load(folder / "kept.npz"))
    found = distill(
        pair(name).model, folder / "reconstruct.onnx", [{"image": images()}], budget=budget, output=output,
        batch=BATCH, kept=kept, progress=show,
    )  # fmt: skip
    return {"accuracy": accuracy_of(output, pair(name)), "removed": facts["removed"], **found}


class Named(nn.Module):
    """A module with an image input as the training sees it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.inner(feed["image"])}


def peer(name: str, ratio: float, method: str, budget: str, folder: Path) -> dict[str, Any]:
    """torch-pruning's result as it is, or trained like ours."""
    small, removed, ratio_given = peer_pruned(name, ratio)
    facts: dict[str, Any] = {"removed": removed, "pruning_ratio": ratio_given}
    if method == "peer distill":
        facts |= taught(small, name, budget)
    small.eval()

    @torch.no_grad()
    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": small(torch.from_numpy(feed["image"])).numpy()}

    return {"accuracy": pair(name).accuracy(run), **facts}


def peer_pruned(name: str, ratio: float) -> tuple[nn.Module, float, float]:
    """(module, share of multiply-accumulates removed, the ratio of channels that gives it).

    Its shortcuts pad channels, which torch-pruning does not follow: the stem and the second convolution of
    every block are left whole by hand.
    """
    import torch_pruning as tp

    example = torch.zeros(1, 3, 32, 32)
    dense, _ = tp.utils.count_ops_and_params(module(name), example)
    low, high, best = 0.0, 1.0, (module(name), 0.0, 0.0)
    for _ in range(8):
        share = (low + high) / 2
        small = module(name)
        left = [m for n, m in small.named_modules() if n in ("conv1", "linear") or n.endswith(".conv2")]
        tp.pruner.BasePruner(
            small, example, importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=share,
            ignored_layers=left,
        ).step()  # fmt: skip
        macs, _ = tp.utils.count_ops_and_params(small, example)
        if 1 - macs / dense >= ratio:
            high, best = share, (small, 1 - macs / dense, share)
        else:
            low = share
    return best


def taught(small: nn.Module, name: str, budget: str) -> dict[str, Any]:
    """The same training as ours, on the outputs."""
    teacher = from_onnx(pair(name).model).eval()
    (output,) = teacher.output_names
    feeds, device = [{"image": images()}], torch.device("cpu")
    samples = TrainingData.of(feeds, teacher.model, batch=BATCH, seed=0, augment=True, device=device)
    recipe = {"peer": name, "budget": budget, "elements": sum(p.numel() for p in small.parameters())}
    student = Named(small).eval()

    def teach(feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": teacher(feed)[output]}

    rate = RATES[gap(teach, student, ["logits"], samples) > FAR]
    training = Training(
        teach, student, ["logits"], samples, limit=Budget.of(budget), rate=rate,
        checkpoints=Checkpoints(key_of([pair(name).model], [], {**recipe, "rate": rate}), device),
    )  # fmt: skip
    training.run(show)
    return training.facts()


def show(share: float, line: str) -> None:
    print(f"  {share:4.0%} {line}", file=sys.stderr, flush=True)


POINTS: dict[str, Callable[[str, float, str, str, Path], dict[str, Any]]] = {
    **dict.fromkeys(REPAIRS, repaired),
    "distill": distilled,
    "peer": peer,
    "peer distill": peer,
}


def stored_points(path: Path) -> dict[str, Any]:
    """The points that are done, by this run and by others."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def markdown(stored: Mapping[str, Any], names: list[str], ratios: list[float], budget: str) -> str:
    """A row per model and ratio, a column per method; in brackets what was removed where it is not as asked."""
    lines = [f"| | {' | '.join(METHODS)} |", "|---" + "|--:" * len(METHODS) + "|"]
    for name in names:
        for ratio in ratios:
            cells = []
            for method in METHODS:
                key = f"{name} {ratio:g} {method}" + (f" {budget}" if method.endswith("distill") else "")
                row = stored.get(key)
                cells.append("-" if row is None else f"{row['accuracy']:.3f} (−{row['removed']:.1%})")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="resnet56,resnet20")
    parser.add_argument("--ratios", default="0.3,0.5,0.6")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--budget", default="15m", help="of every training: 15m, 90s or steps:3000")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "benchmarks" / "recovery.json")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    names, ratios = given.models.split(","), [float(ratio) for ratio in given.ratios.split(",")]
    if given.markdown:
        print(markdown(stored_points(given.out), names, ratios, given.budget))
        return
    if not FOLDER.is_dir():
        sys.exit(f"no CIFAR-10 under {FOLDER}: set SPARSECC_SHARED")
    torch.set_num_threads(given.threads)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    stored = stored_points(given.out)
    for name in names:
        for ratio in ratios:
            for method in given.methods.split(","):
                budget = given.budget if method.endswith("distill") else ""
                key = " ".join(filter(None, (name, f"{ratio:g}", method, budget)))
                if key not in stored:
                    folder = given.out.with_suffix("") / f"{name}_{ratio:g}"
                    found = POINTS[method](name, ratio, method, budget, folder)
                    stored = {**stored_points(given.out), key: found}
                    given.out.write_text(json.dumps(stored, indent=1))
                row = stored[key]
                print(f"{key:36s} -{row['removed']:.1%} MACs  accuracy {row['accuracy']:.3f}", flush=True)


if __name__ == "__main__":
    main()
