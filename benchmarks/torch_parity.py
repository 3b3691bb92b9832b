"""sparsecc.torch beside torch-pruning on the same models: who gives a right smaller module without arguments.

    python benchmarks/torch_parity.py [--ratio 0.5] [--out FILE] [--seconds 280] [NAME …]
    python benchmarks/torch_parity.py --markdown      # the stored rows as they stand in docs/torch.md

Both get the module and example inputs, nothing about the model (torch-pruning is told to leave the last linear
layer or convolution, as its examples do), and remove the same share of every group of channels, the smallest
by magnitude. A third run gives torch-pruning what its examples write by hand for attention (torch_parity_told.py).

`verdict` is not that forward runs. What stayed of every parameter is read off its values; where the sets agree
over coupled tensors, the dense module with the removed slots without effect (left out of sums, means and norms)
says what the smaller one must give: `exact` to 1e-4,
`reshaped` where its outputs lost slots, `wrong` else. `uneven`: what went does not agree over
coupled tensors, so no dense module means the same. `crash`: `stage` says whether it was while the dependencies
were built, while slots were removed, or in the pruned module's own forward; none of these runs code of ours for
torch-pruning. `nothing`: no parameter went.

`removed` is the share of parameters that went, `touched` the share of parameters in tensors that lost slots:
the same quantities for both. Each run is a process of its own; `seconds` is the processor time of pruning,
`memory_mb` what its peak adds to the process. Stored rows are skipped.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.torch_parity_told import TOLD, Recipe
from sparsecc.axes.algebra import Atom, atoms_of
from sparsecc.axes.owners import owners_of
from sparsecc.errors import SparseccError
from sparsecc.torch.masked import difference, masked_outputs
from sparsecc.torch.pruning import Study, planned, realise, study
from sparsecc.torch.weight_scores import candidates
from tests.zoo import FAST, ZOO, Model

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4
LIMIT = 60
"""Seconds of processor time after which one run is ended."""
MORE = ("resnet_bottleneck", "inception", "squeezenet", "se_resnet", "mobilenet_v2", "convnext", "vit")
FAILURES = (
    ArithmeticError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    SparseccError,
)
Kept = dict[tuple[str, int], np.ndarray]
"""(parameter, axis) -> mask of the slots that stay, for axes that lost some."""


def ours(model: Model, ratio: float) -> nn.Module:
    found = study(model.module, model.example(), align=1)
    offered = candidates(found.analysis, found.free, found.options)
    masks = {c.atom: c.best(max(1, c.size - math.floor(ratio * c.size))) for c in offered}
    return realise(found, masks, planned(found, masks))


def peer(model: Model, ratio: float, **told: Any) -> nn.Module:
    """torch-pruning 1.6 with magnitude importance."""
    import torch_pruning as tp

    small = model.module
    last = [m for m in small.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)][-1:]
    pruner = at(
        "building", tp.pruner.BasePruner, small, model.example(),
        importance=tp.importance.GroupMagnitudeImportance(p=2), pruning_ratio=ratio, ignored_layers=last,
        **told,
    )  # fmt: skip
    at("removing", pruner.step)
    return small


def told(recipe: Recipe, model: Model, ratio: float) -> nn.Module:
    """The same with the arguments and the mended attributes that its examples have for such a model."""
    arguments, mend = recipe(model.module, ratio)
    small = peer(model, ratio, **arguments)
    mend()
    return small


class StageError(Exception):
    """What failed, and where."""


def at(stage: str, call: Any, *args: Any, **kwargs: Any) -> Any:
    """The call's result; StageError names the stage where it fails."""
    try:
        return call(*args, **kwargs)
    except FAILURES as e:
        lines = str(e).strip().splitlines() or [""]
        raise StageError(stage, f"{type(e).__name__}: {lines[0][:120]}") from e


SIDES = ("ours", "peer", "told")
HEADS = ("sparsecc", "torch-pruning", "torch-pruning, told")


def sides_of(name: str) -> dict[str, Callable[[Model, float], nn.Module]]:
    """What is run on an entry."""
    found = {"ours": ours, "peer": peer}
    return {**found, "told": partial(told, TOLD[name])} if name in TOLD else found


def row(name: str, side: str, ratio: float) -> dict[str, Any]:
    """Prune one entry one way and judge the result."""
    model, dense = ZOO[name].build(), ZOO[name].build()
    at_rest, begun = memory(), time.process_time()
    try:
        small = at("pruning", sides_of(name)[side], model, ratio)
        seconds, peak = time.process_time() - begun, memory() - at_rest
        with torch.no_grad():
            outputs = at("forward", small.eval(), *dense.example())
    except StageError as e:
        return {
            "verdict": "crash",
            "stage": e.args[0],
            "why": e.args[1],
            "seconds": time.process_time() - begun,
        }
    kept = {} if side != "ours" and not elements(small) else slots_left(dense.module, small)
    before = elements(dense.module)
    touched = {n for n, _ in kept}
    own = {n: p.numel() for n, p in dense.module.named_parameters()}
    facts = {
        "seconds": seconds, "memory_mb": peak, "removed": 1 - elements(small) / before,
        "touched": sum(own[n] for n in touched if n in own) / before,
    }  # fmt: skip
    known = {n for n, _ in small.named_parameters(remove_duplicate=False)}
    return {**judged(dense, kept, known, outputs), **facts}


