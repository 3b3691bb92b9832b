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
    def chain(self) -> Path:
        """All files of a package as one."""
        return self.folder / "chain" / "model.onnx"

    @property
    def chain_of_result(self) -> Path:
        """All files of a bundle as one, where it is held against those of a package."""
        return self.folder / "chain_of_result" / "model.onnx"

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
    def words(self) -> Path:
        """The folder of the model with fewer words, and of what lies beside it."""
        return self.folder / "words"

    @property
    def timed(self) -> Path:
        """The folder of the models that quantization times beside each other."""
        return self.folder / "timed"

    @property
    def spans(self) -> Path:
        """Values at the ends of spans of layers."""
        return self.folder / "spans"

    @property
    def turns(self) -> Path:
        """Values at the ends of blocks, for their angles."""
        return self.folder / "turns_walk"

    @property
    def matched(self) -> Path:
        """Values of the dense model while its batch norms are matched to random inputs."""
        return self.folder / "matched_walk"

    @property
    def statistics(self) -> Path:
        """What samples say of every layer's inputs, one file a layer."""
        return self.folder / "calibration"

    @property
    def channels(self) -> Path:
        """Values that channels are measured by."""
        return self.folder / "channels_walk"

    @property
    def bench(self) -> Path:
        """Values of the dense model that cuts are tried from."""
        return self.folder / "bench"

    @property
    def dense_experts(self) -> Path:
        """Values of the dense model's experts."""
        return self.folder / "dense_experts"

    @property
    def pruned_experts(self) -> Path:
        """Values of the pruned model's experts."""
        return self.folder / "pruned_experts"

    @property
    def dense_walk(self) -> Path:
        """Values of the dense model that repair compares with."""
        return self.folder / "dense_walk"

    @property
    def pruned_walk(self) -> Path:
        """Values of the pruned model as it is repaired."""
        return self.folder / "pruned_walk"

    @property
    def student(self) -> Path:
        """The pruned model as distillation reads and writes it."""
        return self.folder / "student"

    @property
    def dense_engine(self) -> Path:
        """The dense model as it is built to be timed beside another engine."""
        return self.folder / "dense-plan"

    @property
    def rehearsal(self) -> Path:
        """The folder of a repair that is only tried."""
        return self.folder / "rehearsal"

    @property
    def chain_part(self) -> Path:
        """The folder in which one file of a package is built."""
        return self.folder / "part"

    def trial(self, number: int) -> Path:
        """The folder of an artefact that a search to a goal measures."""
        return self.folder / f"trial{number}"
