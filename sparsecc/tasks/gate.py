"""Gate a model: is it slower than its baseline?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.data.files import feeds_from
from sparsecc.data.samples import LIMIT
from sparsecc.errors import InputError
from sparsecc.gate.checks import model_file
from sparsecc.gate.config import CHECKS
from sparsecc.gate.gate import gate
from sparsecc.loading.models import load_ir
from sparsecc.system.progress import Emit


def gate_model(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """`request["current"]` against `request["baseline"]`; the result as data."""
    current, baseline = Path(request["current"]), Path(request["baseline"])
    emit(
        {
            "stage": f"gate {request['name'] or current.name}",
            "share": 0.0,
            "note": "A/B, and A/A near the limit",
        }
    )
    result = gate(
        current,
        baseline,
        max_regression=request["max_regression"],
        threads=request["threads"],
        name=request["name"],
        checks=CHECKS if request["checks"] is None else tuple(request["checks"]),
        samples=_samples(request["data"], baseline) if request["data"] else (),
        min_agreement=request["min_agreement"],
        device=request["device"],
    )
    return result.to_json()


def _samples(spec: str, baseline: Path) -> Sequence[Mapping[str, np.ndarray]]:
    """Batches of the first samples: the first is timed, all are compared."""
    file = model_file(baseline)
    model = load_ir(file)
    found = list(islice(feeds_from(spec, model, file.parent), LIMIT))
    if not found:
        raise InputError(f"{spec}: holds no sample: give --data with one at least")
    return found
