"""A stand-in for NVIDIA's trtexec, as a script, layer information in the form that TensorRT 10 writes, and a board
that has both: a real SSH server on the loopback.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.sshd import Server, running_sshd

LAYERS_OF_10 = {
    "Layers": [
        {
            "Name": "conv1 + relu",
            "LayerType": "CaskConvolution",
            "ParameterType": "Convolution",
            "Inputs": [
                {"Name": "x", "Dimensions": [1, 3, 16, 16], "Format/Datatype": "Row major linear FP16 format"}
            ],
            "Outputs": [
                {
                    "Name": "b",
                    "Dimensions": [1, 36, 16, 16],
                    "Format/Datatype": "Channel major FP16 format where channel % 8 == 0",
                }
            ],
            "OutMaps": 36,
            "HasSparseWeights": 1,
            "TacticName": "sm80_xmma_fprop_sparse_conv_f16f16_f16f32_f16_nhwc",
            "Metadata": "[ONNX Layer: conv1]\u001e[ONNX Layer: relu]",
        },
        {
            "Name": "conv2",
            "LayerType": "CaskConvolution",
            "Inputs": [],
            "Outputs": [
                {
                    "Name": "y",
                    "Dimensions": [1, 32, 16, 16],
                    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format",
                }
            ],
            "OutMaps": 40,
            "HasSparseWeights": 1,
            "TacticName": "sm80_xmma_fprop_implicit_gemm_int8",
        },
    ],
    "Bindings": ["x", "y"],
}

STAND_IN = f"""#!{sys.executable}
# A stand-in for NVIDIA's trtexec: it builds nothing, it only takes the flags and writes the files.
import json, pathlib, sys
flags = dict(a.partition("=")[::2] for a in sys.argv[1:])
if "--help" in flags:
    print("&&&& RUNNING TensorRT.trtexec [TensorRT v101303]")
    sys.exit(0)
if "--onnx" in flags:
    data = pathlib.Path(flags["--onnx"]).read_bytes()
    if b"poison" in data:
        why = "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation"
        print("[11/20/2026-10:00:00] [E] Error[10]:", why, "for node poison.)", file=sys.stderr)
        print("[11/20/2026-10:00:00] [E] Engine could not be created from network", file=sys.stderr)
        sys.exit(1)
    pathlib.Path(flags["--saveEngine"]).write_bytes(b"stand-in plan of " + str(len(data)).encode())
    pathlib.Path(flags["--exportLayerInfo"]).write_text(json.dumps({json.dumps(LAYERS_OF_10)!s}))
    print("[I] (Sparsity) Layers eligible for sparse math: conv1")
if "--loadEngine" in flags:
    assert pathlib.Path(flags["--loadEngine"]).read_bytes().startswith(b"stand-in plan")
    samples = [{{"computeMs": 1.5, "latencyMs": 2.0}}] * int(flags["--iterations"])
    pathlib.Path(flags["--exportTimes"]).write_text(json.dumps(samples))
    if "--exportProfile" in flags:
        layers = [{{"count": 1}}, {{"name": "conv1", "averageMs": 0.5}}]
        pathlib.Path(flags["--exportProfile"]).write_text(json.dumps(layers))
"""


def install(folder: Path) -> Path:
    """Write the stand-in into `folder` as `trtexec`; returns the folder, for a PATH."""
    (folder / "trtexec").write_text(STAND_IN)
    (folder / "trtexec").chmod(0o755)
    return folder


@contextmanager
def running_board(folder: Path) -> Iterator[Server]:
    """An SSH server whose sessions find the stand-in on their PATH. Skips where there is no sshd."""
    for name in ("sshd", "tools"):
        (folder / name).mkdir()
    tools = install(folder / "tools")
    with running_sshd(folder / "sshd", {"PATH": f"{tools}:{os.environ['PATH']}"}) as server:
        yield server


def home_for(board: Server, home: Path) -> tuple[Path, dict[str, str]]:
    """A home folder from which the board is known, also as host `board` to ssh itself, and the environment."""
    keys = home / ".ssh"
    keys.mkdir(parents=True, mode=0o700)
    (keys / "known_hosts").write_bytes(board.known_hosts.read_bytes())
    (keys / "id_ed25519").write_bytes(board.key.read_bytes())
    (keys / "id_ed25519").chmod(0o600)
    (keys / "config").write_text(
        f"Host board\n HostName 127.0.0.1\n Port {board.port}\n User {board.address.user}\n"
        f" IdentityFile {keys}/id_ed25519\n UserKnownHostsFile {keys}/known_hosts\n"
    )
    kept = {k: v for k, v in os.environ.items() if k != "SSH_AUTH_SOCK"}
    return home, kept | {"HOME": str(home)}
