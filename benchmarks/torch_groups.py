"""Groups of coupled slots through torch.export and through the ONNX file of the same module, side by side.

    python benchmarks/torch_groups.py [--exporter dynamo] [--out FILE] [--seconds 280] [NAME …]
    python benchmarks/torch_groups.py --markdown      # the stored rows as they stand in docs/torch.md

`equal` says that the free groups are the same sets of (parameter, axis, places there), as far as both sides have the
parameter (exporters fold and fuse some). Then a random half of every group that both sides have is removed on
both sides; `error` is the largest difference of their outputs, relative to the largest output. Entries that
are stored already are skipped; the run stops after `--seconds`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsecc.errors import SparseccError
from tests.torch_sides import DIFFERENCES, plan_error, sides
from tests.zoo import ZOO
from tests.zoo.export import ZooUnavailable

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4


def row(name: str, exporter: Any) -> dict[str, Any]:
    """One entry; `skipped` where the exporter has no file of it."""
    begun = time.perf_counter()
    try:
        both = sides(name, exporter)
        differ = sorted(set(both.torch_groups) ^ set(both.onnx_groups), key=sorted)
        found = {
            "torch": len(both.torch_groups), "onnx": len(both.onnx_groups), "shared": len(both.shared),
            "equal": both.is_equal, "differ": [sorted(f"{t}:{a}" for t, a, _ in m) for m in differ][:4],
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            found["error"] = plan_error(both, ZOO[name].build().example(), Path(scratch))
    except ZooUnavailable as e:
        return {"skipped": str(e)}
    except (SparseccError, AssertionError) as e:
        found = {"equal": False, "failure": f"{type(e).__name__}: {str(e)[:300]}"}
    return {**found, "seconds": time.perf_counter() - begun}


def line(name: str, found: dict[str, Any]) -> str:
    """One row of the table."""
    if "skipped" in found:
        return f"{name:28s} skipped: {found['skipped'][:80]}"
    if "failure" in found:
        return f"{name:28s} FAILED {found['failure'][:120]}"
    groups = f"{found['torch']:3d} torch {found['onnx']:3d} onnx {found['shared']:3d} shared"
    verdict = "equal" if found["equal"] else f"DIFFER {found['differ'][:2]}"
    return f"{name:28s} {groups}  error {found['error']:.0e}  {verdict}"


def markdown(rows: dict[str, Any]) -> str:
    """The table of docs/torch.md: entries that differ with the reason, then those that are equal."""
    done = {n: r for n, r in sorted(rows.items()) if "skipped" not in r}
    equal = {n: r for n, r in done.items() if r["equal"] and r["error"] <= TOLERANCE}
    lines = [
        "| entry | groups in torch | in ONNX | on both sides | error | why |",
        "|---|---|---|---|---|---|",
    ]
    for name in done.keys() - equal.keys():
        found, known = done[name], DIFFERENCES.get(name)
        why = known.reason if known else found.get("failure", "not explained")
        counts = " | ".join(str(found.get(side, "")) for side in ("torch", "onnx", "shared"))
        lines.append(f"| {name} | {counts} | {found.get('error', float('nan')):.0e} | {why} |")
    lines[2:] = sorted(lines[2:])
    worst = max((r["error"] for r in equal.values()), default=0.0)
    listed = ", ".join(f"{n} {r['torch']}" for n, r in equal.items())
    total = f"{len(done)} entries, {len(rows) - len(done)} more that the exporter has no file of."
    return "\n".join([*lines, "", f"{total} Equal, error at most {worst:.0e}, {len(equal)}: {listed}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--exporter", choices=("dynamo", "torchscript"), default="dynamo")
    parser.add_argument("--seconds", type=float, default=280)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "benchmarks" / "torch_groups.json")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    if given.markdown:
        print(markdown(rows))
        return
    started = time.monotonic()
    for name in given.names or ZOO:
        if name not in rows or name in given.names:
            if time.monotonic() - started > given.seconds:
                break
            rows[name] = row(name, given.exporter)
            given.out.write_text(json.dumps(rows, indent=1))
        print(line(name, rows[name]), flush=True)
    done = [r for r in rows.values() if "skipped" not in r]
    right = [r for r in done if r["equal"] and r["error"] <= TOLERANCE]
    print(f"{len(right)} of {len(done)}: the same groups, and the same outputs to {TOLERANCE:g}")


if __name__ == "__main__":
    main()
