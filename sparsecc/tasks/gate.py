"""Gate a model: is it slower than its baseline?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.data.files import feeds_from
from sparsecc.errors import InputError
from sparsecc.gate.config import CHECKS
from sparsecc.gate.gate import gate, model_file
from sparsecc.loading.models import load_ir
from sparsecc.system.progress import Emit


def gate_model(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """`request["current"]` against `request["baseline"]`; the result as data."""
    current, baseline = Path(request["current"]), Path(request["baseline"])
    emit({"stage": f"gate {request['name'] or current.name}", "share": 0.0, "note": "A/A, then A/B"})
    result = gate(
        current,
        baseline,
        max_regression=request["max_regression"],
        threads=request["threads"],
        name=request["name"],
        checks=CHECKS if request["checks"] is None else tuple(request["checks"]),
        feeds=_first_sample(request["data"], baseline) if request["data"] else None,
        device=request["device"],
    )
    return result.to_json()


def _first_sample(spec: str, baseline: Path) -> Mapping[str, np.ndarray]:
    for sample in feeds_from(spec, load_ir(model_file(baseline)), model_file(baseline).parent):
        return sample
    raise InputError(f"{spec}: holds no sample: give --data with one at least")
