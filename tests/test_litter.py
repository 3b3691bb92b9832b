"""Folders that vanish with their process: those of the living stay, whoever sweeps meanwhile."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from sparsecc.cli import main
from sparsecc.system.temp_folders import (
    STEMS,
    locked_file,
    locked_folder,
    locked_temporary,
    sweep_folders,
    temporary_folder,
)


def test_a_folder_is_never_swept_from_under_its_maker(tmp_path: Path) -> None:
    stop = threading.Event()
    swept = 0

    def sweep() -> None:
        nonlocal swept
        while not stop.is_set():
            swept += len(sweep_folders(tmp_path, "worker"))

    sweepers = [threading.Thread(target=sweep) for _ in range(3)]
    for thread in sweepers:
        thread.start()
    try:
        for number in range(300):
            folder, lock = locked_folder(tmp_path, "worker")
            (folder / "file").write_text(str(number))
            assert (folder / "file").read_text() == str(number)
            os.close(lock)
    finally:
        stop.set()
        for thread in sweepers:
            thread.join()
    sweep_folders(tmp_path, "worker")
    assert swept > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_swept_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    mkdir = os.mkdir

    def swept_once(path: Path, mode: int) -> None:
        mkdir(path, mode)
        made.append(path)
        if len(made) == 1:
            assert sweep_folders(tmp_path, "worker") == [path.name]

    monkeypatch.setattr(os, "mkdir", swept_once)
    folder, lock = locked_folder(tmp_path, "worker")
    assert sweep_folders(tmp_path, "worker") == []
    assert [folder] == made[1:]
    os.close(lock)


def test_what_is_no_litter_of_ours_stays(tmp_path: Path) -> None:
    names = (".worker.sparsecc-short", ".other.sparsecc-0123456789abcdef", "worker.sparsecc-0123456789abcdef")
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".worker.sparsecc-0123456789abcdef").symlink_to(tmp_path / names[0])
    (tmp_path / ".worker.sparsecc-fedcba9876543210").mkdir()
    assert sweep_folders(tmp_path, "worker") == [".worker.sparsecc-fedcba9876543210"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        (*names, ".worker.sparsecc-0123456789abcdef")
    )


def test_drafts_of_any_name_are_swept_where_a_command_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living, held = locked_folder(tmp_path, "out")
    for _, lock in (locked_folder(tmp_path, "ck"), locked_file(tmp_path, "draft", 0o600)):
        os.close(lock)  # as when its process dies
    (tmp_path / ".ck.sparsecc-short").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["cache", "-q"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {living.name, ".ck.sparsecc-short"}
    os.close(held)


def test_whatever_dead_processes_left_is_swept_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for stem in STEMS:
        folder, lock = locked_temporary(stem)
        (folder / "model.onnx").write_bytes(b"left")
        os.close(lock)  # as when its process dies
    with temporary_folder("scratch") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_makes_folders_in_the_temporary_one() -> None:
    """Outside of those folders nothing is swept: what is made there must be made by `temporary_folder`."""
    made = re.compile(r"\b(mkdtemp|mkstemp|TemporaryDirectory|NamedTemporaryFile)\((?!.*\bdir=)")
    root = Path(__file__).resolve().parents[1]
    sources = [path for room in ("sparsecc", "passes", "backends") for path in (root / room).rglob("*.py")]
    assert len(sources) > 300
    assert [str(path) for path in sources if made.search(path.read_text(encoding="utf-8"))] == []
