"""Does a plan keep a detector's class scores as well as one that protects the class branch by hand?

    python benchmarks/detector.py [--ratios 0.1,0.3]
    python benchmarks/detector.py --dampings 0.1,0.3,1,3,10,100 [--samples 16,48,128]

The detector is made here: shapes on noise, boxes in pixels beside scores from 0 to 1 in one output; three random
convolutions, two branches, last layers solved by ridge regression on 2,000 pictures. Plans of equal work are compared
on pictures that no compile saw: the default, and with the class branch kept whole the best of several (by the default,
by loss curves, by one threshold, the same share of all). Exits with 1 where the default's scores are more than CLOSE
decibels worse. With `--dampings`: what repair keeps of both parts at 30 % (`l2`, `uniform`) where the damping of every
layer is so many times what its own samples ask for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
from onnx import parser

import sparsecc
from sparsecc.compilation import Compilation
from sparsecc.graph.analysis import analyse
from sparsecc.graph.rewrite import remove
from sparsecc.loading.normalise import normalise
from sparsecc.loss.measure import Reference, quality
from sparsecc.loss.parts import parts_of_outputs
from sparsecc.options import CompileOptions
from sparsecc.reconstruct import layerwise
from sparsecc.reconstruct.damping import damping_for
from sparsecc.reconstruct.stage import kept_values, run_repair
from sparsecc.runtime.session import open_session
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.stages import DECIDING, Work, walk

CLOSE = 3.0
"""Decibels by which the default may be worse than the best plan with the class branch protected."""
SIDE, CELLS, CLASSES = 32, 4, 3
HAND = ("auto", "distortion", "global", "uniform")
"""Allocators of the plans with the class branch protected."""
NET = """<ir_version: 9, opset_import: ["": 18]> detector (float[n,3,32,32] image) => (float[n,8,16] found) {
    a1 = Conv<strides=[2,2], pads=[1,1,1,1]>(image, stem1) r1 = Relu(a1)
    a2 = Conv<strides=[2,2], pads=[1,1,1,1]>(r1, stem2) r2 = Relu(a2)
    a3 = Conv<strides=[2,2], pads=[1,1,1,1]>(r2, stem3) r3 = Relu(a3)
    b1 = Conv<pads=[1,1,1,1]>(r3, box1) br = Relu(b1)
    c1 = Conv<pads=[1,1,1,1]>(r3, cls1) cr = Relu(c1)
    b2 = Conv(br, box2, box_bias) shares = Sigmoid(b2) bp = Mul(shares, pixels) boxes = Reshape(bp, flat)
    c2 = Conv(cr, cls2, cls_bias) cp = Sigmoid(c2) scores = Reshape(cp, flat)
    found = Concat<axis=1>(boxes, scores) }"""
SHAPES = {
    "stem1": (16, 3, 3, 3), "stem2": (32, 16, 3, 3), "stem3": (64, 32, 3, 3),
    "box1": (64, 64, 3, 3), "cls1": (64, 64, 3, 3),
}  # fmt: skip


def shape_of(kind: int, down: np.ndarray, across: np.ndarray, size: float) -> Any:
    """Where a square (0), a disk (1) or a cross (2) is, at these distances from its centre (an array of bools)."""
    down, across = np.abs(down), np.abs(across)
    return [
        np.maximum(down, across) < size,
        np.hypot(down, across) < size,
        (np.minimum(down, across) < size / 3) & (np.maximum(down, across) < size),
    ][kind]


def pictures(number: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images (n, 3, 32, 32), boxes (n, 4, 4, 4) as shares of the side, answers (n, 4, 4, 4): object, classes).

    A square, a disk or a cross of any colour, size and place stands in each; the cell that holds its centre answers.
    """
    draw = np.random.default_rng(seed)
    images = 0.3 * draw.standard_normal((number, 3, SIDE, SIDE)).astype(np.float32)
    boxes, answers = (np.zeros((number, 4, CELLS, CELLS), np.float32) for _ in range(2))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for image, box, answer in zip(images, boxes, answers, strict=True):
        y, x, size = *draw.uniform(6, 26, 2), draw.uniform(3, 7)
        kind, color = int(draw.integers(CLASSES)), draw.uniform(0.5, 1.5, (3, 1))
        image[:, shape_of(kind, rows - y, columns - x, size)] += color
        cell = int(y * CELLS / SIDE), int(x * CELLS / SIDE)
        box[:, cell[0], cell[1]] = y / SIDE, x / SIDE, 2 * size / SIDE, 2 * size / SIDE
        answer[0, cell[0], cell[1]] = answer[1 + kind, cell[0], cell[1]] = 1
    return images, boxes, answers


