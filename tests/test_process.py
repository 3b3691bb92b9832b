"""How our processes start: in one way, which no file in the user's folder, and no variable, leads astray."""

from __future__ import annotations

import ast
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsecc.cli.root import COMMANDS
from sparsecc.system import process
from tests.test_layout import SHIPPED, label

ROOT = Path(__file__).resolve().parent.parent

STARTS = {
    "sparsecc/system/process.py": "every process here",
    "sparsecc/devices/ssh.py": "what a board runs, through a library",
}
"""The files that may start a process, and which."""
STARTERS = {
    "subprocess": {"Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"},
    "os": {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile"}
    | {
        f"{verb}{kind}"
        for verb in ("exec", "spawn")
        for kind in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")
    },
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
    "pty": {"fork", "spawn"},
}
MODULES = {"multiprocessing", "concurrent.futures.process", "torch.multiprocessing", "pexpect"}
"""Modules whose whole purpose it is."""

TRAPS = (
    "json numpy onnx onnxruntime onnx_ir sitecustomize usercustomize yaml click scipy torch ml_dtypes typing random "
    "tempfile subprocess ctypes contextlib dataclasses pathlib logging jinja2 rich google model_signing traps_too"
).split()
COMMAND_LINE = "import sys; from sparsecc.cli import main; sys.exit(main())"
"""What the script `sparsecc` of an installed wheel does."""


def process_starts(tree: ast.AST) -> Iterator[str]:
    """Every name in it that starts a process, however it was imported."""
    types = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Subscript)
    }  # subprocess.Popen[bytes]
    for node in ast.walk(tree):
        if node in types:
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in STARTERS.get(node.value.id, ()):
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            yield from (f"{node.module}.{name}" for name in names & STARTERS.get(node.module or "", set()))
            if node.module in MODULES or "ProcessPoolExecutor" in names:
                yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


@pytest.mark.parametrize(
    "code",
    [
        "import subprocess\nsubprocess.run(['x'])",
        "from subprocess import Popen",
        "import os\nos.execv('x', [])",
        "import multiprocessing",
        "from concurrent.futures import ProcessPoolExecutor",
        "import asyncio\nasyncio.create_subprocess_exec('x')",
    ],
)
def test_starts_are_found(code: str) -> None:
    assert list(process_starts(ast.parse(code)))


def test_processes_start_in_one_place() -> None:
    found = {label(path): sorted(set(process_starts(ast.parse(path.read_text())))) for path in SHIPPED}
    assert {file: names for file, names in found.items() if names and file not in STARTS} == {}


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])


def ran(scratch: Path, *arguments: str, seconds: float = 60) -> str:
    """What tests/process_facts.py prints."""
    facts = {"module": "tests.process_facts", "arguments": arguments}
    ended = process.run("sparsecc.system.process:run_module", facts, scratch=scratch, seconds=seconds)
    assert ended.status == 0, ended.printed
    return ended.printed


def test_a_process_is_bound_and_bounded(tmp_path: Path) -> None:
    told = json.loads(ran(tmp_path))
    assert told["isolated"] == 1
    assert told["folder"] == told["TMPDIR"] == str(tmp_path)
    assert told["core"] == 0
    assert 0 < told["file size"] < 1 << 62
    assert 60 < told["life"] <= 60 + process.GRACE
    assert told["processor time"] == resource.getrlimit(resource.RLIMIT_CPU)[0]  # or its clock ticks coarsely
    if sys.platform == "linux":
        assert told["no new privileges"] == 1
        assert told["processes"] < 1 << 30
        assert told["dies with"] == signal.SIGKILL


def test_the_choice_of_threads_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*process.THREADS_OF_BLAS, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    threads = json.loads(ran(tmp_path))["threads"]
    assert set(threads.values()) == {"1", None}
    assert threads["OPENBLAS_NUM_THREADS"] == "1"


