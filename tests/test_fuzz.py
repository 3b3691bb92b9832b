"""A short run of every fuzz target on mutated seeds; a long one with `make fuzz`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS

FOUND = sorted(path for path in (Path(__file__).parent / "fuzz" / "found").rglob("*") if path.is_file())


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_stays_mended(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


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
    seeds = SEEDS[name]()
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
