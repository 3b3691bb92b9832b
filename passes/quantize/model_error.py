"""What a changed model loses on the calibration data, and how large it is."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.runtime.runner import Feeds, Runner
from sparsecc.runtime.session import open_session
from sparsecc.system.memory import BESIDE, weight_bytes

FEEDS = 4
"""Sets of calibration inputs that errors are measured on."""


class Meter:
    """Measures models against the outputs of `model`, as it is when this is made."""

    def __init__(self, model: ir.Model, compilation: Compilation) -> None:
        self.compilation = compilation
        self.feeds: list[Feeds] = list(compilation.pass_feeds[:FEEDS])
        self.reference = self._outputs(open_session(model))

    def error(self, changed: ir.Model) -> float:
        """The energy of the difference over the energy of the float outputs; all of it where an output has another
        size, as lists of what was found may."""
        return self._error(open_session(changed))

    def measure(self, changed: ir.Model) -> tuple[float, int]:
        """`error`, and the bytes of the file that the target gets."""
        by_onnxruntime = self.compilation.target.dialect == "onnxruntime"
        if weight_bytes(changed) > BESIDE:
            return self.error(changed), weight_bytes(changed)
        if not by_onnxruntime:
            return self.error(changed), len(ir.to_proto(changed).SerializeToString())
        with tempfile.TemporaryDirectory(dir=self.compilation.scratch.folder) as folder:
            file = Path(folder) / "model.onnx"
            return self._error(open_session(changed, level="extended", optimized=file)), file.stat().st_size

    def _error(self, runner: Runner) -> float:
        noise = power = 0.0
        for exact, rough in zip(self.reference, self._outputs(runner), strict=True):
            same = exact.shape == rough.shape
            noise += float(np.square(exact - rough if same else exact).sum())
            power += float(np.square(exact).sum())
        return noise / power if power else 0.0

    def _outputs(self, runner: Runner) -> list[np.ndarray]:
        outputs = [array for feeds in self.feeds for array in runner.run(feeds).values()]
        return [array.astype(np.float64) for array in outputs if array.dtype.kind == "f"]
