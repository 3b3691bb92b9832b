"""What a small trained mixture loses with a part of its experts, by criterion, and what a refit brings back.

    python benchmarks/experts.py [--steps 800] [--keep 5] [--json out/benchmarks/experts/points.json]

A Mixtral of three layers with eight experts each learns characters of two kinds of text that every Python has:
its standard library (code) and its reference (prose). It is exported to ONNX, calibrated on 64 windows of one kind,
left with so many experts per layer, and asked for its loss in nats per character on 128 other windows of that kind.
Training is stored and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sparsecc.calibrate.layer_statistics import collect
from sparsecc.calibrate.routers import mixtures_of
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.weights import SlotWeights
from sparsecc.data.samples import Samples
from sparsecc.decide.channels import scored
from sparsecc.graph.analysis import analyse
from sparsecc.graph.groups import find_groups
from sparsecc.graph.rewrite import remove
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.options import CompileOptions
from sparsecc.reconstruct.experts import refit_experts
from sparsecc.reconstruct.stage import kept_values
from sparsecc.runtime.segments import Walk
from tests.mixture_models import run
from tests.zoo.blocks import Select, made

FOLDER = Path("out/benchmarks/experts")
LENGTH, BATCH, LETTERS = 64, 16, 128
CRITERIA = ("random", "l2", "expert_frequency", "expert_gate", "reap", "tcess", "camera", "stun")
SETTINGS = {
    "vocab_size": LETTERS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
    "max_position_embeddings": LENGTH, "attn_implementation": "eager", "router_aux_loss_coef": 0.001,
    "experts_implementation": "grouped_mm",
}  # fmt: skip


def texts() -> dict[str, np.ndarray]:
    """Characters of each kind, the same on every machine with this Python."""
    library = Path(sysconfig.get_path("stdlib"))
    code = "".join(p.read_text(errors="ignore") for p in sorted(library.glob("*.py"))[:120])
    from pydoc_data.topics import topics

    prose = "".join(topics[name] for name in sorted(topics))
    kinds = {"code": code, "prose": prose}
    return {
        k: np.frombuffer(t.encode("ascii", "ignore"), dtype=np.uint8).astype(np.int64)
        for k, t in kinds.items()
    }


def windows(text: np.ndarray, number: int, seed: int, *, held_out: bool) -> np.ndarray:
    """Random pieces of the first nine tenths, or of the last: (number, LENGTH + 1)."""
    low, high = (len(text) * 9 // 10, len(text)) if held_out else (0, len(text) * 9 // 10)
    starts = np.random.default_rng(seed).integers(low, high - LENGTH - 1, number)
    return np.stack([text[s : s + LENGTH + 1] for s in starts])


def trained(steps: int) -> Any:
    """The mixture after so many steps; stored every hundred."""
    torch.manual_seed(0)
    model = made("MixtralForCausalLM", made("MixtralConfig", **SETTINGS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    file, done, kinds = FOLDER / "training.pt", 0, texts()
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["steps"]
    for step in range(done, steps):
        rows = [windows(t, BATCH // 2, 2 * step + i, held_out=False) for i, t in enumerate(kinds.values())]
        ids = torch.from_numpy(np.concatenate(rows))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * (1 - step / steps) + 1e-5
        logits = model(input_ids=ids[:, :-1], output_router_logits=True, labels=ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.logits.flatten(0, 1), ids[:, 1:].flatten())
        (loss + SETTINGS["router_aux_loss_coef"] * logits.aux_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "steps": step + 1}
            torch.save(state, file)
            print(f"step {step + 1}: {loss.item():.3f} nats", flush=True)
    return model.eval()


def exported(steps: int) -> Path:
    """The trained mixture as ONNX, its experts gathered by number."""
    path = FOLDER / f"mixture-{steps}.onnx"
    if not path.exists():
        model = trained(steps).eval()
        model.set_experts_implementation("batched_mm")
        ids = torch.zeros((2, LENGTH), dtype=torch.int64)
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            Select(model, ("input_ids",), ("logits",), use_cache=False), (ids,), dynamo=True,
            input_names=["input_ids"], dynamic_shapes=shapes, opset_version=18, verbose=False,
        )  # fmt: skip
        assert program is not None
        program.save(path)
    return path


def loss_of(model: ir.Model, rows: np.ndarray) -> float:
    """Nats per character."""
    parts = np.split(rows, len(rows) // BATCH)
    logits = np.concatenate([run(model, {"input_ids": part[:, :-1]})[0] for part in parts])
    top = logits.max(axis=-1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return float(-np.take_along_axis(logs, rows[:, 1:, None], axis=-1).mean())


def points(steps: int, keeps: list[int], criteria: list[str]) -> Iterator[dict[str, Any]]:
    """One row per criterion, kind of calibration text and number of experts left."""
    path, kinds = exported(steps), texts()
    tests = {kind: windows(text, 128, 7, held_out=True) for kind, text in kinds.items()}
    dense = normalise(load_ir(path))
    yield {"criterion": "dense"} | {kind: loss_of(dense, rows) for kind, rows in tests.items()}
    for kind, text in kinds.items():
        seen = np.split(windows(text, 64, 8, held_out=False)[:, :-1], 4)
        samples = Samples(tuple({"input_ids": part} for part in seen), True)
        for name in criteria:
            for kept in keeps:
                row = {"criterion": name, "calibrated": kind, "kept": kept}
                yield row | cut(path, samples, name, kept, tests[kind])


def cut(path: Path, samples: Samples, name: str, kept: int, rows: np.ndarray) -> dict[str, float]:
    """The losses of the mixture with `kept` experts per layer, as cut and with experts refitted."""
    analysis = analyse(normalise(load_ir(path)))
    experts = [g for g in find_groups(analysis) if g.kind == "expert"]
    with tempfile.TemporaryDirectory() as folder:
        evidence = Evidence(SlotWeights(analysis), collect(analysis, samples, Path(folder)))
        options = CompileOptions(criterion=name, calib="samples.npz")
        candidates = scored(analysis, experts, options, evidence)
    keep = {c.atom: c.best(kept) for c in candidates}
    left = kept_values(analysis, keep)
    remove(analysis, keep)
    found = {"cut": loss_of(analysis.model, rows)}
    names = [name for mixture in mixtures_of(analysis) for name in mixture.names]
    with tempfile.TemporaryDirectory() as folder:
        models = normalise(load_ir(path)), analysis.model
        walks = [Walk(m, samples.batches, Path(folder) / str(i), wanted=names) for i, m in enumerate(models)]
        refit_experts(mixtures_of(analysis), walks[0], walks[1], left, seed=0)
    return found | {"refitted": loss_of(analysis.model, rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--keep", default="5")
    parser.add_argument("--criteria", default=",".join(CRITERIA))
    parser.add_argument("--json", type=Path, default=FOLDER / "points.json")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    begun, rows = time.perf_counter(), []
    for row in points(options.steps, [int(k) for k in options.keep.split(",")], options.criteria.split(",")):
        rows.append(row)
        options.json.write_text(
            json.dumps({"rows": rows, "seconds": round(time.perf_counter() - begun)}, indent=1)
        )
        print(" ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()), flush=True)


if __name__ == "__main__":
    main()
