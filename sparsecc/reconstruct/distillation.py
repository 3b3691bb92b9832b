"""`--recover distill`: the dense model teaches the pruned one on unlabelled samples. Needs torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.data.samples import Samples
from sparsecc.errors import InputError
from sparsecc.reconstruct.layerwise import Kept

DISTILL = "sparsecc.torch.training.distillation:distill"
"""Named, not imported: nothing on the ONNX path loads torch unless this is asked for."""


def distil(
    model: ir.Model,
    dense: Path,
    samples: Samples,
    kept: Kept,
    scratch: Path,
    *,
    budget: str,
    seed: int,
    progress: Callable[[str, float], None],
) -> tuple[dict[str, Any], list[str]]:
    """Train the pruned `model` in place to answer like `dense`. Returns facts and the weights that changed.

    `kept` says which slots of the dense model's values are left. InputError without real samples;
    UnavailableError without torch.
    """
    if not samples.real:
        raise InputError("--recover distill learns from samples: give --calib PATH")
    module, _, name = DISTILL.partition(":")
    student, trained = scratch / "model.onnx", scratch / "trained.onnx"
    scratch.mkdir(parents=True, exist_ok=True)
    ir.save(model, student)
    facts: dict[str, Any] = getattr(import_module(module), name)(
        dense,
        student,
        samples.batches,
        budget=budget,
        seed=seed,
        kept=kept,
        progress=lambda share, line: progress(f"distil: {line}", share),
        output=trained,
    )
    return facts, _taken(model, ir.load(trained))


def _taken(model: ir.Model, trained: ir.Model) -> list[str]:
    changed = []
    for name, value in model.graph.initializers.items():
        new = trained.graph.initializers[name].const_value if name in trained.graph.initializers else None
        old = value.const_value
        if new is None or old is None or np.array_equal(new.numpy(), old.numpy()):
            continue
        value.const_value = ir.Tensor(new.numpy(), dtype=old.dtype, name=name)
        changed.append(name)
    return changed
