"""Fixtures of the command line's tests."""

from __future__ import annotations

import sys

import pytest

import sparsecc
from sparsecc.cli import main
from tests.cli_recorder import Err, Recorder


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "sparsecc.api", recorder)
    monkeypatch.setattr(sparsecc, "api", recorder, raising=False)
    return recorder


@pytest.fixture
def err(capsys: pytest.CaptureFixture[str]) -> Err:
    """Runs the command line: its exit code and its one line on stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return code, captured.err.strip()

    return run
