"""Inputs as the examining commands take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.compilation import Compilation
from sparsecc.data.random_inputs import feeds_from
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.system.scratch import Scratch
from sparsecc.system.temp_folders import temporary_folder


def feeds_of(path: Path, request: dict[str, Any]) -> dict[str, np.ndarray]:
    """The first sample of the user's data, or random inputs at sizes the model runs at."""
    model = normalise(load_ir(path))
    if request.get("data"):
        return dict(next(iter(feeds_from(request["data"], model, path.parent))))
    options = CompileOptions.of({"inputs": request.get("inputs") or {}})
    with temporary_folder("scratch") as scratch:
        compilation = Compilation(path, options, Scratch(Path(scratch)), samples_flag="--data")
        compilation.begin(model)
        return compilation.feeds[0]
