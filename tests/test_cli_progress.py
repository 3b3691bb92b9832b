"""Progress: silent when quick or piped, lines when verbose, a bar on a terminal."""

from __future__ import annotations

import io
import sys
import time

import pytest

from sparsecc.cli.progress import Progress
from sparsecc.cli.terminal import Terminal


class FakeTerminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def fake_terminal(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    """Put one where stderr is; called by the test itself: pytest sets stderr anew after the fixtures."""
    screen = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    return screen


def event(stage: str, share: float = 0.0, note: str = "") -> dict[str, object]:
    return {"stage": stage, "share": share, "note": note}


def test_quick_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = fake_terminal(monkeypatch)
    with Terminal().progress() as on_event:
        on_event(event("load"))
    assert screen.getvalue() == ""


def test_long_work_shows_a_bar_and_clears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = fake_terminal(monkeypatch)
    with Progress(lines=False, bar=True, patience=0.0) as progress:
        progress.on_event(event("prune\x1b[2J", 0.4, "group 3 [bold]"))
        time.sleep(0.4)
    shown = screen.getvalue()
    assert "prune\\x1b[2J" in shown
    assert "40%" in shown
    assert "group 3 [bold]" in shown
    assert shown.rstrip().endswith("\x1b[2K")


def test_a_pipe_gets_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(lines=False, bar=False, patience=0.0) as progress:
        progress.on_event(event("prune", 0.4))
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


def test_verbose_prints_each_step_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(verbose=True).progress() as on_event:
        for share in (0.1, 0.2, 0.3):
            on_event(event("prune", share))
        on_event(event("verify", 0.9, "4 inputs"))
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("] ")[1] for line in err.splitlines()] == ["prune", "verify: 4 inputs"]


def test_quiet_silences_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(verbose=True, quiet=True).progress() as on_event:
        on_event(event("prune"))
    assert capsys.readouterr() == ("", "")


def test_the_bar_is_cleared_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = fake_terminal(monkeypatch)

    def work() -> None:
        time.sleep(0.2)
        raise RuntimeError

    with pytest.raises(RuntimeError), Progress(lines=False, bar=True, patience=0.0):
        work()
    assert screen.getvalue().rstrip().endswith("\x1b[2K")
