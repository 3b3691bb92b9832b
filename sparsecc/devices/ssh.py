"""A board or server over SSH. Host keys are always checked against known_hosts; nothing switches that off."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shlex
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sparsecc.devices.device import (
    LARGEST_OUTPUT,
    Completed,
    Device,
    DeviceAddress,
    checked_argv,
    checked_name,
)
from sparsecc.devices.keeper import BEAT_SECONDS, folder_in, keeper_command, stop_command
from sparsecc.errors import (
    InputError,
    MissingPackageError,
    SparseccError,
    SystemFailureError,
    UnavailableError,
    WorkerError,
)
from sparsecc.escaping import one_line, quoted

try:
    import asyncssh
except ImportError as e:
    raise MissingPackageError("devices over SSH need asyncssh: pip install 'sparsecc[board]'") from e

from sparsecc.devices.ssh_route import Route

_QUICK_SECONDS = 60.0
_CHUNK = 1 << 16
_STOPPED = -1
LARGEST_SAID = 1 << 16
"""Bytes kept of what a login shell prints before the keeper speaks."""

T = TypeVar("T")


class SshDevice(Device):
    """One connection with a private folder on the other side, which a keeper there owns (`devices/keeper.py`).

    Port, user, keys, known hosts, jump hosts and all else come from the user's `~/.ssh/config` where the address does
    not say; passwords are never asked for. `known_hosts` is a file in OpenSSH's format in place of the user's, `key` a
    private key in place of theirs.
    """

    def __init__(
        self, address: DeviceAddress, *, known_hosts: Path | None = None, key: Path | None = None
    ) -> None:
        user, port = f"{address.user}@" if address.user else "", f":{address.port}" if address.port else ""
        self.spec = f"ssh://{user}{address.host}{port}"
        self.folder, self.python = "", address.python
        self._route = Route(known_hosts, key)
        self._loop = asyncio.new_event_loop()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._keeper: asyncssh.SSHClientProcess[bytes] | None = None
        try:
            self._connection = self._wait(self._route.connect(address.host, address.user, address.port))
            self.folder = self._wait(self._start_keeper())
        except BaseException:
            self.close()
            raise

    def put(self, local: Path, name: str) -> None:
        target = f"{self.folder}/{checked_name(name)}"
        size = local.stat().st_size
        self._wait(self._upload(local, target), f"copying {name}", size)
        self._check_hash(local, name)

    def get(self, name: str, local: Path, *, limit: int) -> None:
        source = f"{self.folder}/{checked_name(name)}"
        self._wait(self._download(source, local, name, limit), f"fetching {name}")

    def run(self, argv: Sequence[str], *, timeout: float) -> Completed:
        command = shlex.join(checked_argv(argv))
        if self.folder:
            command = f"cd {shlex.quote(self.folder)} && exec {command}"
        done: Completed = self._wait(self._execute(command, timeout))
        if done.status == _STOPPED:
            name = one_line(argv[0], 80)
            raise WorkerError(
                f"{name} on {self.spec} took more than {timeout:g} s and was stopped: allow more time"
            )
        return done

    def close(self) -> None:
        if self._loop.is_closed():
            return
        try:
            if self._keeper is not None:
                keeper, self._keeper, self.folder = self._keeper, None, ""
                keeper.stdin.write_eof()
                self._wait(asyncio.wait_for(keeper.wait_closed(), _QUICK_SECONDS))
        except SparseccError:
            self._connection = None
        if self._connection is not None:
            self._connection.close()
            self._loop.run_until_complete(self._connection.wait_closed())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _start_keeper(self) -> str:
        """The folder that it made; from here on it goes when the connection does."""
        keeper = await self._open.create_process(keeper_command(), encoding=None, stderr=asyncssh.DEVNULL)
        said = b""
        while (folder := folder_in(said.decode("utf-8", "replace"))) is None:
            line = await asyncio.wait_for(keeper.stdout.readline(), _QUICK_SECONDS)
            if not line:
                raise SystemFailureError(
                    f"{self.spec} makes no temporary folder: check the space in its /tmp"
                )
            said = (said + line)[-LARGEST_SAID:]
        self._keeper = keeper
        self._beats = self._loop.create_task(_beat(keeper))
        return folder

    async def _upload(self, local: Path, target: str) -> None:
        async with self._open.start_sftp_client() as sftp:
            await sftp.put(str(local), target)

    async def _download(self, source: str, local: Path, name: str, limit: int) -> None:
        async with self._open.start_sftp_client() as sftp:
            if not await sftp.isfile(source) or await sftp.islink(source):
                raise InputError(f"{quoted(name)} was not written on {self.spec}: see the command's output")
            async with sftp.open(source, "rb") as remote:
                with local.open("wb") as file:
                    await _copy(remote, file, limit, name)

    async def _execute(self, command: str, timeout: float) -> Completed:
        began = time.monotonic()
        process = await self._open.create_process(command, encoding=None, stdin=asyncssh.DEVNULL)
        try:
            out, err, _ = await asyncio.wait_for(
                asyncio.gather(_read(process.stdout), _read(process.stderr), process.wait_closed()), timeout
            )
        except asyncio.TimeoutError:
            process.kill()
            process.close()
            await self._open.run(stop_command(self.folder), stdin=asyncssh.DEVNULL)
            return Completed(_STOPPED, "", "", time.monotonic() - began)
        status = process.exit_status if process.exit_status is not None else 255
        if process.exit_status is None and self._open.is_closed():
            raise asyncssh.ConnectionLost("the connection closed while the command ran")
        return Completed(status, out, err, time.monotonic() - began)

    @property
    def _open(self) -> asyncssh.SSHClientConnection:
        if self._connection is None:
            raise UnavailableError(f"{self.spec} is not connected: open the device again")
        return self._connection

    def _check_hash(self, local: Path, name: str) -> None:
        done = self.run(["sha256sum", "--", name], timeout=600)
        digest = hashlib.sha256()
        with local.open("rb") as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                digest.update(chunk)
        if done.status != 0 or done.stdout.split()[:1] != [digest.hexdigest()]:
            raise SystemFailureError(
                f"{quoted(name)} arrived damaged on {self.spec}: check its disk and try again"
            )

    def _wait(self, work: Coroutine[Any, Any, T], doing: str = "", size: int = 0) -> T:
        try:
            return self._loop.run_until_complete(work)
        except asyncssh.HostKeyNotVerifiable as e:
            raise UnavailableError(self._route.host_key_message(self.spec)) from e
        except asyncssh.PermissionDenied as e:
            raise UnavailableError(
                f"{self.spec} refuses the login: add your key there with ssh-copy-id"
            ) from e
        except asyncssh.SFTPError as e:
            raise self._copy_error(e, doing, size) from e
        except asyncio.TimeoutError as e:
            raise UnavailableError(f"{self.spec} does not answer: check that it is on and in reach") from e
        except (asyncssh.Error, OSError) as e:
            reason = one_line(str(e), 120)
            raise UnavailableError(f"lost {self.spec} ({reason}): check the device and the network") from e

    def _copy_error(self, error: asyncssh.SFTPError, doing: str, size: int) -> SparseccError:
        free = self._free_bytes()
        if free is not None and free < max(size, 1 << 16):
            return SystemFailureError(
                f"the disk of {self.spec} is full while {doing}: free {size} bytes there"
            )
        return SystemFailureError(
            f"{self.spec} failed while {doing} ({one_line(str(error), 100)}): try again"
        )

    def _free_bytes(self) -> int | None:
        try:
            done = self.run(["df", "-Pk", "."], timeout=_QUICK_SECONDS)
        except SparseccError:
            return None
        words = done.stdout.splitlines()[-1].split() if done.stdout.strip() else []
        return int(words[3]) * 1024 if len(words) > 3 and words[3].isdigit() else None


async def _beat(keeper: asyncssh.SSHClientProcess[bytes]) -> None:
    """Say every now and then that we are there, until the connection is gone."""
    with contextlib.suppress(OSError, asyncssh.Error):
        while not keeper.is_closing():
            keeper.stdin.write(b".")
            await asyncio.sleep(BEAT_SECONDS)


async def _read(stream: asyncssh.SSHReader[bytes]) -> str:
    """Everything up to the limit; what comes after is read and dropped so that the command can end."""
    kept = bytearray()
    while chunk := await stream.read(_CHUNK):
        kept += chunk[: max(LARGEST_OUTPUT - len(kept), 0)]
    return kept.decode("utf-8", "replace")


async def _copy(remote: Any, file: Any, limit: int, name: str) -> None:
    """Copy until the end, counting what really arrives: a device may lie about a size."""
    total = 0
    while chunk := await remote.read(_CHUNK * 16):
        total += len(chunk)
        if total > limit:
            raise InputError(f"{quoted(name)} is larger than {limit} bytes: not taken")
        file.write(chunk)
