"""Bundles: the folder that a compile writes, all or nothing, and reads back with every hash checked."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sparsecc.errors import GoalError, InputError, InternalError, SystemFailureError
from sparsecc.escaping import one_line, quoted
from sparsecc.system.files import file_sha256
from sparsecc.system.plain_json import read_json
from sparsecc.system.temp_folders import locked_folder, sweep_folders, sweep_left
from sparsecc.system.versions import versions

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"
"""Of the finished bundle, so that the manifest cannot list it."""
OURS = frozenset(
    {MANIFEST, SIGNATURE, "plan.json", "report.json", "report.html", "recipe.yaml", "probes.npz"}
)
"""Files of a bundle beside its artefact: what lies beside a model takes none of these names."""
SCHEMA = "sparsecc.manifest/1"

_DISK_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM}
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def json_bytes(data: Any) -> bytes:
    """Canonical JSON: sorted keys, two spaces, ASCII, a newline last; equal data, equal bytes."""
    text = json.dumps(data, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False)
    return (text + "\n").encode("ascii")


def write_json(path: Path, data: Any) -> None:
    """Write canonical JSON."""
    path.write_bytes(json_bytes(data))


def check_destination(path: Path, force: bool = False) -> None:
    """InputError unless a bundle can be written at `path`: call it before long work.

    Folders above it need not exist. With `force`, a bundle that is there will be replaced; a folder of anything
    else never is.
    """
    path = Path(os.path.abspath(path))
    shown = one_line(str(path), 120)
    if not _is_utf8(path):
        raise InputError(f"the output {shown} is no name in UTF-8, which runtimes need: choose one with -o")
    if not path.name:
        raise InputError(f"{shown} cannot be an output folder: name a folder to create, such as -o out")
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        raise InputError(f"the output {shown} lies under {above}, which is no folder: choose another one")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"no permission to write beside {shown}: choose another output folder")
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InputError(f"the output {shown} exists and is not a folder: choose another one")
    if not path.exists() or not any(path.iterdir()):
        return
    if not force:
        raise InputError(f"the output {shown} exists already: choose another one, or replace it with --force")
    if not (path / MANIFEST).is_file():
        raise InputError(
            f"the output {shown} is not a bundle: --force replaces bundles only, choose another one"
        )


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


class BundleWriter:
    """A context manager that makes the folder `destination` appear complete, or not at all.

    Files are written into `folder`, a hidden sibling. When the block ends well, the manifest is added, all is
    brought to disk and one rename publishes it; when it raises, nothing is left but the folders above. `facts` go
    into the manifest (plain JSON: the input's hash, the recipe, the seed). What a killed run left is swept by the
    next one.

    Where `folder` is given, another process has made that one, and publishes it: this one only fills it. So a
    sandbox need not leave more open than that folder.
    """

    def __init__(self, destination: Path, *, force: bool = False, folder: str | None = None) -> None:
        self.destination = Path(os.path.abspath(destination))
        self.force = force
        self.facts: dict[str, Any] = {}
        self.folder = self.destination if folder is None else Path(folder)
        self._publishes = folder is None
        self._lock = -1

    def __enter__(self) -> BundleWriter:
        if not self._publishes:
            return self
        check_destination(self.destination, self.force)
        with _disk_errors(self.destination):
            self.destination.parent.mkdir(parents=True, exist_ok=True)
            sweep_left(self.destination.parent)
            self.folder, self._lock = locked_folder(self.destination.parent, self.destination.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                if isinstance(error, OSError) and error.errno in _DISK_FAILURES:
                    raise _disk_failure(self.destination, error) from error
                return
            if self._publishes:
                with _disk_errors(self.destination):
                    _require_plain(self.folder)
                    write_json(self.folder / MANIFEST, manifest_of(self.folder, self.facts))
                    _bring_to_disk(self.folder)
                    self._publish()
        finally:
            if self._publishes:
                shutil.rmtree(self.folder, ignore_errors=True)
                os.close(self._lock)

    def write_json(self, name: str, data: Any) -> None:
        """Write a JSON file of the bundle."""
        write_json(self.folder / name, data)

    def _publish(self) -> None:
        """One rename. An old bundle is exchanged for the new one, then removed where that had stood."""
        try:
            if self.force and self.destination.is_dir():
                check_destination(self.destination, self.force)
                _exchange(self.folder, self.destination)
            else:
                os.rename(self.folder, self.destination)
        except OSError as e:
            if e.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                shown = one_line(str(self.destination), 120)
                raise InputError(
                    f"the output {shown} was written by another run meanwhile: choose another"
                ) from e
            raise
        _sync(self.destination.parent)


def _require_plain(folder: Path) -> None:
    """InternalError for a link or a pipe among the files: whoever filled the folder may not lead us out of it."""
    for name in _files(folder):
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise InternalError(f"{quoted(name)} of the new bundle is no plain file: nothing was written")


def sweep(destination: Path) -> list[str]:
    """Remove what killed runs left beside `destination`; returns the names."""
    return sweep_folders(destination.parent, destination.name)


def manifest_of(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the files in `folder`: hashes, versions in use, and `facts`; no clock, no host."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in _files(folder)
        if name != MANIFEST
    }
    return {**facts, "schema": SCHEMA, "files": files, "versions": versions()}


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk; nothing in it is trusted before `verify_manifest` has found nothing."""

    folder: Path

    @staticmethod
    def open(folder: Path) -> Bundle:
        """InputError unless `folder` is there and has a manifest of ours."""
        bundle = Bundle(Path(folder))
        if not bundle.folder.is_dir():
            raise InputError(
                f"{one_line(str(folder), 120)} is not a folder: name the folder that compile wrote"
            )
        if not (bundle.folder / MANIFEST).is_file():
            raise InputError(
                f"{one_line(str(folder), 120)} has no {MANIFEST}: it is not a bundle, or half of one"
            )
        if bundle.manifest.get("schema") != SCHEMA or not isinstance(bundle.manifest.get("files"), dict):
            raise InputError(
                f"{one_line(str(folder), 120)}: {MANIFEST} is not of schema {SCHEMA}: compile again"
            )
        return bundle

    @property
    def manifest(self) -> dict[str, Any]:
        """manifest.json."""
        return self.read_json(MANIFEST)

    @property
    def plan(self) -> dict[str, Any]:
        """plan.json."""
        return self.read_json("plan.json")

    @property
    def report(self) -> dict[str, Any]:
        """report.json."""
        return self.read_json("report.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object of the bundle; InputError when missing, too large or not one."""
        return read_json(self.folder / name, "compile again", links=False)

    def verify_manifest(self) -> list[str]:
        """One line for every file that is missing, changed, a link or not listed; empty when all is well."""
        listed = self.manifest["files"]
        present = set(_files(self.folder)) - {MANIFEST, SIGNATURE}
        problems = [f"{quoted(name)} is missing" for name in sorted(set(listed) - present)]
        problems += [f"{quoted(name)} is not in the manifest" for name in sorted(present - set(listed))]
        for name in sorted(present & set(listed)):
            path = self.folder / name
            if not stat.S_ISREG(path.lstat().st_mode):
                problems.append(f"{quoted(name)} is not a plain file")
            elif not isinstance(listed[name], dict) or listed[name].get("sha256") != file_sha256(path):
                problems.append(f"{quoted(name)} has changed since it was written")
        return problems

    def to_graphsurgeon(self) -> gs.Graph:
        """The compiled model as an onnx-graphsurgeon graph, for edits of the user's own.

        `sparsecc.compile(graph, ...)` takes it back. GoalError when the bundle has changed since.
        """
        from sparsecc.backends.nvidia.graph_surgeon import to_graphsurgeon

        self.require_intact()
        return to_graphsurgeon(self.folder / "model.onnx")

    def require_intact(self) -> None:
        """GoalError naming the first problem of the manifest, when there is one."""
        problems = self.verify_manifest()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise GoalError(f"{one_line(str(self.folder), 120)}: {problems[0]}{more}: compile again")


def _files(folder: Path) -> list[str]:
    """Names of all files and links below `folder`, relative, with slashes, sorted."""
    found = []
    for where, folders, names in os.walk(folder):
        names += [name for name in folders if os.path.islink(os.path.join(where, name))]
        found += [Path(where, name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


def _bring_to_disk(folder: Path) -> None:
    """Sync every file and folder, and give them the modes of a finished artefact: others never write."""
    mask = _umask()
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            os.chmod(os.path.join(where, name), 0o644 & ~mask)
            _sync(Path(where, name))
        os.chmod(where, 0o755 & ~mask)
        _sync(Path(where))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _umask() -> int:
    """The process's file mode mask, without setting it for a moment as os.umask must."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/status") as status:
        return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    return 0o077


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step; where the system cannot, move the old one away first."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), str(old))
    aside = new.with_name(f".{old.name}.sparsecc-{secrets.token_hex(8)}")
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)


@contextlib.contextmanager
def _disk_errors(destination: Path) -> Iterator[None]:
    """What the disk refuses becomes a SystemFailureError of one line."""
    try:
        yield
    except OSError as e:
        raise _disk_failure(destination, e) from e


def _disk_failure(destination: Path, error: OSError) -> SystemFailureError:
    why = one_line(error.strerror or str(error), 120)
    return SystemFailureError(
        f"cannot write {one_line(str(destination), 120)}: {why}; nothing was left, mend it and run again"
    )
