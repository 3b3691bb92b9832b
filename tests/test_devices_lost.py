"""Devices that go away, and we who go away from them: nothing stays there, and what is missing is said first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsecc.bundle.folder import Bundle
from sparsecc.devices import Device, open_device
from sparsecc.devices import ready as ready_module
from sparsecc.devices.ready import ask, require_ready
from sparsecc.errors import InputError, SystemFailureError, UnavailableError
from tests.sshd import Server, running_sshd

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "digits_resnet.onnx"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("asyncssh")
    with running_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def home(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = server.home(tmp_path / "home")
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def board(home: Path) -> Iterator[Device]:
    with open_device(f"ssh://board?python={sys.executable}") as device:
        yield device


def left_on(server: Server) -> list[str]:
    return [path.name for path in server.folder.iterdir() if path.name.startswith("sparsecc")]


def vanishes(*paths: Path) -> bool:
    """Within seconds, not at once: the other side needs a moment to see that a connection is gone."""
    for _ in range(200):
        if not any(path.exists() for path in paths):
            return True
        time.sleep(0.05)
    return False


# Nothing stays ---------------------------------------------------------------------------------------

HOLD = """
import sys
from sparsecc.devices import open_device
with open_device("ssh://board") as device:
    print(device.folder, flush=True)
    device.run(["sh", "-c", "echo $$ > pid; exec sleep 300"], timeout=300)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_nothing_on_the_board(home: Path, server: Server, number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        while not (folder / "pid").is_file() or not (pid := (folder / "pid").read_text().strip()):
            time.sleep(0.05)
        holder.send_signal(number)
    assert vanishes(folder, Path("/proc") / pid)
    assert left_on(server) == []


def test_what_a_dead_keeper_left_is_swept_and_the_living_stay(board: Device, server: Server) -> None:
    stale = server.folder / "sparsecc-4194304.abcdefghij"  # above every process number
    stale.mkdir()
    (stale / "a.onnx").write_bytes(b"model")
    with subprocess.Popen(["sleep", "300"], cwd=stale) as runner:
        with open_device("ssh://board") as other:
            assert not stale.exists()
            assert {Path(board.folder).name, Path(other.folder).name} == set(left_on(server))
        assert runner.wait(10) == -signal.SIGKILL
    assert board.run(["ls"], timeout=30).status == 0


def test_a_command_that_took_too_long_is_gone_there(board: Device) -> None:
    from sparsecc.errors import WorkerError

    with pytest.raises(WorkerError, match="was stopped"):
        board.run(["sh", "-c", "echo $$ > pid; trap '' HUP TERM; sleep 300 & wait"], timeout=1)
    pid = board.run(["cat", "pid"], timeout=30).stdout.strip()
    assert vanishes(Path("/proc") / pid)


# ~/.ssh/config ---------------------------------------------------------------------------------------


def test_port_key_user_and_jump_hosts_come_from_the_ssh_configuration(home: Path, server: Server) -> None:
    for spec in ("ssh://board", "ssh://far"):
        with open_device(spec) as device:
            assert device.run(["printenv", "TMPDIR"], timeout=30).stdout.strip() == str(server.folder)


def test_no_setting_switches_the_check_of_host_keys_off(home: Path) -> None:
    config = home / ".ssh" / "config"
    lines = [line for line in config.read_text().splitlines(keepends=True) if "KnownHosts" not in line]
    config.write_text("".join(lines) + "Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
    with pytest.raises(UnavailableError, match="the host key of ssh://board is not known"):
        open_device("ssh://board")
    with pytest.raises(UnavailableError, match="the host key of ssh://far is not known"):
        open_device("ssh://far")


def test_a_broken_ssh_configuration_is_one_line(home: Path) -> None:
    (home / ".ssh" / "config").write_text("Host board\n  Port many\n")
    with pytest.raises(InputError, match="ssh/config") as caught:
        open_device("ssh://board")
    assert "\n" not in str(caught.value)


# Asked first -----------------------------------------------------------------------------------------


def test_a_board_says_what_it_has(board: Device) -> None:
    facts = ask(board)
    assert facts.system is not None
    assert facts.system.startswith(os.uname().sysname)
    assert facts.python == ".".join(map(str, sys.version_info[:3]))
    assert facts.numpy
    assert facts.onnxruntime
    assert (facts.free_bytes or 0) > 0
    assert require_ready(board, (MODEL,)).onnxruntime == facts.onnxruntime


def test_what_a_board_lacks_is_said(board: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {Path(sys.executable).resolve()} -I -S "$@"\n')
    bare.chmod(0o755)
    board.python = str(bare)
    with pytest.raises(UnavailableError, match=r"has no numpy and no onnxruntime: run .*bare -m pip install"):
        require_ready(board)
    board.python = "no-such-python"
    with pytest.raises(UnavailableError, match=r"has no no-such-python: install Python 3\.8"):
        require_ready(board)
    board.spec = "adb:X1"
    with pytest.raises(
        UnavailableError, match="adb:X1 has no no-such-python: a phone as it is sold has none"
    ):
        require_ready(board)
    board.python = sys.executable
    monkeypatch.setattr(ready_module, "SPARE_BYTES", 1 << 60)
    with pytest.raises(SystemFailureError, match="free some there"):
        require_ready(board)


def sparsecc(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sparsecc", *arguments]


@pytest.mark.parametrize("command", ["compile", "profile", "gate"])
def test_the_board_is_asked_before_the_model_is_read(home: Path, tmp_path: Path, command: str) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"this is no model")
    more = {"gate": ["--baseline", str(garbage)], "compile": ["-o", str(tmp_path / "out")]}.get(command, [])
    asked = sparsecc(command, str(garbage), "--device", "ssh://board?python=no-such-python", *more)
    done = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("sparsecc: error: ssh://board has no no-such-python")
    assert len(done.stderr.splitlines()) == 1


def test_a_board_lost_at_the_end_costs_only_the_figures(home: Path, tmp_path: Path) -> None:
    (tmp_path / "board").mkdir()
    with running_sshd(tmp_path / "board") as own:
        (home / ".ssh" / "config").unlink()
        (home / ".ssh").rmdir()
        own.home(home)
        out = tmp_path / "out"
        asked = sparsecc("compile", str(MODEL), "--ratio", "0.3", "-o", str(out), "-v", "--device")
        asked.append(f"ssh://board?python={sys.executable}")
        with subprocess.Popen(
            asked, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
        ) as run:
            assert run.stderr is not None
            said = ""
            for line in run.stderr:
                said += line
                if line.rstrip().endswith("build"):
                    own.process.kill()
    assert run.returncode == 1, said
    assert said.splitlines()[-1].startswith(
        f"sparsecc: error: {out} is written, but not measured on ssh://board"
    )
    assert Bundle.open(out).verify_manifest() == []
    report = json.loads((out / "report.json").read_text())
    assert report["unmeasured"] in report["warnings"]
    assert "latency" not in report
