"""The timing cache: one private file per TensorRT version and GPU, written and replaced whole.

A cache is only read back when this user wrote it: its folder is 0700, and a file beside it holds its code by this
user's own key.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsecc.backends.nvidia.api import RTX, Flavour
from sparsecc.backends.nvidia.device import NoGpuError, gpus
from sparsecc.backends.nvidia.layer_types import IBuilderConfig
from sparsecc.backends.nvidia.plans import CODE
from sparsecc.errors import SystemFailureError
from sparsecc.escaping import quoted
from sparsecc.system.user_key import code_of, is_code

_LARGEST = 1 << 30
_PURPOSE = "runtime cache"
_UNFINISHED = ".timing-"
_STALE_SECONDS = 86_400.0


@dataclass
class TimingCacheFile:
    """`path` is None when no cache is used (TensorRT-RTX has none, or the user said `none`)."""

    path: Path | None
    reused: bool = False

    @classmethod
    def open(cls, flavour: Flavour, version: str, given: str | None) -> TimingCacheFile:
        """The cache file: `given`, "none" for no cache, or by default our own for this version and GPU."""
        if flavour is RTX or given == "none":
            return cls(None)
        if given is not None:
            return cls(Path(given))
        return cls(private_folder() / f"timing-{_slug(version)}-{_slug(_gpu_name())}.cache")

    def attach(self, config: IBuilderConfig) -> None:
        """Give the builder what is stored (or an empty cache), so that it fills it."""
        if self.path is None:
            return
        data = read_own(self.path)
        self.reused = bool(data) and config.set_timing_cache(config.create_timing_cache(data), False)
        if not self.reused:
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep(self, config: IBuilderConfig) -> None:
        """Store what the builder has learnt."""
        cache = config.get_timing_cache() if self.path is not None else None
        if cache is not None and self.path is not None:
            write_own(self.path, bytes(memoryview(cache.serialize())))

    def facts(self) -> dict[str, Any]:
        return {"used": self.path is not None, "reused": self.reused}


def private_folder() -> Path:
    """Our cache folder for TensorRT, 0700. SystemFailureError when it cannot be made or is another user's."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "sparsecc" / "tensorrt"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = folder.lstat()
        if hasattr(os, "getuid") and (stat.st_uid != os.getuid() or folder.is_symlink()):
            raise SystemFailureError(
                f"cache folder {quoted(str(folder))} is not this user's: set XDG_CACHE_HOME"
            )
        folder.chmod(0o700)
    except OSError as e:
        raise SystemFailureError(f"cannot make the cache folder {quoted(str(folder))} ({e.strerror})") from e
    return folder


def read_own(path: Path) -> bytes:
    """The bytes of a file that `write_own` wrote; empty when it is missing, changed, foreign or too large."""
    try:
        stat = path.lstat()
        if (
            path.is_symlink()
            or stat.st_size > _LARGEST
            or (hasattr(os, "getuid") and stat.st_uid != os.getuid())
        ):
            return b""
        data = path.read_bytes()
        said = _code_file(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return b""
    return data if is_code(said, _PURPOSE, data) else b""


def write_own(path: Path, data: bytes) -> None:
    """Replace the file and its code, each in one rename, 0600. SystemFailureError when the disk refuses."""
    code = code_of(_PURPOSE, data).encode("ascii")
    try:
        _sweep(path.parent)
        for target, content in ((path, data), (_code_file(path), code)):
            handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=_UNFINISHED)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
    except OSError as e:
        raise SystemFailureError(f"cannot write the timing cache {quoted(str(path))} ({e.strerror})") from e


def _sweep(folder: Path) -> None:
    """Remove what killed writers left a day ago or more."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):
            if left.lstat().st_mtime < time.time() - _STALE_SECONDS:
                left.unlink()


def _code_file(path: Path) -> Path:
    return path.with_name(path.name + CODE)


def keep_only_own(folder: Path) -> None:
    """Remove the files of a folder that a runtime fills and loads itself, but for those that `sign_all` signed."""
    for path in _runtime_files(folder):
        if not read_own(path):
            path.unlink(missing_ok=True)


def sign_all(folder: Path) -> None:
    """Put a code beside every file that the runtime has just written."""
    for path in _runtime_files(folder):
        with contextlib.suppress(FileNotFoundError):  # another process took it for a stranger's meanwhile
            if not read_own(path):
                write_own(path, path.read_bytes())


def _runtime_files(folder: Path) -> list[Path]:
    ours = (path for path in folder.iterdir() if path.suffix != CODE)
    return [path for path in ours if not path.name.startswith(_UNFINISHED) and not path.is_dir()]


def _gpu_name() -> str:
    try:
        return gpus()[0].name
    except NoGpuError:
        return "none"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "none"