def detector() -> onnx.ModelProto:
    """The detector, with its last layers solved."""
    model, draw = parser.parse_model(NET), np.random.default_rng(0)
    weights = {
        name: (draw.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    weights |= {
        "pixels": np.array([float(SIDE)], np.float32),
        "flat": np.array([0, 4, CELLS * CELLS], np.int64),
    }
    images, boxes, answers = pictures(2000, seed=1)
    known = {"box2": (64, 4, 1, 1), "cls2": (64, 4, 1, 1)}
    blank = {n: np.zeros((4, 64, 1, 1), np.float32) for n in known}
    biases = {n: np.zeros(4, np.float32) for n in ("box_bias", "cls_bias")}
    shown = ir.from_proto(with_constants(model, {**weights, **blank, **biases}))
    values = {v.name: v for node in shown.graph for v in node.outputs}
    shown.graph.outputs.extend([values["br"], values["cr"]])
    features = open_session(normalise(shown)).run({"image": images})
    is_there = answers[:, :1] > 0
    for branch, wanted, where in (("box", boxes, is_there), ("cls", answers, np.ones_like(is_there))):
        solved, bias = ridge(
            features[f"{branch[0]}r"],
            np.where(wanted > 0.5, 2.0, -2.0)
            if branch == "cls"
            else np.log(np.clip(wanted, 0.02, 0.98) / (1 - np.clip(wanted, 0.02, 0.98))),
            where,
        )
        weights |= {f"{branch}2": solved, f"{branch}_bias": bias}
    return with_constants(model, weights)


def ridge(features: np.ndarray, wanted: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 1x1 convolution (outputs, inputs, 1, 1) and its bias that give what is wanted at the places `where`."""
    chosen = where[:, 0].reshape(-1)
    rows = np.moveaxis(features, 1, -1).reshape(-1, features.shape[1])[chosen].astype(np.float64)
    goals = np.moveaxis(wanted, 1, -1).reshape(-1, wanted.shape[1])[chosen]
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    found = np.linalg.solve(rows.T @ rows + 1e-2 * len(rows) * np.eye(rows.shape[1]), rows.T @ goals)
    return found[:-1].T[:, :, None, None].astype(np.float32), found[-1].astype(np.float32)


def with_constants(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of the model with these initializers."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    for node in made.graph.node:
        node.name = node.input[1] if node.op_type == "Conv" else node.output[0]
    return made


def kept(dense: Path, small: Path) -> dict[str, float]:
    """Decibels of boxes and scores on pictures that nothing was made from."""
    feeds = {"image": pictures(400, seed=9)[0]}
    parts = parts_of_outputs(analyse(normalise(ir.load(dense))))
    wanted, found = (open_session(path).run(feeds) for path in (dense, small))
    losses = Reference([wanted], parts).losses([found]).parts
    return dict(zip(("boxes", "scores"), map(quality, losses.values()), strict=True))


def row(model: Path, calib: Path, ratio: float, folder: Path, hand: Sequence[str] = HAND) -> dict[str, Any]:
    """The default, and the best for the scores with the class branch protected, at one ratio."""
    options: dict[str, Any] = {"ratio": ratio, "align": 1, "measure": False, "calib": str(calib)}
    made = sparsecc.compile(model, output=folder / "default", **options)
    default = kept(model, folder / "default" / "model.onnx")
    by_hand = {}
    for allocator in hand:
        out = folder / f"hand_{allocator}"
        sparsecc.compile(model, output=out, keep=["cls1"], allocator=allocator, **options)
        by_hand[allocator] = kept(model, out / "model.onnx")
    best = max(by_hand, key=lambda name: by_hand[name]["scores"])
    return {
        "ratio": ratio,
        "removed": made.report["removed"]["share"],
        "default": default,
        "best": best,
        "by_hand": by_hand,
    }


def rows(ratios: list[float], folder: Path, hand: Sequence[str] = HAND) -> list[dict[str, Any]]:
    """One row a ratio."""
    onnx.save(detector(), folder / "detector.onnx")
    np.savez(folder / "calib.npz", image=pictures(128, seed=3)[0])
    found = []
    for ratio in ratios:
        (folder / str(ratio)).mkdir()
        found.append(row(folder / "detector.onnx", folder / "calib.npz", ratio, folder / str(ratio), hand))
    return found


def dampings(factors: Sequence[float], number: int, folder: Path) -> None:
    """Print what repair from so many pictures keeps of the parts, by the factor on the damping of every layer."""
    dense = folder / "detector.onnx"
    onnx.save(detector(), dense)
    np.savez(folder / "calib.npz", image=pictures(number, seed=3)[0])
    options = CompileOptions(
        ratio=0.3,
        align=1,
        measure=False,
        target="onnx",
        criterion="l2",
        allocator="uniform",
        calib=folder / "calib.npz",
    )
    work = walk(Work(Compilation(dense, options, Scratch(folder))), DECIDING)
    analysis, keep = work.analysis, work.decision.choice.keep
    kept_ones = kept_values(analysis, keep)
    remove(analysis, keep)
    right = damping_for
    for factor in factors:
        model = analysis.model.clone()

        def damped(*given: Any, factor: float = factor, **named: Any) -> float:
            return factor * right(*given, **named)

        with mock.patch.object(layerwise, "damping_for", damped):
            run_repair(work.compilation, work.compilation.dense.path, model, kept_ones)
        ir.save(model, folder / "small.onnx")
        told = kept(dense, folder / "small.onnx")
        print(
            f"{number} pictures, {factor:g} times: scores {told['scores']:.2f}, boxes {told['boxes']:.2f} dB",
            flush=True,
        )


def numbers(text: str) -> list[float]:
    """Split at commas."""
    return [float(one) for one in text.split(",")]


def main() -> None:
    """Print both plans beside each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ratios", type=numbers, default=[0.1, 0.3])
    parser.add_argument("--dampings", type=numbers)
    parser.add_argument("--samples", type=numbers, default=[16, 48, 128])
    given = parser.parse_args()
    if given.dampings:
        for number in given.samples:
            with tempfile.TemporaryDirectory() as scratch:
                dampings(given.dampings, int(number), Path(scratch))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = rows(given.ratios, Path(folder))
    print("| less | default: scores, boxes | class branch protected: scores, boxes | by |\n|---|---|---|---|")
    for one in found:
        hand = one["by_hand"][one["best"]]
        cells = [f"{side['scores']:.1f}, {side['boxes']:.1f} dB" for side in (one["default"], hand)]
        print(f"| {one['ratio']:.0%} | {' | '.join(cells)} | {one['best']} |")
    worse = [one for one in found if one["default"]["scores"] < one["by_hand"][one["best"]]["scores"] - CLOSE]
    sys.exit(bool(worse))


if __name__ == "__main__":
    main()
