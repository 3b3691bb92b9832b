"""What a changed model loses on the calibration data, and how large it is."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.loss.measure import ENOUGH, Outputs, Reference
from sparsecc.passes.weights.fidelity import spread
from sparsecc.runtime.runner import Feeds, Runner
from sparsecc.runtime.session import open_session
from sparsecc.system.memory import BESIDE, weight_bytes

FEEDS = 4
"""Sets of calibration inputs that errors are measured on; ENOUGH where channels have too few values for a mean."""


class Meter:
    """Measures models against the outputs of `model`, as it is when this is made."""

    def __init__(self, model: ir.Model, compilation: Compilation) -> None:
        self.compilation = compilation
        runner = open_session(model)
        for number in (FEEDS, ENOUGH):
            self.feeds: list[Feeds] = spread(compilation.pass_feeds, number)
            self.reference = Reference(self._outputs(runner), compilation.judged_parts)
            if not self.reference.needs_more:
                break

    def error(self, changed: ir.Model) -> float:
        """The loss of the outputs (`sparsecc/loss/measure.py`), the mean over their parts; 1, all of it, where an
        output has another size, as lists of what was found may, or is no number."""
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
        loss = self.reference.loss(self._outputs(runner))
        return loss if np.isfinite(loss) else 1.0

    def _outputs(self, runner: Runner) -> list[Outputs]:
        return [runner.run(feeds) for feeds in self.feeds]
