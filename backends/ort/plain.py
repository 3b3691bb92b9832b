"""Plain ONNX: the compiled graph as it stands, for runtimes that optimize it themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from sparsecc.backends.base import Artefact
from sparsecc.backends.ort.cpu import OnnxRuntimeCpu
from sparsecc.runtime.runner import Progress


class PlainOnnx(OnnxRuntimeCpu):
    """The backend `onnx`: nothing is fused; runs, census and profile are those of ONNX Runtime on the CPU."""

    name: ClassVar[str] = "onnx"

    def build(
        self, model: ir.Model, folder: Path, options: Mapping[str, Any], progress: Progress
    ) -> Artefact:
        """Write `model.onnx` without optimizing it. InputError when ONNX Runtime refuses the model."""
        return super().build(model, folder, {**options, "level": "none"}, progress)
