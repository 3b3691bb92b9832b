"""Devices: arguments arrive as they were given, files arrive whole, and what fails says so in one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsecc.devices import Device, DeviceAddress, open_device, parse_device
from sparsecc.errors import InputError, SystemFailureError, UnavailableError, WorkerError
from tests.adb_server import Phone, running_phone
from tests.sshd import Server, free_port, keygen, running_sshd

PRINT_ARGUMENTS = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(os.fsencode(a) for a in sys.argv[1:]))"
ODD = [
    "a b",
    "$(touch canary)",
    "`touch canary`",
    "; touch canary",
    "'",
    '"',
    "\\",
    "*",
    "~",
    "-rf",
    "--",
    "",
    "\n",
    "é",
    "!x",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("asyncssh")
    with running_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def ssh(server: Server) -> Iterator[Device]:
    from sparsecc.devices.ssh import SshDevice

    with SshDevice(server.address, known_hosts=server.known_hosts, key=server.key) as device:
        yield device


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    """A stand-in for adb's server and a phone, in reach of the real adb program."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed")
    with running_phone(tmp_path_factory.mktemp("phone")) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(running.port))
        yield running


@pytest.fixture(scope="module")
def adb(phone: Phone) -> Iterator[Device]:
    with open_device(f"adb:{phone.serial}") as device:
        yield device


@pytest.fixture(params=["local", "ssh", "adb"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    if request.param == "local":
        with open_device("local") as local:
            yield local
    else:
        yield request.getfixturevalue(request.param)


def _arguments_seen(device: Device, arguments: list[str]) -> list[str]:
    done = device.run([sys.executable, "-c", PRINT_ARGUMENTS, *arguments], timeout=30)
    assert done.status == 0, done.stderr
    return done.stdout.split("\0")


def test_odd_arguments_arrive_as_given(device: Device) -> None:
    assert _arguments_seen(device, ODD) == ODD
    assert "canary" not in device.run(["ls", "-a"], timeout=30).stdout


_ARGUMENT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_ARGUMENT, min_size=1, max_size=30))
def test_any_arguments_arrive_over_ssh(ssh: Device, arguments: list[str]) -> None:
    assert _arguments_seen(ssh, arguments) == arguments


def test_files_go_and_come_back_unchanged(device: Device, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(bytes(range(256)) * 5000)
    device.put(sent, "weights.bin")
    device.get("weights.bin", tmp_path / "back", limit=2_000_000)
    assert (tmp_path / "back").read_bytes() == sent.read_bytes()
    with pytest.raises(InputError, match="larger than 1000 bytes"):
        device.get("weights.bin", tmp_path / "big", limit=1000)
    with pytest.raises(InputError, match="was not written"):
        device.get("nothing.bin", tmp_path / "none", limit=1000)


def test_folder_is_private(device: Device) -> None:
    assert device.run(["stat", "-c", "%a", "."], timeout=30).stdout.strip() == "700"


def test_status_and_errors_of_commands(device: Device) -> None:
    done = device.run(["sh", "-c", "echo out; echo err >&2; exit 7"], timeout=30)
    assert (done.status, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert device.run(["no-such-program-here"], timeout=30).status == 127
    with pytest.raises(InputError, match="NUL"):
        device.run(["echo", "a\0b"], timeout=30)


def test_timeout_stops_the_command(device: Device) -> None:
    with pytest.raises(WorkerError, match=r"more than 0\.5 s"):
        device.run(["sleep", "30"], timeout=0.5)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "-rf", "a/b", "", "a\nb", "a b"])
