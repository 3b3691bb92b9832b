"""Compiles at the same time: on one cache, into folders of their own and into one; all as if it were alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsecc.bundle.folder import MANIFEST, Bundle

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "digits_resnet.onnx"
TAKEN = "was written by another run meanwhile"


def save_samples(folder: Path) -> None:
    images = np.random.default_rng(0).random((32, 1, 16, 16), dtype=np.float32)
    np.savez(folder / "samples.npz", image=images)


def start(place: Path, name: str, *options: str, cache: str = "cache") -> subprocess.Popen[str]:
    """A compile with calibration, which reads and fills the cache, in a process of its own."""
    sparsecc = [sys.executable, "-m", "sparsecc", "compile", str(MODEL), "--ratio", "0.4", "--no-measure"]
    return subprocess.Popen(
        [*sparsecc, "--calib", str(place / "samples.npz"), "-q", "-o", str(place / name), *options],
        env={**os.environ, "XDG_CACHE_HOME": str(place / cache)},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and error line of each."""
    said = [process.communicate(timeout=600)[1] for process in processes]
    return [(process.returncode, line) for process, line in zip(processes, said, strict=True)]


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a bundle but the report, which may say what the cache gave, and the manifest that hashes it."""
    assert Bundle.open(folder).verify_manifest() == []
    measured = {"report.json", "report.html", MANIFEST}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in measured}


def litter(place: Path) -> list[str]:
    return [path.name for path in place.iterdir() if ".sparsecc-" in path.name]


def check(place: Path, together: int, *options: str) -> None:
    save_samples(place)
    assert ended([start(place, "alone", *options, cache="other")]) == [(0, "")]
    own = [start(place, f"out{number}", *options) for number in range(together)]
    assert ended(own) == [(0, "")] * together
    expected = files(place / "alone")
    for number in range(together):
        assert files(place / f"out{number}") == expected
    assert len(list((place / "cache").rglob("*"))) > 1
    shared = ended([start(place, "one", *options) for _ in range(together)])
    assert sorted(code for code, _ in shared) == [0] + [2] * (together - 1)
    assert all(TAKEN in line or "exists already" in line for code, line in shared if code)
    assert files(place / "one") == expected
    assert ended([start(place, "one", *options, "--force") for _ in range(together)]) == [(0, "")] * together
    assert files(place / "one") == expected
    assert litter(place) == []


def test_two_compiles_at_once(tmp_path: Path) -> None:
    check(tmp_path, 2, "--allocator", "uniform")  # without loss curves, which the test of eight has


@pytest.mark.slow
def test_eight_compiles_at_once(tmp_path: Path) -> None:
    check(tmp_path, 8)


def test_damaged_entries_are_made_again(tmp_path: Path) -> None:
    save_samples(tmp_path)
    assert ended([start(tmp_path, "first")]) == [(0, "")]
    entries = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert entries
    sound = {path: path.read_bytes() for path in entries}
    for path, data in sound.items():
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert ended([start(tmp_path, "second")]) == [(0, "")]
    assert files(tmp_path / "second") == files(tmp_path / "first")
    assert {path: path.read_bytes() for path in entries} == sound
