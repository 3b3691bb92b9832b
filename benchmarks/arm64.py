"""Whether bundles for ARM64 give on an (emulated) ARM64 what they give here.

    python benchmarks/arm64.py --qemu /usr/bin/qemu-aarch64 -o arm64.json

Debian's ARM64 Python and ONNX Runtime's ARM64 wheel are fetched once into --root and run by qemu's user-mode
emulation; nothing is installed. Needs Debian or Ubuntu (apt-get, dpkg-deb) and qemu: version 10 runs ONNX
Runtime 1.31, version 7.2 dies while it is loaded. Emulated times mean nothing and are not shown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import sparsecc
from sparsecc.runtime.numerics import worst_error
from sparsecc.runtime.session import open_session

MODELS = Path(__file__).resolve().parents[1] / "models"
Feeds = dict[str, np.ndarray]
FORMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "pruned": {"ratio": 0.5},
    "int8": {"quantize": "int8"},
    "pruned int8": {"ratio": 0.5, "quantize": "int8"},
    "int8-dynamic": {"quantize": "int8-dynamic"},
    "int4": {"quantize": "int4"},
}
IMAGES = 100
CORE = "cortex-a76"
"""A core with dot products and half precision but no SVE, whose emulation is many times slower."""
PYTHON = "3.11"
DEBS = """python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libgcc-s1 libstdc++6 zlib1g
libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libuuid1""".split()
WHEELS = (f"onnxruntime=={onnxruntime.__version__}", "numpy", "flatbuffers", "protobuf", "packaging")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
SOURCE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n"
RUN = """
import sys, numpy, onnxruntime
model, given, results = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
names = [value.name for value in session.get_outputs()]
with numpy.load(given) as feeds:
    numpy.savez(results, **dict(zip(names, session.run(None, dict(feeds)))))
"""


@dataclass(frozen=True)
class Board:
    """An emulated ARM64 machine: the emulator, and a folder with a system and its Python packages."""

    qemu: str
    root: Path

    def prepare(self) -> None:
        """Fetch what is missing, into `root` alone: apt gets a state of its own."""
        if (self.root / "ready").exists():
            return
        system, state = self.root / "system", self.root / "apt"
        for folder in (system, self.root / "debs", state / "lists/partial", state / "cache/archives/partial"):
            folder.mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        (state / "sources.list").write_text(SOURCE)
        config = state / "apt.conf"
        config.write_text(
            'APT::Architecture "arm64";\nAPT::Architectures { "arm64"; };\n'
            f'Dir::State "{state}";\nDir::State::status "{state}/status";\nDir::Cache "{state}/cache";\n'
            f'Dir::Etc::sourcelist "{state}/sources.list";\nDir::Etc::sourceparts "-";\n'
        )
        environment = {**os.environ, "APT_CONFIG": str(config)}
        for command in (["update"], ["download", *DEBS]):
            subprocess.run(
                ["apt-get", "-q", *command], cwd=self.root / "debs", env=environment, check=True, stdout=2
            )
        for package in sorted((self.root / "debs").glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(system)], check=True)
        platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        target = ["--target", str(self.root / "site"), "--python-version", PYTHON]
        subprocess.run([*pip, *target, *platforms, *WHEELS], check=True)
        (self.root / "ready").touch()

    def run(self, model: Path, feeds: Feeds) -> Feeds:
        """What a model gives there."""
        system = self.root / "system"
        environment = {
            "QEMU_LD_PREFIX": str(system),
            "PYTHONHOME": str(system / "usr"),
            "PYTHONPATH": str(self.root / "site"),
            "ORT_DISABLE_TELEMETRY": "1",
        }
        with tempfile.TemporaryDirectory() as scratch:
            files = [str(Path(scratch) / name) for name in ("feeds.npz", "results.npz")]
            np.savez(files[0], **feeds)  # type: ignore[arg-type]
            python = str(system / f"usr/bin/python{PYTHON}")
            done = subprocess.run(
                [self.qemu, "-cpu", CORE, python, "-c", RUN, str(model), *files],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                sys.exit(f"{model} does not run under {self.qemu}: {done.stderr.strip()[-300:]}")
            with np.load(files[1]) as found:
                return dict(found)


def row(board: Board, name: str, form: str, folder: Path) -> dict[str, Any]:
    """Compile one model for ARM64 in one form; its outputs on IMAGES test images here and there."""
    sys.path.insert(0, str(MODELS))
    import digits

    made = sparsecc.compile(
        MODELS / f"{name}.onnx", target="onnxruntime-arm64", output=folder / "out", force=True, measure=False,
        calib=f"{MODELS / 'digits.py'}:calibration", **FORMS[form],
    )  # fmt: skip
    assert made.bundle is not None
    model = made.bundle / "model.onnx"
    runner = open_session(model)
    with np.load(digits.DATA) as data:
        images, labels = digits.prepare(data["test_images"][:IMAGES]), data["test_labels"][:IMAGES]
    there = board.run(model, {"image": images})
    here = runner.run({"image": images})
    right = {side: float((found["logits"].argmax(1) == labels).mean()) for side, found in
             (("there", there), ("here", here))}  # fmt: skip
    return {
        "model": name,
        "form": form,
        "worst_relative_error": worst_error(here, there),
        "accuracy_there": right["there"],
        "accuracy_here": right["here"],
    }


def main() -> None:
    """Print a row per model and form; fail where a float model differs by more than rounding."""
    parser = argparse.ArgumentParser(description="Bundles for ARM64, on an emulated ARM64.")
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    parser.add_argument(
        "--qemu", default=found, help="qemu's user-mode emulator for ARM64, version 10 or later"
    )
    parser.add_argument("--root", type=Path, default=Path.home() / ".cache/sparsecc-arm64")
    parser.add_argument("-o", "--output", type=Path, default=Path("arm64.json"))
    parser.add_argument("names", nargs="*", default=["digits_resnet", "digits_vit", "digits_lstm"])
    given = parser.parse_args()
    if given.qemu is None or shutil.which("apt-get") is None:
        print("skipped: needs apt-get and qemu-aarch64 (apt install qemu-user)")
        return
    board = Board(given.qemu, given.root)
    board.prepare()
    rows = []
    for name in given.names:
        for form in FORMS:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(row(board, name, form, Path(folder)))
            told = f"{rows[-1]['accuracy_there']:.4f} there, {rows[-1]['accuracy_here']:.4f} here"
            error = rows[-1]["worst_relative_error"]
            print(f"{name} {form}: accuracy {told}, worst difference {error:.2e}", flush=True)
            given.output.write_text(json.dumps(rows, indent=1) + "\n")
    off = [r for r in rows if r["form"] in ("dense", "pruned") and r["worst_relative_error"] > 1e-4]
    sys.exit(f"{len(off)} float models differ" if off else 0)


if __name__ == "__main__":
    main()