def test_the_deadline_ends_a_process(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        ran(tmp_path, "endless", seconds=4)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("moment", [0.0, 0.004, 0.008, 0.016, 0.032, 0.064])
def test_an_interrupt_ends_a_process_by_its_signal_even_while_it_starts(
    tmp_path: Path, moment: float
) -> None:
    task = {"module": "tests.process_facts", "arguments": ["endless"]}
    with open(tmp_path / "printed.txt", "wb") as printed:
        begun = process.start(
            "sparsecc.system.process:run_module", task, scratch=tmp_path, output=printed.fileno(), seconds=60
        )
        time.sleep(moment)
        begun.send_signal(signal.SIGINT)
        assert begun.wait(60) == -signal.SIGINT
    assert (tmp_path / "printed.txt").read_bytes() == b""


PARENT = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}]
scratch = Path({scratch!r})
"""
OURS = """
from sparsecc.system import process
task = {"module": "tests.process_facts", "arguments": ["endless"]}
process.run("sparsecc.system.process:run_module", task, scratch=scratch, seconds=600)
"""
PROGRAM = """
from sparsecc.system import process
process.start_program(["sh", "-c", f"echo $$ > {scratch}/pid; exec sleep 600"]).wait()
"""
ON_A_DEVICE = """
from sparsecc.devices.local import LocalDevice
LocalDevice().run(["sh", "-c", f"echo $$ > {scratch}/pid; exec sleep 600"], timeout=600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize("starts", [OURS, PROGRAM, ON_A_DEVICE])
def test_a_process_dies_with_its_parent(starts: str, tmp_path: Path) -> None:
    code = PARENT.format(root=str(ROOT), scratch=str(tmp_path)) + starts
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    mark, end = tmp_path / "pid", time.monotonic() + 60
    while not (mark.exists() and mark.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    child = int(mark.read_text())
    parent.kill()
    parent.wait()
    while Path(f"/proc/{child}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize(
    ("words", "status"), [(["no-such-program"], 127), (["/etc/passwd"], 126), (["false"], 1)]
)
def test_a_program_ends_as_in_a_shell(words: list[str], status: int) -> None:
    with process.start_program(words) as program:
        assert program.wait(60) == status


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_program_finds_signals_and_rights_as_ever() -> None:
    """Python ignores SIGPIPE, and we hold SIGINT: neither may reach what is not ours."""
    words, said = ["grep", "-E", "^(Sig(Blk|Ign|Cgt)|NoNewPrivs)", "/proc/self/status"], []
    for start in (process.start_program, subprocess.Popen):
        with start(words, stdout=subprocess.PIPE) as program:
            said.append(program.communicate(timeout=60)[0])
    assert said[0] == said[1]
    assert said[0].count(b"\n") == 4


class Trapped:
    """A folder full of traps, with models and a bundle in it; each trap that springs leaves its name."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.folder, self.sprung = folder / "work", folder / "sprung"
        self.folder.mkdir()
        self.script = folder / "bin" / "sparsecc"
        self.script.parent.mkdir()
        self.script.write_text(COMMAND_LINE)
        for name in ("digits_lstm", "digits_resnet"):
            (self.folder / f"{name}.onnx").write_bytes((models / f"{name}.onnx").read_bytes())
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(os.path.isabs, sys.path)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            **{f"XDG_{kind}_HOME": str(folder / kind) for kind in ("CACHE", "STATE", "CONFIG", "DATA")},
        }
        _write_keys(self.folder)

    def lay(self) -> None:
        trap = f"open({str(self.sprung)!r}, 'a').write(__name__ + chr(10))\n"
        for name in TRAPS:
            (self.folder / f"{name}.py").write_text(trap)
        for package in ("sparsecc", "backends", "passes", "tests"):
            (self.folder / package).mkdir()
            (self.folder / package / "__init__.py").write_text(trap)
        (self.folder / "trap.pth").write_text(f"import traps_too; {trap}")
        (self.folder / "pyvenv.cfg").write_text(f"home = {self.folder}\n")

    def run(self, *arguments: str, script: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *(script or (str(self.script),)), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )


def _write_keys(folder: Path) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pem").write_bytes(private)
    (folder / "key.pub").write_bytes(public)


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> Trapped:
    made = Trapped(tmp_path_factory.mktemp("trapped"), ROOT / "models")
    done = made.run("compile", "digits_lstm.onnx", "--ratio", "0.2", "--no-measure", "-o", "bundle")
    assert done.returncode == 0, done.stderr
    made.lay()
    return made


CALLS = (
    ("compile digits_lstm.onnx --ratio 0.3 -o measured", 0),
    ("compile digits_resnet.onnx --emit ort --ratio 0.3 --no-measure -o ort", 0),
    ("compile digits_resnet.onnx --quantize int8 --calib synthetic --no-measure -o int8", 0),
    ("compile digits_lstm.onnx --target tensorrt --emit onnx --no-measure -o trt", 0),
    ("profile digits_lstm.onnx --layers", 0),
    ("compare digits_lstm.onnx bundle", 0),
    ("gate bundle --baseline digits_lstm.onnx", None),
    ("inspect digits_resnet.onnx", 0),
    ("verify bundle --model digits_lstm.onnx --reproduce", 0),
    ("build bundle", 2),
    ("search digits_lstm.onnx --ratios 0.3 --rounds 0 -o front", 0),
    ("sign bundle --key key.pem", 0),
    ("reduce digits_lstm.onnx --check false -o reduced.onnx", 0),
    ("cache", 0),
    ("doctor", 0),
    ("devices list", 0),
    ("devices add board ssh://pi@192.0.2.7", 0),
)
"""A command line, and the exit code it ends with; None where that is the machine's affair."""


def test_every_command_is_tried_among_traps() -> None:
    assert {line.split()[0] for line, _ in CALLS} == set(COMMANDS)


@pytest.mark.parametrize(("line", "status"), CALLS)
def test_no_trap_springs(line: str, status: int | None, trapped: Trapped) -> None:
    done = trapped.run(*line.split())
    assert not trapped.sprung.exists(), trapped.sprung.read_text()
    assert status is None or done.returncode == status, done.stderr


def test_the_traps_are_sharp(trapped: Trapped, tmp_path: Path) -> None:
    """What looks into the folder springs one."""
    trapped.run(script=("-c", "import json"))
    assert trapped.sprung.read_text() == "json\n"
    trapped.sprung.unlink()


@pytest.mark.parametrize(
    "words", [["-m", "sparsecc"], ["-msparsecc"], ["-X", "utf8", "-m", "sparsecc.__main__"]]
)
def test_as_a_module_the_folder_is_dropped_before_anything_else_is_loaded(
    words: list[str], tmp_path: Path
) -> None:
    for name in ("typing", "signal", "click", "json", "tempfile", "logging"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('sprung')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words, "--version"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sprung" not in done.stderr + done.stdout


def test_a_working_folder_that_is_gone_is_no_fault(tmp_path: Path) -> None:
    start = "os.execv(sys.executable, [sys.executable, '-m', 'sparsecc', *sys.argv[1:]])"
    code = f"import os, sys; os.rmdir(os.getcwd()); {start}"
    for words, status in (
        (["--version"], 0),
        (["inspect", str(ROOT / "models" / "digits_lstm.onnx"), "-q"], 0),
    ):
        gone = tmp_path / "gone"
        gone.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=gone, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stderr


def test_elsewhere_than_linux_and_macos_the_first_import_says_so() -> None:
    code = "import sys; sys.platform = 'win32'; import sparsecc"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Linux and macOS" in done.stderr.splitlines()[-1]


_VALUES_IN_TURN = """
import resource, sys
import numpy as np
from sparsecc.system.memory import give_back, held_by, keep_freed
import os

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def values():
    return [np.ones(4 << 20, np.float32) for _ in range(4)]  # 16 MiB each

keep_freed()
values()
begun = faults()
for _ in range(20):
    values()
again, held = faults() - begun, held_by(os.getpid())
give_back()
print(again, held - held_by(os.getpid()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is asked, and /proc")
def test_freed_memory_is_kept_for_the_next_values_until_it_is_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", _VALUES_IN_TURN], capture_output=True, text=True, check=True)
    faults, given = map(int, run.stdout.split())
    assert faults < 100  # 20 times 64 MiB are 640 pages at least, of 2 MiB each
    assert given > 48 << 20
