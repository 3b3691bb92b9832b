"""A short run of every fuzz target on mutated seeds; a long one with `make fuzz`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[1]
SEEDS = {
    "loader": [(ROOT / "models" / "digits_lstm.onnx").read_bytes()[:4000]],
    "recipe": [b"target: onnxruntime\nratio: 0.5\ninputs:\n  x: [1, 3, 8, 8]\nkeep: ['conv*']\nseed: 0\n"],
    "plan": [b'{"schema": "sparsecc.manifest/1", "files": {"plan.json": {"sha256": "00", "bytes": 3}}}'],
}


def small_model() -> bytes:
    """A model in which a byte matters more often than in one full of weights."""
    from onnx import parser

    text = """<ir_version: 8, opset_import: ["": 17]> g (float[1,4] x) => (float[1,4] y)
        <float[4,4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}> {
            a = MatMul (x, w)
            c, d = Split <axis = 1> (a)
            e = Concat <axis = 1> (d, c)
            y = Add (e, x)
        }"""
    data: bytes = parser.parse_model(text).SerializeToString()
    return data


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed, repeated or taken from elsewhere."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 8, 40))
        kind = rng.randrange(4)
        if kind == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length]
        else:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + length]
        data = data or bytearray(b"\0")
    return bytes(data)


def fuzz(name: str, runs: int, seed: int) -> None:
    rng = random.Random(seed)
    seeds = [*SEEDS[name], *([small_model()] if name == "loader" else [])]
    for _ in range(runs):
        data = mutated(rng.choice(seeds), rng)
        try:
            TARGETS[name](data)
        except BaseException as e:
            raise AssertionError(f"{name} on {data!r}") from e


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_thousand_mutations(name: str) -> None:
    fuzz(name, 1000, seed=0)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", sorted(TARGETS))
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_mutations(name: str, seed: int) -> None:
    fuzz(name, 100_000, seed)
