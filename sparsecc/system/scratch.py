"""The folder that a compile works in: which file is where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scratch:
    """A folder that goes away with the compile, and the name of everything in it.

    Nothing needs to exist: whoever writes to a path makes its folder.
    """

    folder: Path

    @property
    def dense(self) -> Path:
        """The model as it was given, normalised, where something needs a file; never where it is run by parts."""
        return self.folder / "dense" / "model.onnx"

    @property
    def gated(self) -> Path:
        """The dense model in which every branch has a switch."""
        return self.folder / "gated" / "model.onnx"

    @property
    def fewer(self) -> Path:
        """The model of fewer tokens: what repair compares with where tokens went."""
        return self.folder / "fewer" / "model.onnx"

    @property
    def pruned(self) -> Path:
        """The pruned graph as it was proved, before repair and passes, where it is timed too."""
        return self.folder / "pruned" / "model.onnx"

    @property
    def quantized(self) -> Path:
        """The dense model with its types changed alone."""
        return self.folder / "quantized" / "model.onnx"

    @property
    def timed(self) -> Path:
        """The folder of the models that quantization times beside each other."""
        return self.folder / "timed"

    def trial(self, number: int) -> Path:
        """The folder of an artefact that a search to a goal measures."""
        return self.folder / f"trial{number}"