def judged(dense: Model, kept: Kept, known: set[str], outputs: Any) -> dict[str, Any]:
    """The verdict on outputs, from the dense module and what stayed of its parameters."""
    if not kept:
        return {"verdict": "nothing"}
    found = study(copy.deepcopy(dense.module), dense.example(), align=1)
    keep = slots_of_atoms(found, kept, known)
    if keep is None:
        return {"verdict": "uneven"}
    wanted = masked_outputs(found.program, found.analysis, keep, found.args, found.kwargs)
    error = difference(outputs, wanted)
    if math.isinf(error):
        return {"verdict": "reshaped"}
    return {"verdict": "exact" if error <= TOLERANCE else "wrong", "error": error}


def slots_left(dense: nn.Module, small: nn.Module) -> Kept:
    """What stayed of every parameter, found by the values, which are random and not changed by pruning."""
    found: Kept = {}
    left = dict(small.named_parameters(remove_duplicate=False))
    for name, parameter in dense.named_parameters(remove_duplicate=False):
        now = left.get(name)
        if now is None or now.shape == parameter.shape or now.dim() != parameter.dim():
            continue
        places = positions(parameter.detach(), now.detach())
        for axis in range(now.dim()):
            if now.shape[axis] != parameter.shape[axis]:
                mask = np.zeros(parameter.shape[axis], dtype=bool)
                mask[np.unique(places[axis])] = True
                found[name, axis] = mask
    return found


def positions(dense: Tensor, left: Tensor) -> tuple[np.ndarray, ...]:
    """Where the elements of a sliced tensor stood; elements whose value is not unique are passed over."""
    values, first, counts = np.unique(dense.numpy().ravel(), return_index=True, return_counts=True)
    wanted = left.numpy().ravel()
    place = np.searchsorted(values, wanted).clip(max=len(values) - 1)
    sure = (values[place] == wanted) & (counts[place] == 1)
    return np.unravel_index(first[place[sure]], dense.shape)


def slots_of_atoms(found: Study, kept: Kept, known: set[str]) -> dict[Atom, np.ndarray] | None:
    """Keep-masks of atoms that say the same as those of tensors; None where coupled tensors disagree."""
    keep: dict[Atom, np.ndarray] = {}
    parameters = dict(found.module.named_parameters(remove_duplicate=False))
    for value, axes in found.analysis.weights():
        name = next(
            (n for n in found.program.names[value.name or ""] if n in parameters and n in known), None
        )
        if name is None:
            continue
        for position, axis in enumerate(axes):
            mask = kept.get((name, position), np.full(parameters[name].shape[position], True))
            for atom in atoms_of(axis):
                if isinstance(atom.size, int) and atom.size > 1:
                    owner = owners_of(axis, atom)
                    own = np.zeros(atom.size, dtype=bool)
                    np.logical_or.at(own, owner[owner >= 0], mask[owner >= 0])
                    if atom in keep and not np.array_equal(keep[atom], own):
                        return None
                    keep[atom] = own
    return {atom: slots for atom, slots in keep.items() if not slots.all()}


def elements(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def memory() -> float:
    """The most that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def apart(name: str, side: str, ratio: float) -> dict[str, Any]:
    """`row` in a process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(there, name, side, ratio))
    child.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
        child.join()
    except EOFError:
        child.join()
        late = child.exitcode == -signal.SIGXCPU
        why = f"no result within {LIMIT} s of processor time" if late else "the process died"
        found = {"verdict": "crash", "stage": "process", "why": why, "seconds": 0.0}
    return found


def _child(pipe: Connection, name: str, side: str, ratio: float) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 1))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pipe.send(row(name, side, ratio))


def cell(found: dict[str, Any] | None) -> str:
    """One side of a row of the table."""
    if found is None:
        return "-"
    if found["verdict"] == "crash":
        return f"crash ({found['stage']}) {found['why'][:50]}"
    shares = f"-{found['removed']:4.0%} of parameters, {found['touched']:4.0%} touched"
    return f"{found['verdict']:7s} {shares} {found['seconds']:5.1f} s {found['memory_mb']:4.0f} MB"


def markdown(rows: dict[str, Any]) -> str:
    """The table of docs/torch.md, and how often each side had which verdict."""
    lines = [f"| model | {' | '.join(HEADS)} |", "|---|---|---|---|"]
    for name, sides in rows.items():
        shown = (
            " ".join(cell(sides.get(side)).replace("|", "/").split()).replace("- ", "-") for side in SIDES
        )
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", *verdicts(rows)])


def verdicts(rows: dict[str, Any]) -> list[str]:
    """One line per side."""
    counts = {side: Counter(r[side]["verdict"] for r in rows.values() if side in r) for side in SIDES}
    return [f"{side}: {', '.join(f'{n} {v}' for v, n in counts[side].most_common())}." for side in SIDES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=280)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "benchmarks" / "torch_parity.json")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    if given.markdown:
        print(markdown(rows))
        return
    import torch_pruning  # noqa: F401  (loaded before the processes part, so that no side pays for it)

    started = time.monotonic()
    for name in given.names or (*FAST, *MORE):
        if name not in rows or name in given.names:
            if time.monotonic() - started > given.seconds:
                break
            rows[name] = {side: apart(name, side, given.ratio) for side in sides_of(name)}
            given.out.write_text(json.dumps(rows, indent=1))
        print(name, *(f"    {side:6s} {cell(row)}" for side, row in rows[name].items()), sep="\n", flush=True)
    print("\n".join(verdicts(rows)))


if __name__ == "__main__":
    main()
