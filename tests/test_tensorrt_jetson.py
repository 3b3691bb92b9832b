"""The commands of examples/jetson.md, over a real SSH server, with a stand-in trtexec on its side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.sshd import Server
from tests.trtexec_stand_in import home_for

BOARD = "nano@jetson.local"
NEED_A_BOARD = ("sudo ", "ssh-copy-id ")


def commands(page: str) -> list[str]:
    """The indented lines of the page, those that go on joined."""
    text = page.replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("    ") and line.strip()]


def on_this_board(command: str, board: Server, home: Path) -> str:
    """The same command with the loopback server as the board."""
    place = (
        command.replace(f"ssh://{BOARD}", board.spec)
        .replace(BOARD, "board")
        .replace("/tmp/", f"{board.folder}/")
    )
    for program in ("ssh", "scp"):
        if place.startswith(f"{program} "):
            return place.replace(program, f"{program} -F {home}/.ssh/config", 1)
    return place.replace("sparsecc ", f"{sys.executable} -m sparsecc ", 1)


def test_every_command_of_the_page_runs(board: Server, root: Path, tmp_path: Path) -> None:
    home, environment = home_for(board, tmp_path / "home")
    (home / "models").symlink_to(root / "models")
    environment["PYTHONPATH"] = str(root)
    run, said = [], {}
    for command in commands((root / "examples" / "jetson.md").read_text()):
        if command.startswith(NEED_A_BOARD):
            continue
        done = subprocess.run(
            ["bash", "-c", on_this_board(command, board, home)],
            cwd=home, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        run.append(command.split()[0] + " " + command.split()[1])
        said[command] = done.stdout
    assert run.count("sparsecc compile") == 3
    assert run.count("sparsecc profile") == 3
    assert {"sparsecc build", f"ssh {BOARD}", "scp -r"} <= set(run)
    first = next(text for command, text in said.items() if "-o out-jetson" in command)
    assert "Engine: 2 layers (1 fp16, 1 int8); sparse kernels for 1 of 2 eligible layers." in first
    _check_what_came_of_it(home, board)


def _check_what_came_of_it(home: Path, board: Server) -> None:
    bundle = {path.name for path in (home / "out-jetson").iterdir()}
    assert bundle >= {"model.onnx", "model.engine", "model.layers.json", "build.log", "manifest.json"}
    report = json.loads((home / "out-jetson" / "report.json").read_text())
    assert report["build"]["version"] == "10.13.3"
    assert report["build"]["command"][0] == "trtexec"
    assert report["after"]["engine_bytes"] == (home / "out-jetson" / "model.engine").stat().st_size
    assert report["after"]["bytes"] == (home / "out-jetson" / "model.onnx").stat().st_size
    assert (home / "out-emitted" / "model.engine").is_file()
    assert (board.folder / "out-emitted" / "model.engine").read_bytes().startswith(b"stand-in plan")
    for name in ("pruned.json", "dense.json"):
        profile = json.loads((home / name).read_text())
        assert profile["gpu_ms"]["n"] == len(profile["samples_ms"]["gpu"]) == 100
        assert profile["device"]["trtexec"] == "10.13.3"
        assert "--loadEngine=model.engine" in profile["device"]["command"]
    assert not [path for path in board.folder.iterdir() if path.name.startswith("tmp.")]
