"""Does alignment pay? A ResNet-50-sized CNN at half its multiply-accumulates, with and without aligned channels.

    python benchmarks/alignment.py [--ratio 0.5] [--json FILE]

Both compiled models are timed against the dense one, and then against each other, in interleaved pairs at one
thread. Needs torch (the model is exported on first use).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sparsecc
from tests.zoo.large import large_path

SHAPE = (1, 3, 224, 224)


def main() -> None:
    """Compile twice, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    dense = large_path("resnet50", "torchscript")
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundles = {}
        for name, align in (("aligned", "auto"), ("unaligned", 1)):
            out = Path(folder) / name
            made = sparsecc.compile(
                dense,
                ratio=given.ratio,
                align=align,
                output=out,
                inputs={_input(dense): SHAPE},
                measure=False,
            )
            bundles[name] = out
            rows[name] = _against(dense, out) | {"macs": made.report["after"]["macs"]}
            print(f"{name:10s} {_shown(rows[name])}, {rows[name]['macs']:,} MACs left")
        rows["aligned against unaligned"] = _against(bundles["unaligned"], bundles["aligned"])
        print(f"aligned against unaligned: {_shown(rows['aligned against unaligned'])}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


def _against(before: Path, after: Path) -> dict[str, Any]:
    name = _input(before if before.is_file() else before / "model.onnx")
    compared = sparsecc.compare(before, after, inputs={name: SHAPE}, threads=1)
    return dict(compared["latency"]["speedup"])


def _input(path: Path) -> str:
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def _shown(speedup: dict[str, Any]) -> str:
    low, high = speedup["ci95"]
    return f"{speedup['estimate']:.2f}x faster (95 % interval {low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
