"""Bundles: complete or absent whatever happens while they are written, and checked when read."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsecc.bundle import folder as bundle
from sparsecc.bundle.folder import Bundle, BundleWriter
from sparsecc.errors import GoalError, InputError, SystemFailureError
from sparsecc.system.files import file_sha256

ROOT = Path(__file__).resolve().parent.parent


def write(destination: Path, text: str = "x", *, force: bool = False) -> None:
    with BundleWriter(destination, force=force) as writer:
        (writer.folder / "model.onnx").write_text(text * 1000)
        writer.write_json("plan.json", {"text": text})
        writer.write_json("report.json", {"n": 1})
        writer.facts["input"] = {"sha256": "0" * 64}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_bundle_is_complete_and_intact(tmp_path: Path) -> None:
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["manifest.json", "model.onnx", "plan.json", "report.json"]
    read = Bundle.open(tmp_path / "out")
    assert read.verify_manifest() == []
    assert read.plan == {"text": "x"}
    assert read.manifest["input"] == {"sha256": "0" * 64}
    assert {"python", "onnx", "onnxruntime", "numpy"} <= set(read.manifest["versions"])


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name)
        time.sleep(0.01)
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_json_is_canonical(tmp_path: Path) -> None:
    bundle.write_json(tmp_path / "x.json", {"b": [1.5, "é"], "a": None})
    assert (
        tmp_path / "x.json"
    ).read_bytes() == b'{\n  "a": null,\n  "b": [\n    1.5,\n    "\\u00e9"\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        bundle.write_json(tmp_path / "y.json", float("nan"))


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), BundleWriter(tmp_path / "out") as writer:  # noqa: PT012
        (writer.folder / "model.onnx").write_text("half")
        raise KeyError
    assert names(tmp_path) == []


def test_an_existing_output_is_kept_unless_forced(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(InputError, match="--force"):
        write(tmp_path / "out", "new")
    assert Bundle.open(tmp_path / "out").plan == {"text": "old"}
    write(tmp_path / "out", "new", force=True)
    assert Bundle.open(tmp_path / "out").plan == {"text": "new"}
    assert Bundle.open(tmp_path / "out").verify_manifest() == []
    assert names(tmp_path) == ["out"]


def test_a_failed_replacement_keeps_the_old(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    before = file_sha256(tmp_path / "out" / "manifest.json")
    with pytest.raises(KeyError), BundleWriter(tmp_path / "out", force=True):
        raise KeyError
    assert file_sha256(tmp_path / "out" / "manifest.json") == before


def test_replacing_works_without_an_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "old")
    monkeypatch.setattr(sys, "platform", "darwin")
    write(tmp_path / "out", "new", force=True)
    assert Bundle.open(tmp_path / "out").plan == {"text": "new"}
    assert names(tmp_path) == ["out"]


def test_force_never_removes_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a bundle"):
        write(tmp_path / "home", force=True)
    assert names(tmp_path / "home") == ["thesis.txt"]


def test_folders_above_an_output_are_made(tmp_path: Path) -> None:
    write(tmp_path / "not" / "yet" / "out")
    assert Bundle.open(tmp_path / "not" / "yet" / "out").verify_manifest() == []


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert Bundle.open(tmp_path / "out").verify_manifest() == []


@pytest.mark.parametrize("name", ["file", "link", "dangling", "file/out", "file/missing/out"])
def test_bad_destinations_are_refused_before_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for force in (False, True):
        with pytest.raises(InputError) as caught:
            bundle.check_destination(tmp_path / name, force)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        bundle.check_destination(Path("/"))


def test_a_read_only_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match="no permission"):
        bundle.check_destination(tmp_path / "out")


def test_files_are_private_while_written_and_never_writable_by_others(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with BundleWriter(tmp_path / "out") as writer:
            assert writer.folder.stat().st_mode & 0o777 == 0o700
            (writer.folder / "model.onnx").write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "out").stat().st_mode & 0o022 == 0
    assert all(f.stat().st_mode & 0o022 == 0 for f in (tmp_path / "out").iterdir())


def test_changes_are_found(tmp_path: Path) -> None:
    write(tmp_path / "out")
    read = Bundle.open(tmp_path / "out")
    (tmp_path / "out" / "model.onnx").write_text("changed")
    (tmp_path / "out" / "plan.json").unlink()
    (tmp_path / "out" / "extra\n.bin").write_text("")
    (tmp_path / "out" / "report.json").rename(tmp_path / "r")
    (tmp_path / "out" / "report.json").symlink_to(tmp_path / "r")
    problems = read.verify_manifest()
    assert [p.partition("'")[2].partition("'")[0] for p in problems] == [
        "plan.json",
        "extra .bin",
        "model.onnx",
        "report.json",
    ]
    with pytest.raises(GoalError, match="and 3 more"):
        read.require_intact()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"schema": "other"}', '{"schema": "sparsecc.manifest/1"}']
)
def test_what_is_no_bundle_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(InputError):
        Bundle.open(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError) as caught:
        Bundle.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_large_json_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out")
    monkeypatch.setattr("sparsecc.system.plain_json.LARGEST", 10)
    with pytest.raises(InputError, match="over"):
        _ = Bundle(tmp_path / "out").plan


def test_a_living_run_is_not_swept(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "out") as first:
        (first.folder / "model.onnx").write_text("first")
        with BundleWriter(tmp_path / "other"):
            pass
        assert bundle.sweep(tmp_path / "out") == []
    assert Bundle.open(tmp_path / "out").verify_manifest() == []


def test_foreign_folders_are_not_swept(tmp_path: Path) -> None:
    for name in (".out.sparsecc-mine", ".out2.sparsecc-0123456789abcdef", "out.sparsecc-0123456789abcdef"):
        (tmp_path / name).mkdir()
    (tmp_path / ".out.sparsecc-0123456789abcdef").symlink_to(tmp_path)
    assert bundle.sweep(tmp_path / "out") == []
    assert len(names(tmp_path)) == 4


def test_of_two_runs_into_one_folder_one_wins(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another run"), BundleWriter(tmp_path / "out"):
        write(tmp_path / "out", "second")
    assert Bundle.open(tmp_path / "out").plan == {"text": "second"}
    assert names(tmp_path) == ["out"]


WRITER = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from sparsecc.bundle.folder import BundleWriter
out, text = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
while True:
    with BundleWriter(out, force=True) as writer:
        for i in range(8):
            (writer.folder / f"part{{i}}").write_text(text * 20_000)
        writer.write_json("plan.json", {{"text": text}})
"""


