"""The backend `tensorrt-rtx`: plans built ahead of time, with or without a GPU, for the GPUs chosen."""

from __future__ import annotations

from typing import ClassVar

from sparsecc.backends.base import Availability
from sparsecc.backends.nvidia.api import RTX, Flavour, availability
from sparsecc.backends.nvidia.engine import TensorrtEngine
from sparsecc.backends.nvidia.options import BuildOptions
from sparsecc.errors import InputError, UnavailableError


class TensorrtRtx(TensorrtEngine):
    """NVIDIA TensorRT for RTX. Kernels are finished on the user's GPU when the plan is first loaded there."""

    name: ClassVar[str] = "tensorrt-rtx"
    flavour: ClassVar[Flavour] = RTX

    def availability(self) -> Availability:
        """Whether the builder is installed: it needs no GPU, running does."""
        return availability(self.flavour)

    def _require(self, chosen: BuildOptions) -> None:
        if chosen.device != "local" or chosen.builder == "trtexec":
            raise InputError("TensorRT-RTX plans are built here in Python: leave device and builder out")
        if chosen.emit == "onnx":
            raise InputError("TensorRT-RTX builds without a GPU: emit is for --target tensorrt")
        found = self.availability()
        if not found.ok:
            raise UnavailableError(f"{self.name}: {found.reason}: {found.remedy}")

    def uses_trtexec(self, chosen: BuildOptions) -> bool:
        return False

    def _store_layers(self, folder: object, chosen: BuildOptions) -> tuple[str, ...]:
        """Layers are only known once kernels are finished on a GPU, so none are stored."""
        return ()
