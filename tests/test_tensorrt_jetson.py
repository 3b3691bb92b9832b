"""The commands of examples/jetson.md, over a real SSH server, with a stand-in trtexec on its side."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sshd import Server, running_sshd
from tests.trtexec_stand_in import install

BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("asyncssh")
    for name in ("sshd", "tools"):
        (tmp_path / name).mkdir()
    tools = install(tmp_path / "tools")
    with running_sshd(tmp_path / "sshd", {"PATH": f"{tools}:{os.environ['PATH']}"}) as server:
        yield server


def test_the_edge_path_step_by_step(board: Server, root: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh" / "known_hosts").write_bytes(board.known_hosts.read_bytes())
    (home / ".ssh" / "id_ed25519").write_bytes(board.key.read_bytes())
    (home / ".ssh" / "id_ed25519").chmod(0o600)
    (home / "models").symlink_to(root / "models")
    script = "\n".join(BLOCK.findall((root / "examples" / "jetson.md").read_text()))
    environment = {k: v for k, v in os.environ.items() if k != "SSH_AUTH_SOCK"}
    environment |= {"HOME": str(home), "JETSON": board.spec, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=home, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "10.13.3" in done.stdout
    assert "100 samples; 10.13.3 trtexec --loadEngine=model.engine" in done.stdout
    assert "--shapes=image:1x1x16x16" in done.stdout
    assert "conv1 + relu eligible picked" in done.stdout
    assert "['build.json', 'build.py', 'build.sh', 'model.onnx']" in done.stdout
    bundle = {path.name for path in (home / "out-jetson").iterdir()}
    assert bundle == {"model.onnx", "model.engine", "model.layers.json", "build.log"}
    log = (home / "out-jetson" / "build.log").read_text()
    assert "Sparsity" in log
    assert not [path for path in board.folder.iterdir() if path.name.startswith("tmp.")]
