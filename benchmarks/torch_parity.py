"""sparsecc.torch beside torch-pruning on the same models: who gives a right smaller module without arguments.

    python benchmarks/torch_parity.py [--ratio 0.3] [--out results.json] [name ...]

Both get the module, example inputs and a ratio: ours of the multiply-accumulates, the peer's of the channels
of every layer but the last; `smaller` is the share of parameters that went. The verdict is not that forward
runs. A result is `exact` when the masked dense module (removed slices of the peer's consumers at zero) gives
the same outputs to 1e-4, `wrong` when it does not, `crash` when pruning or forward raised, `nothing` when no
parameter went. Norms that mix channels cannot be judged by zeros: there the peer's result counts as `runs`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sparsecc.errors import SparseccError
from sparsecc.torch.masked import difference
from sparsecc.torch.pruning import plan_of, prune
from tests.zoo import FAST, ZOO, Model

TOLERANCE = 1e-4
PEER_FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)
MIXING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def elements(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def ours(model: Model, ratio: float) -> dict[str, Any]:
    before, started = elements(model.module), time.perf_counter()
    try:
        small = prune(model.module, model.example(), ratio=ratio, align=1)
    except SparseccError as e:
        return {"verdict": "crash", "why": str(e)[:120], "seconds": time.perf_counter() - started}
    plan = plan_of(small)
    return {
        "verdict": "exact" if plan.error <= TOLERANCE else "wrong", "form": plan.form, "error": plan.error,
        "seconds": time.perf_counter() - started, "smaller": 1 - elements(small) / before,
    }  # fmt: skip


def peer(model: Model, ratio: float) -> dict[str, Any]:
    """torch-pruning 1.6 with magnitude importance; the last linear layer is left out, as its examples do."""
    import torch_pruning as tp

    small, example, started = copy.deepcopy(model.module), model.example(), time.perf_counter()
    zeroed = copy.deepcopy(model.module)
    before = elements(small)
    try:
        classes = [m for m in small.modules() if isinstance(m, nn.Linear)][-1:]
        pruner = tp.pruner.MagnitudePruner(
            small, example, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=ratio,
            ignored_layers=classes, global_pruning=False,
        )  # fmt: skip
        for group in pruner.step(interactive=True):
            _zero(group, small, zeroed)
            group.prune()
        with torch.no_grad():
            found, wanted = small(*example), zeroed(*example)
    except PEER_FAILURES as e:
        why = f"{type(e).__name__}: {str(e)[:100]}"
        return {"verdict": "crash", "why": why, "seconds": time.perf_counter() - started}
    seconds, gone = time.perf_counter() - started, 1 - elements(small) / before
    error = difference(found, wanted)
    mixes = any(isinstance(m, MIXING) for m in small.modules())
    verdict = "exact" if error <= TOLERANCE else "runs" if mixes and error < float("inf") else "wrong"
    return {
        "verdict": "nothing" if gone == 0 else verdict,
        "error": error,
        "seconds": seconds,
        "smaller": gone,
    }


def _zero(group: Any, small: nn.Module, zeroed: nn.Module) -> None:
    """Zero in the dense copy what this group removes of outputs; earlier groups moved the numbers."""
    names = {m: n for n, m in small.named_modules()}
    for dependency, indices in group:
        layer = dependency.target.module
        name = names.get(layer)
        if name is None or not hasattr(layer, "weight") or "out_channels" not in dependency.handler.__name__:
            continue
        other = zeroed.get_submodule(name)
        left = getattr(other, "_left", None)
        left = list(range(len(other.weight))) if left is None else left
        gone = [left[i] for i in indices]
        other._left = [i for i in left if i not in set(gone)]
        axis = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
        with torch.no_grad():
            for tensor, place in ((other.weight, axis), (getattr(other, "bias", None), 0)):
                if tensor is not None:
                    tensor.index_fill_(place, torch.tensor(gone), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("names", nargs="*", default=[])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    print(f"{'model':<22} {'sparsecc':<28} torch-pruning")
    for name in given.names or FAST:
        row = {"ours": ours(ZOO[name].build(), given.ratio), "peer": peer(ZOO[name].build(), given.ratio)}
        rows[name] = row
        cells = [f"{r['verdict']} {r.get('smaller', 0):.0%} {r['seconds']:.1f} s" for r in row.values()]
        print(f"{name:<22} {cells[0]:<28} {cells[1]} {row['peer'].get('why', '')}", flush=True)
        if given.out:
            given.out.write_text(json.dumps(rows, indent=1))
    for side in ("ours", "peer"):
        print(side, dict(Counter(r[side]["verdict"] for r in rows.values())))


if __name__ == "__main__":
    main()
