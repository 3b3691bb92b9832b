"""What ends a command (signals, closed and full streams, too little memory) is said in one true line and its own
exit code, which one table explains."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sparsecc import errors
from sparsecc.bundle.folder import Bundle
from sparsecc.cli.run_log import Trail
from sparsecc.errors import EXIT_CODES
from sparsecc.system.interrupts import Interrupted, interrupts

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "digits_resnet.onnx"
COMPILE = [sys.executable, "-m", "sparsecc", "compile", str(MODEL), "--ratio", "0.3", "--no-measure"]


def test_one_table_says_what_exit_codes_mean() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert {kind.exit_code for kind in kinds if issubclass(kind, errors.SparseccError)} < set(EXIT_CODES)
    assert {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)} < set(EXIT_CODES)


def test_help_and_documents_show_that_table(capsys: pytest.CaptureFixture[str]) -> None:
    from sparsecc.cli import main

    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = text.partition("## Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", table, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES
    for code, meaning in EXIT_CODES.items():
        assert f"{code:3d}  {meaning}" in shown


def heeding() -> None:
    """Signals that whoever started the tests ignores, as nohup does, are not ignored here."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def ended(tmp_path: Path, number: int, at: str) -> tuple[int, list[str]]:
    """Exit code and last lines of a compile that gets the signal when it announces a stage."""
    command = [*COMPILE, "-v", "-o", str(tmp_path / "out")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, preexec_fn=heeding
    ) as run:
        assert run.stderr is not None
        lines = []
        for line in run.stderr:
            lines.append(line.rstrip())
            if lines[-1].endswith(at):
                run.send_signal(number)
    return run.returncode, lines


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_compile_in_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    code, lines = ended(tmp_path, number, "] load")
    assert code == 128 + number
    assert lines[-1] == f"sparsecc: ended by {name}; nothing was written"
    assert all(line.startswith("sparsecc: ") for line in lines[:-1])
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_a_search_to_a_goal_writes_the_best_so_far(tmp_path: Path) -> None:
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    command = [*COMPILE[:5], "--size", "100kB", "--no-measure", "-v", "-o", str(out)]
    environment = {**os.environ, "TMPDIR": str(temporary), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    lines = []
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, preexec_fn=heeding
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            lines.append(line.rstrip())
            if lines[-1].startswith("sparsecc: trial 3:") and "earlier" not in lines[-1]:
                run.send_signal(signal.SIGINT)
    assert run.returncode == 130
    assert any("ended after 3 trials: the best is written now" in line for line in lines)
    assert lines[-1] == f"sparsecc: ended by SIGINT; {out} was already written"
    assert Bundle.open(out).verify_manifest() == []
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out", "tmp"]


def test_a_message_says_what_was_written_already(tmp_path: Path) -> None:
    out = tmp_path / "out"
    trail = Trail(())
    trail.will_write(out)
    assert trail.what_was_written() == "nothing was written"
    out.mkdir()
    assert trail.what_was_written() == f"{out} was already written"
    trail.will_write(page := tmp_path / "front.html")
    page.touch()
    assert trail.what_was_written() == f"{out} and {page} were already written"
    again = Trail(())
    again.will_write(out)
    assert again.written() == []
    (tmp_path / "new").mkdir()
    (tmp_path / "new").rename(out)
    assert again.written() == [str(out)]


def test_the_same_signal_twice_is_one_and_the_callers_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def twice() -> None:
        with interrupts():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        twice()
    assert (caught.value.name, caught.value.exit_code) == ("SIGTERM", 143)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_ignored_signals_stay_ignored_and_threads_have_none() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    seen = []

    def elsewhere() -> None:
        with interrupts():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize(
    ("streams", "code", "message"),
    [
        (">&-", 6, "cannot write the result to stdout: it is closed"),
        (">/dev/full", 6, "cannot write the result to stdout: No space left on device"),
        (">&- 2>&- <&-", 6, ""),
        (">/dev/full 2>/dev/full", 6, ""),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("<&-", 0, ""),
        ("-q >&-", 0, ""),
    ],
)
def test_closed_and_full_streams(streams: str, code: int, message: str) -> None:
    shell = f"{sys.executable} -m sparsecc cache {streams}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == bool(message)


def test_a_result_that_stdout_does_not_take_leaves_the_bundle_and_says_so(tmp_path: Path) -> None:
    command = [*COMPILE, "-o", str(tmp_path / "out")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert done.returncode == 6
    assert sum(line.startswith("sparsecc: error") for line in done.stderr.splitlines()) == 1
    assert done.stderr.rstrip().endswith(f"; {tmp_path / 'out'} was already written")
    assert Bundle.open(tmp_path / "out").verify_manifest() == []


@pytest.mark.parametrize("limit", ["1KiB", "16MiB", "64MiB", "255MiB"])
def test_a_limit_below_what_a_worker_needs_is_said(tmp_path: Path, limit: str) -> None:
    command = [*COMPILE, "-o", str(tmp_path / "out"), "--memory-limit", limit]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 5
    assert "is below the 256 MiB that a worker starts with" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
@pytest.mark.parametrize("kilobytes", [60_000, 120_000])
def test_too_little_address_space_is_no_bug_of_ours(kilobytes: int) -> None:
    shell = f"ulimit -v {kilobytes}; exec {sys.executable} -m sparsecc inspect {MODEL}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode in (5, 6), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_killed_worker_is_exit_code_5_and_leaves_nothing(tmp_path: Path) -> None:
    command = [*COMPILE, "-v", "-o", str(tmp_path / "out")]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as run:
        assert run.stderr is not None
        lines = []
        for line in run.stderr:
            lines.append(line.rstrip())
            if lines[-1].endswith("] prune"):
                for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
    assert run.returncode == 5
    # On a busy machine it is a stage further by then.
    assert "the worker crashed (SIGKILL) while " in lines[-1]
    time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []
