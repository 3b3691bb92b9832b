"""What a quantized model's outputs lost against the float model's, on calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.runtime.numerics import sqnr
from sparsecc.runtime.session import open_session

LOWEST_SQNR = 20.0


def float_outputs(model: ir.Model, compilation: Compilation) -> dict[str, np.ndarray]:
    """Outputs for the first set of calibration inputs; empty without calibration."""
    if not compilation.pass_feeds:
        return {}
    return open_session(model, level="basic").run(compilation.pass_feeds[0])


def fidelity(model: ir.Model, before: Mapping[str, np.ndarray], compilation: Compilation) -> dict[str, Any]:
    """Signal to noise per float output, and a warning under 20 dB; None where ONNX Runtime cannot run it. An output
    whose size follows from values, as a list of what was found, may have another size now: that is said instead."""
    if not before:
        return {}
    try:
        rounds = compilation.target.device == "gpu"
        after = open_session(model, level="basic", rounds=rounds).run(compilation.pass_feeds[0])
    except InputError:
        return {"output_sqnr_db": None}
    found: dict[str, float] = {}
    warnings = []
    for name, exact in before.items():
        rough = after[name]
        if exact.dtype.kind != "f" or exact.size == 0:
            continue
        if exact.shape != rough.shape:
            sizes = " instead of ".join("x".join(map(str, array.shape)) for array in (rough, exact))
            warnings.append(f"output '{name}' is {sizes} on the first sample: what it keeps is not known")
            continue
        ratio = sqnr(exact.astype(np.float64), rough.astype(np.float64))
        found[name] = round(ratio, 2)
        if ratio < LOWEST_SQNR:
            warnings.append(
                f"output '{name}' keeps only {ratio:.1f} dB of signal to noise: "
                "try another method, --max-drop, or exclude the sensitive layers"
            )
    return {"output_sqnr_db": found, "warnings": warnings}
