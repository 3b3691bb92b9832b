"""The NVIDIA GPUs of this machine, asked of the CUDA driver itself."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
"""The library of the CUDA driver."""

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, its compute capability such as (8, 6), and its memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int


class NoGpuError(Exception):
    """No GPU answers; the message is the reason in a few words. It never reaches a user as it is."""


def gpus() -> list[Gpu]:
    """Every GPU that the CUDA driver shows, in its order. NoGpuError with the reason when there is none."""
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError as e:
        raise NoGpuError("the CUDA driver is not installed") from e
    _checked(cuda.cuInit(0), "the CUDA driver does not start")
    count = ctypes.c_int()
    _checked(cuda.cuDeviceGetCount(ctypes.byref(count)), "the CUDA driver does not count its devices")
    if count.value == 0:
        raise NoGpuError("the CUDA driver shows no device")
    return [_described(cuda, index) for index in range(count.value)]


def _described(cuda: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int()
    _checked(cuda.cuDeviceGet(ctypes.byref(device), index), f"device {index} does not answer")
    name = ctypes.create_string_buffer(128)
    _checked(cuda.cuDeviceGetName(name, len(name), device), f"device {index} has no name")
    memory = ctypes.c_size_t()
    _checked(cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device), f"device {index} tells no memory size")
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        _checked(
            cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device), f"device {index} tells nothing"
        )
        numbers.append(value.value)
    return Gpu(name.value.decode("utf-8", "replace"), (numbers[0], numbers[1]), memory.value)


def _checked(status: int, reason: str) -> None:
    if status != 0:
        raise NoGpuError(f"{reason} (CUDA error {status})")
