"""A stand-in for adb's server with one phone, so that the real `adb` program can be tested without a phone.

It speaks the smart-socket, shell v2 and sync protocols (docs/dev in Android's adb sources). The phone's
/data/local/tmp is a folder here; its shell is /bin/sh.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TMP = "/data/local/tmp"
VERSION = 41
"""Of the protocol between the program and the server; another one makes the program restart the server."""

FEATURES = "shell_v2,cmd"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = 0, 1, 2, 3, 4


class Phone(socketserver.ThreadingTCPServer):
    """The server, on a free port of the loopback; `online` is whether its phone answers."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path, serial: str) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.folder, self.serial, self.online = folder, serial, True

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def here(self, text: str) -> str:
        return text.replace(TMP, str(self.folder))

    def there(self, data: bytes) -> bytes:
        return data.replace(str(self.folder).encode(), TMP.encode())


class Connection(socketserver.BaseRequestHandler):
    """One connection: requests until one of them takes the socket over."""

    server: Phone
    request: socket.socket

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                wanted = self._exactly(int(self._exactly(4), 16)).decode()
                if not self._answer(wanted):
                    return

    def _answer(self, wanted: str) -> bool:
        """Whether another request may follow on this connection."""
        host, _, service = wanted.partition(":")
        if wanted == "host:version":
            return self._text(f"{VERSION:04x}")
        if host.startswith("host") and service.endswith("features"):
            return self._text(FEATURES) if self._is_there(wanted) else False
        if host == "host" and service.startswith(("transport", "tport")):
            if not self._is_there(wanted):
                return False
            number = struct.pack("<Q", 1) if service.startswith("tport") else b""
            self.request.sendall(b"OKAY" + number)
            return True
        if host.startswith("shell"):
            self.request.sendall(b"OKAY")
            self._shell(wanted.partition(":")[2])
            return False
        if host == "sync":
            self.request.sendall(b"OKAY")
            self._sync()
            return False
        self._fail(f"unknown service {wanted}")
        return False

    def _is_there(self, wanted: str) -> bool:
        if self.server.online and self.server.serial in wanted:
            return True
        self._fail(f"device '{self.server.serial}' not found")
        return False

    def _shell(self, command: str) -> None:
        """Run to its end; killed when the program goes away."""
        with subprocess.Popen(
            ["/bin/sh", "-c", self.server.here(command)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as child:  # fmt: skip
            lock = threading.Lock()

            def forward(stream: int, pipe: Any) -> None:
                while data := pipe.read1(60_000):
                    with lock, contextlib.suppress(OSError):
                        self._packet(stream, self.server.there(data))

            outputs = ((STDOUT, child.stdout), (STDERR, child.stderr))
            pumps = [threading.Thread(target=forward, args=pair) for pair in outputs]
            for pump in pumps:
                pump.start()
            threading.Thread(target=self._watch, args=(child,), daemon=True).start()
            for pump in pumps:
                pump.join()
            code = child.wait()
        with contextlib.suppress(OSError):
            self._packet(EXIT, bytes([code if code >= 0 else 128 - code]))

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        """Hand the program's input on; as adbd does, hang up on the command when the program is gone."""
        assert child.stdin is not None
        with contextlib.suppress(OSError):
            while True:
                kind, length = struct.unpack("<BI", self._exactly(5))
                data = self._exactly(length)
                if kind == STDIN:
                    child.stdin.write(data)
                    child.stdin.flush()
                elif kind == CLOSE_STDIN:
                    child.stdin.close()
        with contextlib.suppress(OSError):
            child.stdin.close()
        child.send_signal(signal.SIGHUP)

    def _packet(self, stream: int, data: bytes) -> None:
        self.request.sendall(struct.pack("<BI", stream, len(data)) + data)

    def _sync(self) -> None:
        while True:
            word, length = struct.unpack("<4sI", self._exactly(8))
            if word == b"QUIT":
                return
            path = self.server.here(self._exactly(length).decode())
            if word == b"STAT":
                self._stat(Path(path))
            elif word == b"SEND":
                self._receive(Path(path.rpartition(",")[0]))
            elif word == b"RECV":
                self._send(Path(path))
            else:
                self._fail_sync(f"unknown request {word!r}")

    def _stat(self, path: Path) -> None:
        found = path.stat() if path.exists() else None
        sizes = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
        self.request.sendall(b"STAT" + struct.pack("<III", *sizes))

    def _receive(self, path: Path) -> None:
        with path.open("wb") as file:
            while True:
                word, length = struct.unpack("<4sI", self._exactly(8))
                if word == b"DONE":
                    break
                file.write(self._exactly(length))
        self.request.sendall(b"OKAY" + struct.pack("<I", 0))

    def _send(self, path: Path) -> None:
        if not path.is_file():
            self._fail_sync("No such file or directory")
            return
        with path.open("rb") as file:
            while data := file.read(60_000):
                self.request.sendall(b"DATA" + struct.pack("<I", len(data)) + data)
        self.request.sendall(b"DONE" + struct.pack("<I", 0))

    def _text(self, text: str) -> bool:
        """Answer, and hang up: the program waits for that."""
        self.request.sendall(b"OKAY" + f"{len(text):04x}{text}".encode())
        return False

    def _fail(self, reason: str) -> None:
        self.request.sendall(b"FAIL" + f"{len(reason):04x}{reason}".encode())

    def _fail_sync(self, reason: str) -> None:
        self.request.sendall(b"FAIL" + struct.pack("<I", len(reason)) + reason.encode())

    def _exactly(self, number: int) -> bytes:
        data = b""
        while len(data) < number:
            more = self.request.recv(number - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        return data


@contextlib.contextmanager
def running_phone(folder: Path, serial: str = "TEST01") -> Iterator[Phone]:
    """A phone whose files lie in `folder`. Give its port to adb as ANDROID_ADB_SERVER_PORT."""
    with Phone(folder, serial) as phone:
        thread = threading.Thread(target=phone.serve_forever, daemon=True)
        thread.start()
        yield phone
        phone.shutdown()
