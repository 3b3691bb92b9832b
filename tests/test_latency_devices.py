"""Profile, compile and gate on a device: a real sshd on the loopback, its sessions with this Python."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import sparsecc
from sparsecc.cli import main
from sparsecc.errors import InputError, UnavailableError
from sparsecc.gate.gate import gate
from sparsecc.measure.interleave import Budget
from tests.sshd import Server, free_port, running_sshd
from tests.test_budget import perceptron


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("asyncssh")
    folder = tmp_path_factory.mktemp("sshd")
    asked = subprocess.run(["python3", "--version"], capture_output=True, text=True, check=False)
    if asked.stdout.split()[-1:] != [sys.version.split()[0]]:
        pytest.skip("the python3 that a session finds is another one than this")
    packages = Path(onnxruntime.__file__).parent.parent
    with running_sshd(folder, {"PYTHONPATH": str(packages)}) as running:
        yield running


@pytest.fixture
def device(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, with a home whose keys and known hosts fit it."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "known_hosts").write_bytes(server.known_hosts.read_bytes())
    (home / ".ssh" / "id_ed25519").write_bytes(server.key.read_bytes())
    (home / ".ssh" / "id_ed25519").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    return server.spec


def left_behind(server: Server) -> list[Path]:
    return [path for path in server.folder.iterdir() if path.is_dir() and path.name.startswith("tmp")]


def test_a_profile_comes_from_the_device(device: str, server: Server, tmp_path: Path) -> None:
    found = sparsecc.profile(perceptron(tmp_path / "m.onnx", 64), device=device)
    assert found["device"]["name"] == device
    assert found["device"]["onnxruntime"]
    assert len(found["samples_ms"]["cpu"]) == found["cpu_ms"]["n"] == 100
    assert left_behind(server) == []
    with pytest.raises(InputError, match="on this machine only"):
        sparsecc.profile(tmp_path / "m.onnx", device=device, layers=True)


def test_a_compile_is_measured_on_the_device(device: str, tmp_path: Path) -> None:
    made = sparsecc.compile(
        perceptron(tmp_path / "m.onnx", 256), ratio=0.6, device=device, output=tmp_path / "o"
    )
    latency = made.report["latency"]
    assert latency["device"]["name"] == device
    assert latency["rounds"] == 4
    assert latency["speedup"]["estimate"] > 1.2


def test_a_gate_is_decided_on_the_device(device: str, tmp_path: Path) -> None:
    small, large = perceptron(tmp_path / "a.onnx", 256, 2), perceptron(tmp_path / "b.onnx", 256, 6)
    quick = Budget(pairs=40, seconds=2.0)
    result = gate(large, small, max_regression=0.5, checks=(), device=device, budget=quick)
    assert result.verdict == "REGRESSION", result.reason
    assert result.machine["device"] == device


def test_a_device_that_is_gone_is_one_line(device: str, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"lost ssh://nobody@127\.0\.0\.1"):
        sparsecc.profile(perceptron(tmp_path / "m.onnx", 32), device=f"ssh://nobody@127.0.0.1:{free_port()}")


def test_a_fleet_is_measured_in_one_run(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = f"ssh://nobody@127.0.0.1:{free_port()}"
    model, heard = perceptron(tmp_path / "m.onnx", 64), list[Any]()
    found = sparsecc.profile_fleet(model, ["local", gone, device], on_event=heard.append)["results"]
    assert [one["device"]["name"] for one in found] == ["local", gone, device]
    assert found[0]["cpu_ms"]["n"] > 0
    assert found[2]["cpu_ms"]["n"] == 100
    assert found[1]["error"].startswith(f"lost {gone}")
    assert {event["note"] for event in heard} >= {"local", device}
    with pytest.raises(InputError, match="name each device once"):
        sparsecc.profile_fleet(model, ["local", "local"])
    assert main(["profile", str(model), "--device", f"local,{gone}"]) == UnavailableError.exit_code
    shown = capsys.readouterr().out
    assert "local" in shown
    assert f"lost {gone}" in " ".join(shown.split())


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_is_a_fleet(device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distributed = pytest.importorskip(
        "distributed", reason="needs the extra: pip install 'sparsecc[cluster]'"
    )
    model, heard = perceptron(tmp_path / "m.onnx", 64), list[Any]()
    gone = f"ssh://nobody@127.0.0.1:{free_port()}"
    quick = {"processes": False, "protocol": "tcp", "dashboard_address": None}  # a search has processes
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **quick) as boards:
        address = boards.scheduler_address
        own = sparsecc.profile_fleet(model, cluster=address, on_event=heard.append)["results"]
        far = sparsecc.profile_fleet(model, [device, gone], cluster=address)["results"]
        assert main(["profile", str(model), "--cluster", address]) == 0
        with pytest.raises(InputError, match="give a path"):
            sparsecc.profile_fleet(model.read_bytes(), cluster=address)
    assert [one["device"]["name"] for one in own] == ["127.0.0.1"], "two workers of one machine"
    assert own[0]["cpu_ms"]["n"] > 0
    assert heard[-1]["share"] == 1.0
    assert far[0]["device"]["name"] == device
    assert far[1]["error"].startswith(f"lost {gone}")
    assert "127.0.0.1" in capsys.readouterr().out
