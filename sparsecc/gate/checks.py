"""What a gate checks without a clock: kernels, work, size, channels, and whether the answers are the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.bundle import Bundle
from sparsecc.cost import summary
from sparsecc.errors import InputError
from sparsecc.gate.config import CHECKS
from sparsecc.graph.analysis import analyse
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loss.answers import questions
from sparsecc.loss.parts import parts_of_outputs
from sparsecc.loss.quality import told
from sparsecc.runtime.session import open_session


@dataclass(frozen=True)
class Check:
    """A check that needs no clock: a number before and after, and whether it stayed within bounds."""

    name: str
    before: float | None
    after: float | None
    ok: bool
    detail: str


def model_file(path: Path) -> Path:
    """The model to load: the file itself, or that of a bundle folder. InputError when there is none."""
    if path.is_dir():
        for name in ("model.onnx", "model.ort"):
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path}: no model.onnx in this folder: give a bundle or an ONNX file")
    if not path.is_file():
        raise InputError(f"{path}: no such file: give an ONNX file or a bundle folder")
    return path


def clock_free_checks(
    current: Path, baseline: Path, max_regression: float, names: tuple[str, ...] = CHECKS
) -> tuple[Check, ...]:
    """Integer kernels lost, multiply-accumulates and size grown, channels out of step."""
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        raise InputError(f"unknown gate check '{unknown[0]}': checks are {', '.join(CHECKS)}")
    now, before = model_file(current), model_file(baseline)
    found: list[Check] = []
    if {"kernels", "channels"} & set(names):
        from sparsecc.runtime.kernel_census import census

        was, is_ = census(before), census(now)
        kernels = _fewer("kernels", sum(was["integer"].values()), sum(is_["integer"].values()))
        outside = [sum(conv["effect"] == "outside" for conv in c["misaligned"]) for c in (was, is_)]
        channels = _more("channels", outside[0], outside[1], 0.0, "convolutions outside the blocked layout")
        found += [check for check in (kernels, channels) if check.name in names]
    if "macs" in names:
        found.append(_more("macs", _macs(baseline), _macs(current), max_regression, "multiply-accumulates"))
    if "size" in names:
        found.append(_more("size", _bytes(before), _bytes(now), max_regression, "bytes of model"))
    return tuple(found)


def _fewer(name: str, before: int, after: int) -> Check:
    ok = after >= before
    return Check(name, before, after, ok, f"integer kernels: {before} before, {after} now")


def _more(name: str, before: float | None, after: float | None, allowed: float, what: str) -> Check:
    if before is None or after is None:
        return Check(name, before, after, True, f"{what}: not recorded on both sides")
    return Check(
        name,
        before,
        after,
        after <= before * (1 + allowed),
        f"{what}: {before:,.0f} before, {after:,.0f} now",
    )


def same_answers(before: Path, now: Path, samples: Sequence[Mapping[str, np.ndarray]], least: float) -> Check:
    """The share of the baseline's answers (classes, labels, neighbours) that stay the same on `samples`, of the output
    that keeps fewest. InputError where its outputs hold no answers."""
    model = normalise(load_ir(before))
    dense, found = ([open_session(path).run(feeds) for feeds in samples] for path in (before, now))
    if set(dense[0]) != set(found[0]):
        names = (", ".join(one[0]) for one in (dense, found))
        return Check("outputs", None, None, False, "outputs: {} before, {} now".format(*names))
    parts = parts_of_outputs(analyse(model))
    shares = [one["share"] for one in told(dense, found, parts, questions(model, parts)).get("agreement", ())]
    if not shares:
        raise InputError(
            f"--min-agreement: {before.name} gives no classes or labels to compare: leave it out"
        )
    lowest = min(shares)
    detail = f"outputs: {lowest:.1%} of answers the same, {least:.1%} asked"
    return Check("outputs", least, lowest, lowest >= least, detail)


def _macs(path: Path) -> float | None:
    """The multiply-accumulates of one sample: of a model as it stands, or those that a bundle's report.json records.

    None for what no ONNX file says.
    """
    recorded = _recorded_macs(path)
    with suppress(InputError):
        if recorded is None and (file := model_file(path)).suffix == ".onnx":
            return summary.macs(analyse(normalise(load_ir(file))), {}) or None
    return recorded


def _recorded_macs(path: Path) -> float | None:
    after: Any = None
    if (path / "report.json").is_file():
        with suppress(InputError):
            after = Bundle(path).report.get("after")
    macs = after.get("macs") if isinstance(after, dict) else None
    is_count = isinstance(macs, int | float) and not isinstance(macs, bool) and 0 <= macs < math.inf
    return float(macs) if is_count and macs is not None else None


def _bytes(model: Path) -> int:
    """The size of a model file and of the weights beside it."""
    data = model.with_name(f"{model.name}.data")
    return model.stat().st_size + (data.stat().st_size if data.is_file() else 0)