def test_names_that_leave_the_folder_are_refused(device: Device, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not allowed"):
        device.put(tmp_path, name)


def test_closing_removes_the_folder(server: Server) -> None:
    from sparsecc.devices.ssh import SshDevice

    for device in (
        open_device("local"),
        SshDevice(server.address, known_hosts=server.known_hosts, key=server.key),
    ):
        folder = Path(device.folder)
        assert folder.is_dir()
        device.close()
        device.close()
        assert not folder.exists()


def test_unknown_host_key_is_refused(server: Server, tmp_path: Path) -> None:
    from sparsecc.devices.ssh import SshDevice

    with pytest.raises(UnavailableError, match="is not known") as caught:
        SshDevice(server.address, known_hosts=tmp_path / "none", key=server.key)
    assert "\n" not in str(caught.value)


def test_changed_host_key_is_refused(server: Server, tmp_path: Path) -> None:
    from sparsecc.devices.ssh import SshDevice

    keygen(tmp_path / "other")
    changed = tmp_path / "known_hosts"
    changed.write_text(f"[127.0.0.1]:{server.port} " + (tmp_path / "other.pub").read_text())
    with pytest.raises(UnavailableError, match="differs from the one"):
        SshDevice(server.address, known_hosts=changed, key=server.key)


def test_wrong_key_and_no_server(server: Server, tmp_path: Path) -> None:
    from sparsecc.devices.ssh import SshDevice

    keygen(tmp_path / "stranger")
    with pytest.raises(UnavailableError, match="refuses the login"):
        SshDevice(server.address, known_hosts=server.known_hosts, key=tmp_path / "stranger")
    nowhere = DeviceAddress("ssh", "127.0.0.1", "nobody", free_port())
    with pytest.raises(UnavailableError, match=r"lost ssh://nobody@127\.0\.0\.1"):
        SshDevice(nowhere, known_hosts=server.known_hosts, key=server.key)


def test_lost_connection_is_one_line(server: Server) -> None:
    from sparsecc.devices.ssh import SshDevice

    device = SshDevice(server.address, known_hosts=server.known_hosts, key=server.key)
    with pytest.raises(UnavailableError, match=r"lost ssh://") as caught:
        device.run(["sh", "-c", "kill -9 $PPID; sleep 5"], timeout=20)
    assert "\n" not in str(caught.value)
    device.close()


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_is_said(server: Server, tmp_path: Path) -> None:
    from sparsecc.devices.ssh import SshDevice

    device = SshDevice(server.address, known_hosts=server.known_hosts, key=server.key)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", device.folder], capture_output=True
    )
    if mounted.returncode != 0:
        device.close()
        pytest.skip("mounting is not allowed here")
    big = tmp_path / "big"
    big.write_bytes(b"x" * 1_000_000)
    try:
        with pytest.raises(SystemFailureError, match=r"the disk of ssh://.* is full"):
            device.put(big, "big.bin")
    finally:
        subprocess.run(["umount", device.folder], check=True)
        device.close()


def test_damage_on_the_way_is_noticed(ssh: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(b"weights")

    class Damaged:
        def hexdigest(self) -> str:
            return hashlib.new("sha256", b"something else").hexdigest()

        def update(self, chunk: bytes) -> None:
            pass

    monkeypatch.setattr("sparsecc.devices.ssh.hashlib.sha256", Damaged)
    with pytest.raises(SystemFailureError, match="arrived damaged"):
        ssh.put(sent, "weights.bin")


@pytest.mark.parametrize(
    ("spec", "address"),
    [
        ("local", DeviceAddress("local")),
        ("ssh://nano@jetson.local", DeviceAddress("ssh", "jetson.local", "nano", 0)),
        ("ssh://b?python=/v/bin/python3", DeviceAddress("ssh", "b", python="/v/bin/python3")),
        ("adb:X1?python=/opt/py", DeviceAddress("adb", "X1", python="/opt/py")),
        ("ssh://10.0.0.7:2222", DeviceAddress("ssh", "10.0.0.7", "", 2222)),
        ("ssh://u@[fe80::1]:22", DeviceAddress("ssh", "fe80::1", "u", 22)),
        ("adb:emulator-5554", DeviceAddress("adb", "emulator-5554")),
        ("adb", DeviceAddress("adb")),
    ],
)
def test_devices_are_parsed(spec: str, address: DeviceAddress) -> None:
    assert parse_device(spec) == address


@pytest.mark.parametrize(
    "spec",
    ["", "ssh://", "ssh://-oProxyCommand=x", "ssh://-l@h", "ssh://h;reboot", "ssh://h:99999", "ssh://u@h/path",
     "ssh://$(x)@h", "adb:-s", "adb:a b", "serial:1", "ssh://h\n", "ftp://h",
     "ssh://h:0"],
)  # fmt: skip
def test_what_is_no_device_is_refused(spec: str) -> None:
    with pytest.raises(InputError, match="write local, ssh://"):
        parse_device(spec)


@pytest.mark.parametrize("python", ["", "-c", "a b", "a;b", "~/python3", "x/python3", "python3\n"])
def test_what_is_no_program_is_refused(python: str) -> None:
    with pytest.raises(InputError, match=r"is no program: write \?python=/PATH"):
        parse_device(f"ssh://h?python={python}")


def test_missing_adb_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UnavailableError, match="adb is not installed"):
        open_device("adb:X1")


