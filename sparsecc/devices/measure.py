"""Time two ONNX models on a device with the runner, and believe no answer that cannot be true."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.devices import runner
from sparsecc.devices.device import Device
from sparsecc.errors import InputError, UnavailableError
from sparsecc.escaping import one_line
from sparsecc.system.temp_folders import temporary_folder

_TOOL = Path(runner.__file__)
_LONGEST_NS = 3_600_000_000_000
_MOST_WATTS = 10_000


@dataclass(frozen=True)
class PairTimes:
    """Raw interleaved samples. Arrays have one entry per pair, in the order taken; times are in nanoseconds.

    `b_first` says which model of the pair ran first. `facts` holds the machine, ONNX Runtime's version there,
    clocks and temperature before and after, and the microjoules of all runs where the device counts them.
    """

    b_first: np.ndarray
    wall_a: np.ndarray
    cpu_a: np.ndarray
    wall_b: np.ndarray
    cpu_b: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)


def sample_on(
    device: Device,
    a: Path,
    b: Path,
    feeds: Mapping[str, np.ndarray],
    *,
    pairs: int,
    warmup: int = 5,
    threads: int = 1,
    seed: int = 0,
    timeout: float = 1800.0,
) -> PairTimes:
    """Copy runner, models and feeds over (each checked by hash) and take `pairs` interleaved samples.

    UnavailableError when the device lacks Python, numpy or onnxruntime; InputError when a model does not run
    there or the answer is not believable.
    """
    nonce = secrets.token_hex(16)
    request = {"a": "a.onnx", "b": "b.onnx", "feeds": "feeds.npz", "pairs": pairs, "warmup": warmup}
    request |= {"threads": threads, "seed": seed, "nonce": nonce}
    device.put(_TOOL, "runner.py")
    for model, name in ((a, "a.onnx"), (b, "b.onnx")):
        device.put(model, name)
        data = model.with_name(model.name + ".data")
        if data.is_file():
            device.put(data, data.name)
    with temporary_folder("scratch") as folder:
        arrays: dict[str, Any] = dict(feeds)
        np.savez(Path(folder) / "feeds.npz", **arrays)
        (Path(folder) / "request.json").write_text(json.dumps(request), encoding="ascii")
        for name in ("feeds.npz", "request.json"):
            device.put(Path(folder) / name, name)
    done = device.run([device.python, "runner.py", "request.json"], timeout=timeout)
    if done.status != 0:
        raise _failed(device, done.stderr)
    return believed(done.stdout, nonce=nonce, pairs=pairs, seconds=done.seconds, where=device.spec)


def believed(text: str, *, nonce: str, pairs: int, seconds: float, where: str) -> PairTimes:
    """The samples of an answer, checked: schema, nonce, count, each time possible, their sum in the run."""
    answer = _parsed(text, where)
    if answer.get("schema") != runner.SCHEMA or answer.get("nonce") != nonce:
        raise InputError(f"the answer of {where} is not to this request: measure again")
    rows = answer.get("rows")
    if not isinstance(rows, list) or len(rows) != pairs or not all(_is_row(row) for row in rows):
        raise InputError(
            f"the answer of {where} does not hold {pairs} pairs of possible times: measure again"
        )
    table = np.array(rows, dtype=np.int64).reshape(pairs, 5)
    if int(table[:, 1].sum() + table[:, 3].sum()) > seconds * 1e9 * 1.05 + 1e7:
        raise InputError(f"{where} reports more time than has passed: its clock cannot be trusted")
    facts = {key: _plain(answer.get(key)) for key in ("machine", "onnxruntime", "before", "after")}
    energy = answer.get("energy_uj")
    if type(energy) is int and 0 < energy < _MOST_WATTS * seconds * 1e6:
        facts["energy_uj"] = energy
    b_first, wall_a, cpu_a, wall_b, cpu_b = table.T
    return PairTimes(b_first.astype(bool), wall_a, cpu_a, wall_b, cpu_b, facts)


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        answer = json.loads(text.strip().splitlines()[-1] if text.strip() else "")
    except (ValueError, RecursionError) as e:
        raise InputError(f"{where} answers with something that is no JSON: measure again") from e
    if not isinstance(answer, dict):
        raise InputError(f"{where} answers with something that is no record: measure again")
    return answer


def _is_row(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 5 or not all(type(value) is int for value in row):
        return False
    return row[0] in (0, 1) and all(0 <= value < _LONGEST_NS for value in row[1:]) and min(row[1], row[3]) > 0


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {one_line(str(k), 120): one_line(str(v), 120) for k, v in list(value.items())[:64]}
    return one_line(str(value), 120)


def _failed(device: Device, stderr: str) -> Exception:
    last = one_line((stderr.strip().splitlines() or ["it printed nothing"])[-1], 200)
    if "ModuleNotFoundError" in last or "not found" in last:
        return UnavailableError(
            f"{device.spec} lacks what measuring needs ({last}): pip install onnxruntime there"
        )
    return InputError(f"the models do not run on {device.spec}: {last}")