def start(out: Path, text: str) -> subprocess.Popen[bytes]:
    code = WRITER.format(root=str(ROOT))
    process = subprocess.Popen([sys.executable, "-c", code, str(out), text], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def kills(folder: Path, count: int) -> None:
    """Kill a run that writes and replaces at a random moment; the output is complete or absent every time."""
    chance = random.Random(0)
    for i in range(count):
        process = start(folder / "out", str(i % 10))
        time.sleep(chance.uniform(0, 0.05))
        kill(process)
        if (folder / "out").exists():
            assert Bundle.open(folder / "out").verify_manifest() == []
    write(folder / "out", "last", force=True)
    assert names(folder) == ["out"]


def test_kills_at_random_moments(tmp_path: Path) -> None:
    kills(tmp_path, 30)


@pytest.mark.slow
def test_five_hundred_kills_at_random_moments(tmp_path: Path) -> None:
    kills(tmp_path, 500)


def test_runs_replacing_one_folder_at_once(tmp_path: Path) -> None:
    write(tmp_path / "out")
    writers = [start(tmp_path / "out", text) for text in "abc"]
    try:
        for _ in range(40):
            read = json.loads((tmp_path / "out" / "manifest.json").read_text())
            assert read["schema"] == bundle.SCHEMA
            time.sleep(0.01)
    finally:
        for process in writers:
            os.kill(process.pid, signal.SIGKILL)
            kill(process)
    assert Bundle.open(tmp_path / "out").verify_manifest() == []
    write(tmp_path / "out", force=True)
    assert names(tmp_path) == ["out"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_nothing_and_keeps_the_old(small_disk: Path) -> None:
    write(small_disk / "out", "old")
    with pytest.raises(SystemFailureError, match="No space") as caught:
        write(small_disk / "out", "new" * 200, force=True)
    assert "\n" not in str(caught.value)
    assert names(small_disk) == ["out"]
    assert Bundle.open(small_disk / "out").plan == {"text": "old"}
    assert Bundle.open(small_disk / "out").verify_manifest() == []


ONCE = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from sparsecc.bundle.folder import BundleWriter
from sparsecc.errors import SystemFailureError
try:
    with BundleWriter(Path(sys.argv[1]), force=True) as writer:
        (writer.folder / "model.onnx").write_text("new" * 1000)
        writer.write_json("plan.json", {{"text": "new"}})
except SystemFailureError as e:
    sys.exit(e.exit_code)
"""
POINTS = [
    ("mkdir", 1),
    ("renameat2", 1),
    *[(call, n) for call in ("write", "fsync", "chmod") for n in range(1, 6)],
]


def can_trace() -> bool:
    """Whether strace is there and may trace."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace here")
@pytest.mark.parametrize("fault", ["error=ENOSPC", "error=EIO", "signal=KILL"])
def test_a_fault_at_every_step_leaves_the_old_or_the_new(tmp_path: Path, fault: str) -> None:
    struck = 0
    for call, n in POINTS:
        folder = tmp_path / f"{call}{n}"
        folder.mkdir()
        write(folder / "out", "old")
        code = ONCE.format(root=str(ROOT))
        trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:{fault}:when={n}"]
        done = subprocess.run([*trace, sys.executable, "-c", code, str(folder / "out")], capture_output=True)
        found = Bundle.open(folder / "out")
        assert found.verify_manifest() == []
        assert found.plan["text"] == "new" if done.returncode == 0 else found.plan["text"] in ("old", "new")
        struck += done.returncode != 0
        if fault != "signal=KILL":
            assert done.returncode in (0, SystemFailureError.exit_code), done.stderr
            assert names(folder) == ["out"]
        write(folder / "out", "last", force=True)
        assert names(folder) == ["out"]
    assert struck >= 10


def test_an_output_whose_name_is_no_utf8_is_refused_before_the_work(tmp_path: Path) -> None:
    """ONNX Runtime takes no such path, and scratch folders lie beside the output."""
    with pytest.raises(InputError, match="no name in UTF-8"):
        bundle.check_destination(Path(f"{tmp_path}/a\udcffb"))
