"""The little of CUDA that running an engine takes: memory, a stream, events, a graph, through the driver.

Neither torch nor a CUDA package is needed beside TensorRT. Functions are those of cuda.h, in their 64-bit
(`_v2`) forms. The device's primary context is used, which is the one that TensorRT uses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsecc.backends.nvidia.device import DRIVER
from sparsecc.errors import SystemFailureError, UnavailableError

_HANDLE = ctypes.c_void_p
_ADDRESS = ctypes.c_uint64
_INT = ctypes.c_int
_UINT = ctypes.c_uint
_SIZE = ctypes.c_size_t
_FLOAT = ctypes.c_float
_POINTER = ctypes.POINTER
_OUT_OF_MEMORY = 2
_CAPTURE_THREAD_LOCAL = 1

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_UINT,),
    "cuDeviceGet": (_POINTER(_INT), _INT),
    "cuDevicePrimaryCtxRetain": (_POINTER(_HANDLE), _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuMemAlloc_v2": (_POINTER(_ADDRESS), _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, ctypes.c_void_p, _SIZE, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _ADDRESS, _SIZE, _HANDLE),
    "cuStreamCreate": (_POINTER(_HANDLE), _UINT),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamBeginCapture_v2": (_HANDLE, _INT),
    "cuStreamEndCapture": (_HANDLE, _POINTER(_HANDLE)),
    "cuGraphInstantiateWithFlags": (_POINTER(_HANDLE), _HANDLE, ctypes.c_ulonglong),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGraphDestroy": (_HANDLE,),
    "cuEventCreate": (_POINTER(_HANDLE), _UINT),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventSynchronize": (_HANDLE,),
    "cuEventElapsedTime": (_POINTER(_FLOAT), _HANDLE, _HANDLE),
    "cuEventDestroy_v2": (_HANDLE,),
}


class Cuda:
    """One device with one stream. Close it when done; everything allocated through it goes with it."""

    def __init__(self, device: int = 0, library: str = DRIVER) -> None:
        try:
            self._driver = ctypes.CDLL(library)
        except OSError as e:
            raise UnavailableError(
                "no CUDA driver here: run on a machine with an NVIDIA GPU, or --device"
            ) from e
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._driver, name)
            function.argtypes, function.restype = arguments, _INT
        self._call("cuInit", 0)
        number = _INT()
        self._call("cuDeviceGet", ctypes.byref(number), device)
        self._device = number.value
        context = _HANDLE()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        self._addresses: set[int] = set()
        self._graphs: list[ctypes.c_void_p] = []
        self._stream = self._new("cuStreamCreate", 0)
        self._start, self._end = (self._new("cuEventCreate", 0) for _ in range(2))

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._stream.value or 0)

    def allocate(self, size: int) -> int:
        """The device address of `size` bytes, at least one. SystemFailureError when memory is used up."""
        address = _ADDRESS()
        self._call("cuMemAlloc_v2", ctypes.byref(address), max(size, 1))
        self._addresses.add(address.value)
        return int(address.value)

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        self._addresses.discard(address)
        self._call("cuMemFree_v2", address)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array to the device and wait."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self._stream)
        self.wait()

    def download(self, array: np.ndarray, address: int) -> None:
        """Fill a contiguous array from the device and wait."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self._stream)
        self.wait()

    def wait(self) -> None:
        """Until everything on the stream is done."""
        self._call("cuStreamSynchronize", self._stream)

    def milliseconds(self, work: Callable[[], None]) -> float:
        """The time between two events around `work`, which must put its work on this stream."""
        self._call("cuEventRecord", self._start, self._stream)
        work()
        self._call("cuEventRecord", self._end, self._stream)
        self._call("cuEventSynchronize", self._end)
        passed = _FLOAT()
        self._call("cuEventElapsedTime", ctypes.byref(passed), self._start, self._end)
        return float(passed.value)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work` recorded once as a CUDA graph; calling the result launches it."""
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_THREAD_LOCAL)
        try:
            work()
        finally:
            graph = _HANDLE()
            self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        executable = _HANDLE()
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        self._call("cuGraphDestroy", graph)
        self._graphs.append(executable)
        return lambda: self._call("cuGraphLaunch", executable, self._stream)

    def close(self) -> None:
        """Free the memory, the stream and the context. Safe to call twice."""
        if self._device < 0:
            return
        for address in sorted(self._addresses):
            self._call("cuMemFree_v2", address)
        self._addresses.clear()
        for graph in self._graphs:
            self._call("cuGraphExecDestroy", graph)
        for event in (self._start, self._end):
            self._call("cuEventDestroy_v2", event)
        self._call("cuStreamDestroy_v2", self._stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)
        self._device = -1

    def _new(self, function: str, flags: int) -> ctypes.c_void_p:
        handle = _HANDLE()
        self._call(function, ctypes.byref(handle), flags)
        return handle

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._driver, function)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise SystemFailureError("the GPU's memory is used up: free some, or use smaller inputs")
        if status != 0:
            raise SystemFailureError(
                f"CUDA failed in {function} (error {status}): check the driver with nvidia-smi"
            )
