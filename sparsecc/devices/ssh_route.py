"""How a host is reached over SSH: what `~/.ssh/config` says of it, the jump hosts before it, and its host key.

Host keys are always checked against known_hosts: `UserKnownHostsFile none` leaves no host known.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from sparsecc.errors import InputError
from sparsecc.escaping import one_line

CONNECT_SECONDS = 20.0


@dataclass
class Route:
    """`known_hosts` and `key`, where given, stand in for those of the user's configuration."""

    known_hosts: Path | None = None
    key: Path | None = None
    last: asyncssh.SSHClientConnectionOptions | None = None

    async def connect(self, host: str, user: str = "", port: int = 0) -> asyncssh.SSHClientConnection:
        """A connection to a host (a name, or a `Host` of the configuration), through its jump hosts."""
        return await asyncio.wait_for(self._connect(host, user, port, None), CONNECT_SECONDS)

    async def _connect(
        self, host: str, user: str, port: int, through: asyncssh.SSHClientConnection | None
    ) -> asyncssh.SSHClientConnection:
        given = self._given(user, port)
        options = _options(host, given)
        jumps = options.tunnel if through is None and isinstance(options.tunnel, str) else ""
        for jump in filter(None, jumps.split(",")):
            at, _, place = jump.rpartition("@")
            name, _, number = place.partition(":")
            through = await self._connect(name, at, int(number or 0), through)
        self.last = options
        if options.known_hosts is None:
            given["known_hosts"] = b""
        connection = await asyncssh.connect(host, tunnel=through, **given)
        connection.set_tunnel(through)
        return connection

    def _given(self, user: str, port: int) -> dict[str, Any]:
        config = Path.home() / ".ssh" / "config"
        given: dict[str, Any] = {"config": [str(config)] if config.is_file() else None}
        given |= {"preferred_auth": "publickey", "keepalive_interval": 15}
        if user:
            given["username"] = user
        if port:
            given["port"] = port
        if self.key is not None:
            given["client_keys"] = [str(self.key)]
        if self.known_hosts is not None:
            given["known_hosts"] = str(self.known_hosts) if self.known_hosts.is_file() else b""
        return given

    def host_key_message(self, spec: str) -> str:
        """Why the host key of the host last tried was not taken, and what to do."""
        options = self.last
        assert options is not None
        host, port = options.host_key_alias or options.host, options.port
        known = options.known_hosts or str(Path.home() / ".ssh" / "known_hosts")
        if _is_known(known, host, port):
            name = host if port == 22 else f"[{host}]:{port}"
            return (
                f"the host key of {spec} differs from the one in known_hosts: if the device was set up anew, "
                f"remove the old key with: ssh-keygen -R '{name}'"
            )
        return f"the host key of {spec} is not known: connect once with ssh and check its fingerprint"


def _options(host: str, given: dict[str, Any]) -> asyncssh.SSHClientConnectionOptions:
    try:
        return asyncssh.SSHClientConnectionOptions(host=host, **given)
    except (ValueError, OSError) as e:
        raise InputError(
            f"~/.ssh/config or a key it names cannot be used: {one_line(str(e), 120)}; mend it"
        ) from e


def _is_known(files: Any, host: str, port: int) -> bool:
    if isinstance(files, bytes):
        return False
    found: list[Any] = []
    for path in [files] if isinstance(files, str) else files:
        try:
            found += asyncssh.read_known_hosts(str(path)).match(host, host, port)[0]
        except (OSError, ValueError):
            continue
    return bool(found)
