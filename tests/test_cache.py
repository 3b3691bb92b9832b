"""The cache: whole entries or none, whoever writes, dies or meddles meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsecc.cli import main
from sparsecc.errors import SystemFailureError
from sparsecc.system.cache import Cache

ROOT = Path(__file__).resolve().parent.parent


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_value_comes_back(tmp_path: Path) -> None:
    store = Cache(tmp_path / "c")
    assert store.get("a") is None
    store.put("a", b"value")
    store.put("", b"")
    assert Cache(tmp_path / "c").get("a") == b"value"
    assert store.get("") == b""


def test_the_folder_is_private_and_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "sparsecc").mkdir(mode=0o777)
    old = os.umask(0)
    try:
        Cache().put("../../a key\0", b"value")
    finally:
        os.umask(old)
    for path in (tmp_path / "sparsecc").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
    assert (tmp_path / "sparsecc").stat().st_mode & 0o777 == 0o700


def test_every_flipped_byte_is_a_miss_that_heals(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    store.put("key", b"0123456789")
    (path,) = entries(tmp_path)
    sound = path.read_bytes()
    for i in range(len(sound)):
        path.write_bytes(sound[:i] + bytes([sound[i] ^ 1]) + sound[i + 1 :])
        assert store.get("key") is None
        assert not path.exists()
        store.put("key", b"0123456789")
    for cut in range(0, len(sound), 7):
        path.write_bytes(sound[:cut])
        assert store.get("key") is None


def test_an_entry_under_another_name_is_a_miss(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    store.put("a", b"value of a")
    (of_a,) = entries(tmp_path)
    store.put("b", b"value of b")
    (of_b,) = set(entries(tmp_path)) - {of_a}
    of_b.write_bytes(of_a.read_bytes())
    assert store.get("b") is None


def test_links_and_pipes_are_not_read(tmp_path: Path) -> None:
    store = Cache(tmp_path / "c")
    store.put("a", b"value")
    (path,) = entries(tmp_path / "c")
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    assert store.get("a") is None
    path.unlink()
    os.mkfifo(path)
    assert store.get("a") is None


def test_a_cache_that_cannot_be_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemFailureError, match="XDG_CACHE_HOME"):
        Cache(tmp_path / "file")


def test_old_leftovers_are_swept(tmp_path: Path) -> None:
    Cache(tmp_path).put("a", b"")
    folder = entries(tmp_path)[0].parent
    for name, age in ((".new-old", 2 * 86400), (".new-young", 0)):
        (folder / name).write_text("")
        os.utime(folder / name, (time.time() - age,) * 2)
    Cache(tmp_path)
    assert not (folder / ".new-old").exists()
    assert (folder / ".new-young").exists()


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    store = Cache(tmp_path, limit=5000)
    for name in "abcd":
        store.put(name, name.encode() * 1000)
        age(tmp_path, seconds=10)
    assert store.get("a") == b"a" * 1000
    age(tmp_path, seconds=10)
    unfinished = entries(tmp_path)[0].parent / ".new-other"
    unfinished.write_bytes(bytes(9000))
    os.utime(unfinished, (0, 0))
    store.put("e", b"e" * 1000)
    assert [name for name in "abcde" if store.get(name)] == ["a", "c", "d", "e"]
    assert unfinished.exists()
    assert store.held()[0] == 4
    assert store.held()[1] <= 5000


def age(folder: Path, seconds: float) -> None:
    for path in entries(folder):
        facts = path.stat()
        os.utime(path, (facts.st_atime - seconds, facts.st_mtime - seconds))


def test_a_value_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    store = Cache(tmp_path, limit=100)
    store.put("a", bytes(200))
    assert store.get("a") is None
    store.put("b", bytes(10))
    assert store.get("b") == bytes(10)


def test_room_is_made_for_what_other_processes_store(tmp_path: Path) -> None:
    mine, theirs = Cache(tmp_path, limit=3000), Cache(tmp_path, limit=3000)
    for i in range(10):
        (mine if i % 2 else theirs).put(str(i), bytes(900))
        age(tmp_path, seconds=1)
    assert mine.held()[1] <= 2 * 3000
    assert mine.get("9") == bytes(900)
    mine.put("last", bytes(900))
    Cache(tmp_path, limit=3000).put("one more", bytes(900))
    assert mine.held()[1] <= 3000


WRITER = """
import sys, hashlib
sys.path.insert(0, {root!r})
from pathlib import Path
from sparsecc.system.cache import Cache
store = Cache(Path(sys.argv[1]))
rounds = int(sys.argv[2])
i = 0
while rounds < 0 or i < rounds:
    key = str(i % 20)
    value = hashlib.sha256(key.encode()).digest() * 2000
    got = store.get(key)
    assert got is None or got == value
    store.put(key, value)
    i += 1
"""


@pytest.mark.parametrize("writers", [8])
def test_many_writers_and_kills(tmp_path: Path, writers: int) -> None:
    code = WRITER.format(root=str(ROOT))
    chance = random.Random(1)
    command = [sys.executable, "-c", code, str(tmp_path)]
    steady = [subprocess.Popen([*command, "50"]) for _ in range(writers)]
    for _ in range(10):
        victim = subprocess.Popen([*command, "-1"])
        time.sleep(chance.uniform(0.05, 0.2))
        victim.kill()
        victim.wait()
    assert [process.wait(60) for process in steady] == [0] * writers
    store = Cache(tmp_path)
    for i in range(20):
        assert store.get(str(i)) == hashlib.sha256(str(i).encode()).digest() * 2000


def test_the_command_shows_and_clears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Cache().put("a", bytes(1000))
    age(tmp_path, seconds=10)
    Cache().put("b", bytes(1000))
    Cache(tmp_path / "sparsecc" / "calibration").put("c", bytes(3000))
    (tmp_path / "sparsecc" / "linked").symlink_to(tmp_path)
    assert sizes(capsys) == {"measurements": 2, "calibration": 1}
    assert sizes(capsys, "--trim", "2kB") == {"measurements": 1, "calibration": 0}
    assert Cache().get("b") == bytes(1000)
    assert sizes(capsys, "--clear") == {"measurements": 0, "calibration": 0}
    assert main(["cache"]) == 0
    assert "calibration" in capsys.readouterr().out


def sizes(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, int]:
    assert main(["cache", "--json", *options]) == 0
    return {one["name"]: one["entries"] for one in json.loads(capsys.readouterr().out)["caches"]}
