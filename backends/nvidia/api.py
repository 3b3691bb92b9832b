"""The door to TensorRT and TensorRT-RTX: the only place that imports them, after the command line is read."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from sparsecc.backends.base import Availability
from sparsecc.backends.nvidia.device import NoGpuError, gpus
from sparsecc.backends.nvidia.layer_types import Api, Builder
from sparsecc.errors import UnavailableError
from sparsecc.escaping import one_line
from sparsecc.runtime.runner import Progress

THREE_WAYS = "use --target tensorrt-rtx, --device ssh://user@host, or --emit onnx"


@dataclass(frozen=True)
class Flavour:
    """One of the two products: its target, modules and packages, and whether it needs a GPU to build."""

    target: str
    title: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    extra: str
    needs_gpu: bool


TENSORRT = Flavour(
    "tensorrt",
    "TensorRT",
    ("tensorrt", "tensorrt_bindings"),
    ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "pip install 'sparsecc[tensorrt]'",
    needs_gpu=True,
)
RTX = Flavour(
    "tensorrt-rtx",
    "TensorRT-RTX",
    ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    ("tensorrt-rtx", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx-cu13-bindings"),
    "pip install 'sparsecc[tensorrt-rtx]'",
    needs_gpu=False,
)


def installed_version(flavour: Flavour) -> str:
    """The version of the installed package, or "" when none is: a look at metadata, nothing is imported."""
    for package in flavour.packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def availability(flavour: Flavour) -> Availability:
    """Whether this flavour builds here, without importing it."""
    if _module_name(flavour) is None:
        return Availability(False, reason=f"{flavour.title} is not installed", remedy=_remedy(flavour))
    version = installed_version(flavour)
    if flavour.needs_gpu:
        try:
            gpus()
        except NoGpuError as e:
            return Availability(
                False, version, f"{flavour.title} builds only beside a GPU and {e}", THREE_WAYS
            )
    return Availability(True, version)


def load(flavour: Flavour) -> Api:
    """The module. UnavailableError when it is not installed, its libraries are missing, or no GPU answers."""
    found = availability(flavour)
    if not found.ok:
        raise UnavailableError(f"{flavour.target}: {found.reason}: {found.remedy}")
    name = _module_name(flavour) or flavour.modules[0]
    try:
        return cast(Api, importlib.import_module(name))
    except (ImportError, OSError) as e:
        reason = one_line(str(e), 160)
        raise UnavailableError(
            f"{flavour.target}: the Python module {name} does not load ({reason}): reinstall: {flavour.extra}"
        ) from e


def has(owner: object, *names: str) -> bool:
    """Whether an object of the bindings has all these members: we ask for features, never for versions."""
    return all(hasattr(owner, name) for name in names)


def make_builder(api: Api, flavour: Flavour, logger: object) -> Builder:
    """A Builder. UnavailableError when the bindings cannot make one, which means no usable GPU."""
    try:
        return api.Builder(logger)
    except (TypeError, RuntimeError) as e:
        raise UnavailableError(
            f"{flavour.target}: its builder does not start here (no usable GPU or driver): {THREE_WAYS}"
        ) from e


def _module_name(flavour: Flavour) -> str | None:
    return next((name for name in flavour.modules if importlib.util.find_spec(name) is not None), None)


def _remedy(flavour: Flavour) -> str:
    if flavour.needs_gpu:
        return f"{flavour.extra} on a machine with a GPU; without one {THREE_WAYS}"
    return flavour.extra


@dataclass
class Log:
    """What the bindings say: errors and warnings in full, the rest as long as it fits."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    other: deque[str] = field(default_factory=lambda: deque(maxlen=20_000))

    def add(self, severity: int, message: str) -> None:
        """Severities are TensorRT's: 0 internal error, 1 error, 2 warning, 3 information, 4 verbose."""
        if severity <= 1:
            self.errors.append(message)
        elif severity == 2:
            self.warnings.append(message)
        else:
            self.other.append(message)


def logger_into(api: Api, log: Log) -> object:
    """An ILogger that writes into `log`."""
    base = api.ILogger

    class Logger(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(int(severity), message)

    return Logger()


class Steps:
    """The nested phases of a build as one share from 0 to 1 that never goes back."""

    def __init__(self) -> None:
        self._frames: list[list[Any]] = []
        self._share = 0.0

    def start(self, phase: str, steps: int) -> None:
        self._frames.append([phase, max(steps, 1), 0])

    def step(self, phase: str, index: int) -> float:
        """The share after step `index` (from 0) of that phase is done."""
        for frame in self._frames:
            if frame[0] == phase:
                frame[2] = index + 1
        share, width = 0.0, 1.0
        for _, steps, done in self._frames:
            share += width * min(done, steps) / steps
            width /= steps
        self._share = max(self._share, min(share, 1.0))
        return self._share

    def finish(self, phase: str) -> None:
        self._frames = [frame for frame in self._frames if frame[0] != phase]


def progress_monitor(api: Api, progress: Progress, cancelled: threading.Event) -> object:
    """An IProgressMonitor that reports to `progress` and stops the build once `cancelled` is set.

    Nothing may be raised through the native builder, so a reader of our progress who has gone away (OSError)
    cancels the build instead.
    """
    base = api.IProgressMonitor
    steps = Steps()

    class Monitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            steps.start(phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            steps.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                progress(phase_name, steps.step(phase_name, step))
            except OSError:
                cancelled.set()
            return not cancelled.is_set()

    return Monitor()


@contextmanager
def interruptible(cancelled: threading.Event) -> Iterator[None]:
    """Ctrl-C sets `cancelled` instead of raising amid native code; afterwards it raises as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = threading.Event()

    def note(signum: int, frame: object) -> None:
        pressed.set()
        cancelled.set()

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed.is_set():
        raise KeyboardInterrupt
