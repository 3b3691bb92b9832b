"""Compilations for tests of what stands below a compile: passes, criteria, allocators, repair."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsecc.compilation import Compilation
from sparsecc.data.samples import CalibrationSet, Feeds, Samples
from sparsecc.options import CompileOptions
from sparsecc.system.scratch import Scratch


class AnyOptions(CompileOptions):
    """Options that a user would be refused: less memory than a compile takes."""

    def __post_init__(self) -> None:
        pass


def compilation(
    target: str = "onnxruntime",
    feeds: Sequence[Feeds] | None = None,
    folder: Path | None = None,
    samples: Samples | None = None,
    held_out: Samples | None = None,
    **options: Any,
) -> Compilation:
    """A compile to this target, whose passes calibrate on `feeds`, all else on `samples`; `held_out` judge."""
    asked = AnyOptions(target=target, **options)
    made = Compilation(Path("model.onnx"), asked, Scratch(folder or Path(tempfile.gettempdir())))
    made.pass_feeds = feeds or ()
    made.calibration = None if samples is None else CalibrationSet.of(samples, held_out)
    return made
