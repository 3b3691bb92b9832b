"""A real sshd on the loopback for tests: own keys, own configuration, as the user who runs the tests."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsecc.devices import DeviceAddress

SFTP = ("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server", "/usr/libexec/openssh/sftp-server")


@dataclass(frozen=True)
class Server:
    """Where it listens, and the keys of both sides. `folder` is the TMPDIR of its sessions."""

    port: int
    key: Path
    known_hosts: Path
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> DeviceAddress:
        return DeviceAddress("ssh", "127.0.0.1", getpass.getuser(), self.port)

    def home(self, folder: Path) -> Path:
        """A home whose `~/.ssh/config` knows this server as `board`, and as `far` behind itself."""
        (folder / ".ssh").mkdir(parents=True)
        (folder / ".ssh" / "config").write_text(
            f"Host board far\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.key}\n  UserKnownHostsFile {self.known_hosts}\nHost far\n  ProxyJump board\n"
        )
        return folder

    @property
    def spec(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"


@contextmanager
def running_sshd(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start it, or skip the test where there is no sshd. Sessions see `environment`."""
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(program).exists() or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd here: apt install openssh-server")
    for name in ("host", "user"):
        keygen(folder / name)
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    port = free_port()
    sftp = next((path for path in SFTP if Path(path).exists()), "internal-sftp")
    variables = {"TMPDIR": str(folder), **(environment or {})}
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"Subsystem sftp {sftp}\nSetEnv {' '.join(f'{k}={v}' for k, v in variables.items())}\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    child = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    _wait_for(port)
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} " + (folder / "host.pub").read_text())
    try:
        yield Server(port, folder / "user", known, folder, child)
    finally:
        child.terminate()
        child.wait(10)


def keygen(path: Path) -> None:
    """A fresh key pair at `path` and `path`.pub."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(100):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.skip("sshd does not start here")
