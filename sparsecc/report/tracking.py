"""Where results are logged besides: MLflow, or a hook of the user's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError, MissingPackageError
from sparsecc.report.result import CompileResult
from sparsecc.system.user_code import file_and_function, function_in

MLFLOW = "mlflow"
LONGEST = 500
"""Characters of a parameter that MLflow takes."""


def logger_of(where: str | Callable[[CompileResult], object]) -> Callable[[CompileResult], object]:
    """What logs a result: `mlflow`, a function, or the one that `file.py:function` names. InputError and
    MissingPackageError before any work is done."""
    if callable(where):
        return where
    if where.lower() == MLFLOW:
        try:
            import_module(MLFLOW)
        except ImportError as e:
            raise MissingPackageError("--log-to mlflow needs it: pip install 'sparsecc[tracking]'") from e
        return to_mlflow
    if ":" not in where and not Path(where).exists():
        raise InputError(f"--log-to {where}: write mlflow, or FILE.py:FUNCTION, which gets the result")
    return function_in(*file_and_function(where, "--log-to"), "--log-to")


def to_mlflow(result: CompileResult) -> None:
    """One run, within the active one where there is one: what was asked as parameters, the figures as metrics, report
    and plan as artefacts. Server and experiment are those of MLflow's own settings."""
    mlflow = import_module(MLFLOW)
    name = result.report["model"]["name"]
    with mlflow.start_run(run_name=f"sparsecc {name}", nested=mlflow.active_run() is not None):
        asked = {key: value for key, value in result.report["asked"].items() if value is not None}
        mlflow.log_params({"model": name, **{key: _short(value) for key, value in asked.items()}})
        mlflow.log_metrics(figures(result))
        if result.bundle is not None:
            for file in ("report.json", "report.html", "plan.json", "recipe.yaml"):
                mlflow.log_artifact(str(result.bundle / file))


def figures(result: CompileResult) -> dict[str, float]:
    """The numbers of a result by name; what was not measured is left out."""
    report, found = result.report, {"removed": result.removed, "proved": float(result.is_proved)}
    for side in ("before", "after"):
        for key, value in (report.get(side) or {}).items():
            if isinstance(value, int | float):
                found[f"{side}_{key}"] = float(value)
    if result.speedup is not None:
        found["speedup"] = result.speedup
    if result.accuracy is not None:
        found["accuracy_before"], found["accuracy_after"] = result.accuracy
    if (quality := (report.get("fidelity") or {}).get("quality_db")) is not None:
        found["quality_db"] = float(quality)
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:LONGEST]