def test_a_phone_that_goes_away_is_said(phone: Phone, tmp_path: Path) -> None:
    device = open_device(f"adb:{phone.serial}")
    (tmp_path / "sent").write_bytes(b"1")
    try:
        phone.online = False
        with pytest.raises(UnavailableError, match="does not answer"):
            device.run(["ls"], timeout=20)
        with pytest.raises(SystemFailureError, match="does not copy 'sent'"):
            device.put(tmp_path / "sent", "sent")
    finally:
        phone.online = True
    device.close()
    with pytest.raises(UnavailableError, match="does not answer"):
        open_device("adb:ANOTHER")


def _model(path: Path, width: int) -> Path:
    import onnx

    text = f"""<ir_version: 9, opset_import: ["" : 17]>
        m (float[8,{width}] x) => (float[8,{width}] y) {{ z = MatMul(x, w) y = Relu(z) }}"""
    model = onnx.parser.parse_model(
        text.replace("{ z", f"<float[{width},{width}] w = {{{','.join(['0'] * width**2)}}}> {{ z")
    )
    onnx.save(model, path)
    return path


def test_two_models_are_timed_on_a_device(device: Device, tmp_path: Path) -> None:
    from sparsecc.devices.measure import sample_on

    model = _model(tmp_path / "m.onnx", 16)
    feeds = {"x": np.ones((8, 16), np.float32)}
    device.python = sys.executable
    samples = sample_on(device, model, model, feeds, pairs=40)
    assert samples.wall_a.shape == samples.cpu_b.shape == (40,)
    assert 0 < samples.b_first.sum() < 40
    assert (samples.wall_a > 0).all()
    assert samples.facts["onnxruntime"]


GOOD: dict[str, object] = {"schema": "sparsecc.samples/1", "nonce": "n", "rows": [[0, 10, 10, 20, 20]] * 3}


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "other"},
        {"schema": "x"},
        {"rows": [[0, 10, 10, 20, 20]] * 2},
        {"rows": [[0, 0, 10, 20, 20]] * 3},
        {"rows": [[0, -1, 10, 20, 20]] * 3},
        {"rows": [[0, 10, 10, 20, float("nan")]] * 3},
        {"rows": [[2, 10, 10, 20, 20]] * 3},
        {"rows": [[0, 10**18, 10, 20, 20]] * 3},
        {"rows": [[0, 10**12, 10, 20, 20]] * 3},
        {"rows": [[0, True, 10, 20, 20]] * 3},
        {"rows": [[0, "10", 10, 20, 20]] * 3},
        {"rows": "many"},
    ],
)
def test_unbelievable_answers_are_refused(change: dict[str, object]) -> None:
    from sparsecc.devices.measure import believed

    def judge(answer: dict[str, object]) -> object:
        return believed(json.dumps(answer), nonce="n", pairs=3, seconds=1.0, where="ssh://x")

    judge(GOOD)
    with pytest.raises(InputError, match="ssh://x"):
        judge(GOOD | change)


@pytest.mark.parametrize("text", ["", "[]", "\x1b[2J", "[" * 100_000, "{", "NaN"])
def test_answers_that_are_no_record_are_refused(text: str) -> None:
    from sparsecc.devices.measure import believed

    with pytest.raises(InputError, match="ssh://x"):
        believed(text, nonce="n", pairs=3, seconds=1.0, where="ssh://x")
