"""What torch-pruning and onnxsim make of a model of `benchmarks/accuracy.py` at the asked work, without training.

Both are asked for a share of channels: it is searched until the multiply-accumulates are those asked for, or as
close as the tool comes. onnxsim gets the calibration samples of the pair, torch-pruning these and their labels.
torch-pruning needs a torch module, which the CIFAR-10 ResNets have; as it fails on their padded shortcuts, it is
told to leave the channels of the residual sums alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsecc.cost.model import macs_model
from sparsecc.graph.analysis import analyse
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.runtime.session import open_session

if TYPE_CHECKING:
    from benchmarks.accuracy_pairs import Pair

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
Cut = Callable[[float], tuple[float, Run]]
"""Share of the channels that go -> share of the multiply-accumulates that went, and what runs the result."""
Start = Callable[[str, "Pair", Path], Cut]
"""(name of the pair, the pair, a folder to work in) -> how it is cut."""
TRIALS = 9
CLOSE = 0.003
"""A share of the multiply-accumulates this near is the one that was asked for."""
MOST = 0.95


def at_equal_work(cut: Cut, ratio: float) -> tuple[float, Run]:
    """The result of `cut` whose removed share of the multiply-accumulates is closest to `ratio`."""
    low, high = 0.0, MOST
    best = cut(ratio)
    tried = ratio
    for _ in range(TRIALS):
        if abs(best[0] - ratio) <= CLOSE:
            break
        tried = (low + high) / 2
        found = cut(tried)
        low, high = (tried, high) if found[0] < ratio else (low, tried)
        best = min(best, found, key=lambda one: abs(one[0] - ratio))
    return best


def onnxsim(pair: Pair, folder: Path, method: str) -> Cut:
    """onnxsim's structured pruning: "l2" by magnitude, "wanda" by activations too, "wanda global" in one pool."""
    import onnx
    import onnxsim as tool

    dense, _ = tool.simplify(onnx.load(pair.model))
    before = _macs(pair.model)
    feeds = list(pair.samples.batches)

    def cut(share: float) -> tuple[float, Run]:
        if method == "l2":
            small = tool.apply_structured_pruning(dense, share)
        else:
            pooled = method == "wanda global"
            small = tool.apply_structured_wanda_pruning(
                dense, calibration_data=feeds, sparsity=share, global_sparsity=pooled
            )
        path = folder / "onnxsim.onnx"
        onnx.save(small, path)
        return 1 - _macs(path) / before, open_session(path, threads=1).run

    return cut


def _macs(path: Path) -> float:
    return macs_model(analyse(normalise(load_ir(path)))).total({})


def torch_pruning(name: str, method: str) -> Cut:
    """torch-pruning on a CIFAR-10 ResNet: an importance of its own and "local" or "global" ranking."""
    import torch
    import torch_pruning as tool

    from benchmarks.accuracy_pairs import CALIBRATION, cifar_batch
    from benchmarks.cifar_data import module

    torch.set_num_threads(1)
    kind, _, scope = method.partition(" ")
    images, labels = (torch.from_numpy(array[:CALIBRATION]) for array in cifar_batch(0))
    example = images[:1]
    dense = module(name)
    importance = _importance(tool, kind, dense, images, labels)
    gradients = {key: value.grad for key, value in dense.named_parameters() if value.grad is not None}
    before, _ = tool.utils.count_ops_and_params(dense, example)

    def cut(share: float) -> tuple[float, Run]:
        small, scores = copy.deepcopy((dense, importance))
        for key, value in small.named_parameters():
            value.grad = gradients[key].clone() if key in gradients else None
        summed = [
            layer for key, layer in small.named_modules() if key in ("conv1", "linear") or "conv2" in key
        ]
        tool.pruner.BasePruner(
            small, example, importance=scores, pruning_ratio=share, ignored_layers=summed,
            global_pruning=scope == "global", max_pruning_ratio=MOST,
        ).step()  # fmt: skip
        small.zero_grad()
        after, _ = tool.utils.count_ops_and_params(small, example)
        return 1 - after / before, lambda feeds: {"logits": _answer(small, feeds["image"])}

    return cut


def _importance(tool: Any, kind: str, dense: Any, images: Any, labels: Any) -> Any:
    """An importance with the gradients that it wants: summed ones stay on the module, squared ones in itself."""
    from torch.nn import functional as F

    if kind == "magnitude":
        return tool.importance.GroupMagnitudeImportance(p=2)
    if kind == "lamp":
        return tool.importance.LAMPImportance(p=2)
    if kind == "taylor":
        F.cross_entropy(dense(images), labels).backward()
        return tool.importance.GroupTaylorImportance()
    found = tool.importance.GroupHessianImportance()
    found.zero_grad()
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        dense.zero_grad()
        F.cross_entropy(dense(image), label).backward()
        found.accumulate_grad(dense)
    return found


def _answer(module: Any, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        found: np.ndarray = module(torch.from_numpy(images)).numpy()
    return found


def _by_onnxsim(method: str) -> Start:
    return lambda name, pair, folder: onnxsim(pair, folder, method)


def _by_torch_pruning(method: str) -> Start:
    return lambda name, pair, folder: torch_pruning(name, method)


IMPORTANCES = ("magnitude", "lamp", "taylor", "hessian")
PEERS: Mapping[str, Start] = {
    **{f"onnxsim {method}": _by_onnxsim(method) for method in ("l2", "wanda", "wanda global")},
    **{
        f"torch-pruning {kind} {scope}": _by_torch_pruning(f"{kind} {scope}")
        for kind in IMPORTANCES
        for scope in ("local", "global")
    },
}
"""Tool and its method -> what it cuts by."""
WITH_MODULES = ("resnet20", "resnet56")
"""The pairs that torch-pruning can be asked about."""


def takes(peer: str, name: str) -> bool:
    """Whether a peer can be asked about this pair at all."""
    return not peer.startswith("torch-pruning") or name in WITH_MODULES
