"""Goals that only a measurement can tell (faster, smaller, less lost): what was asked, and what a trial found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sparsecc.errors import InputError
from sparsecc.measure.serving import Serving
from sparsecc.options import CompileOptions, rows_of
from sparsecc.options.table import PRUNED

NEAR = math.log(1.05)
"""A target is met within 5 %."""
REFUSED = math.log(1.25)
"""What stays further than this from its target is not written."""

UNNOTICED = 30.0
"""Decibels of every part of the outputs from which on, all answers being the same, nothing measurable is lost."""

ORDERED = ("criterion", "allocator", "recover")
"""Options that a search for the front varies where it is told to; no goal pulls them."""

_ROWS = {name: row for name, row in rows_of(CompileOptions).items() if row.is_goal or row.is_limit}


@dataclass(frozen=True)
class Trial:
    """A model that was made with some levers pulled, and what was measured of it.

    `levers` are the options besides the ratio that made it, as a recipe has them. `speedup` is that over the dense
    model, `ms` and `dense_ms` the medians of both by the same clock; `memory` and `dense_memory` the bytes that
    loading and running adds to a process; `score` and `dense_score` are those of `--evaluate`; `quality_db` the
    worst part of the outputs and `agreement` the least share of same answers, on samples that nothing was fitted to;
    `nats` the loss of a token of such text. `kv` and `dense_kv` are bytes of cache a token, of decoders.
    None where it was not measured. `exhausted` says that nothing more can be removed, `held` why.
    """

    ratio: float
    removed: float
    bytes: int
    dense_bytes: int
    exhausted: bool = False
    held: str = ""
    levers: Mapping[str, Any] = field(default_factory=dict)
    speedup: float | None = None
    ci95: tuple[float, float] | None = None
    ms: float | None = None
    dense_ms: float | None = None
    memory: int | None = None
    dense_memory: int | None = None
    score: float | None = None
    dense_score: float | None = None
    quality_db: float | None = None
    agreement: float | None = None
    kv: int | None = None
    dense_kv: int | None = None
    nats: float | None = None
    serving: Mapping[str, Any] | None = None
    """How it serves most samples a second, where that was asked: rate, batch, streams; the speed is then that over the
    rate of the dense model, and times are those of a sample."""
    is_useless: bool = False
    """Whether what is left is of no use, by the answers, the outputs, or the metric (`loss.judge`)."""
    is_fine: bool = False
    """Whether it was timed long enough to be told from what is near it."""
    macs: float | None = None
    """The share of the multiply-accumulates that is left."""
    sha256: str = ""
    """The hash of the model's file, by which a compile to the same is known again."""
    levels: tuple[tuple[float, float], ...] = ()
    """Of 8 bits without the layers that lose most: what other choices of layers would lose, and the share of the
    work that they would leave in 8 bits (`passes/quantize/sensitivity.py`)."""

    @property
    def is_exact(self) -> bool:
        """Whether types left the model what it was: in others no outputs are those of the dense model."""
        from sparsecc.loss.measure import quality  # needs numpy, which help does without

        return not self.ratio and "quantize" in self.levers and (self.quality_db or 0.0) >= quality(0.0)

    @property
    def merit(self) -> tuple[float, float]:
        """What is left, more being better: by the user's metric first, then by text of a language model, else by the
        outputs; without any, the less was removed the better. A score above that of the dense model is chance: it
        counts as that."""
        kept = -math.inf if self.quality_db is None else self.quality_db
        kept = kept if self.nats is None else -self.nats
        score = 0.0 if self.score is None else self.score
        if self.dense_score is not None:
            score = min(score, self.dense_score)
        return (score, kept if math.isfinite(kept) else -self.removed)

    def served(self, dense: Serving, found: Serving) -> Trial:
        """With how both models serve."""
        speedup, told = found.rate / dense.rate, found.to_json()
        return replace(self, speedup=speedup, serving=told, ms=1e3 / found.rate, dense_ms=1e3 / dense.rate)

    def words(self) -> str:
        """`ratio 0.31, int8: 1.72x, 28.4 dB`."""
        pulled = [f"ratio {self.ratio:.3f}"] if self.ratio > 0 or not self.levers else []
        pulled += words_of(self.levers)
        found = [f"{self.speedup:.2f}x"] if self.speedup is not None else [f"{self.bytes:,} bytes"]
        found += [f"{self.kv:,} bytes of cache"] if self.kv is not None else []
        found += [f"score {self.score:.4g}"] if self.score is not None else []
        found += [f"{self.nats:.3f} nats"] if self.nats is not None else []
        found += [f"{self.quality_db:.1f} dB"] if self.quality_db is not None and self.nats is None else []
        return f"{', '.join(pulled)}: {', '.join(found)}"

    def to_json(self) -> dict[str, Any]:
        told = {name: value for name, value in asdict(self).items() if value is not None and value != {}}
        return {name: value for name, value in told.items() if value is not False and value not in ("", ())}


def words_of(levers: Mapping[str, Any]) -> list[str]:
    """`["int8"]`, `["layers"]`, `["tokens 0.7"]`: levers as a user would name them."""
    words = []
    for name, value in levers.items():
        if name == "quantize":
            part = " but for the worst layers" if "max_drop" in levers.get("quantize_options", {}) else ""
            words.append(f"{value}{part}")
        elif name == "prune":
            named = [kind for kind in ("layers", "heads") if kind in value]
            alone = " alone" if set(value) == {"layers"} else ""
            words.append(f"{named[0]}{alone}" if named else ", ".join(value))
        elif name == "sparsity":
            words.append(str(value))
        elif name == "tokens":
            words.append(f"tokens {value:g}")
        elif name == "metric":
            words.append(f"by {value}")
        elif name in ORDERED:
            words.append(f"{name} {value}")
    return words


def words_of_serving(serving: Mapping[str, Any]) -> str:
    """`212 a second in batches of 8 in 2 streams`."""
    batch = f" in batches of {serving['batch']}" if serving["batch"] > 1 else ""
    streams = f" in {serving['streams']} streams" if serving["streams"] > 1 else ""
    return f"{serving['rate']:,.0f} a second{batch}{streams}"


@dataclass(frozen=True)
class Goal:
    """What was asked: times faster, milliseconds a run, or a token behind a cache, runs a second, samples a second,
    bytes of model, bytes of memory to load and run it, bytes of cache a token; and limits of what may be lost: of
    accuracy, in decibels, in answers that change."""

    speedup: float | None = None
    latency: float | None = None
    decode_latency: float | None = None
    fps: float | None = None
    throughput: float | None = None
    size: float | None = None
    footprint: float | None = None
    kv_bytes: float | None = None
    max_drop: float | None = None
    min_quality: float | None = None
    min_agreement: float | None = None

    @staticmethod
    def of(options: CompileOptions) -> Goal | None:
        """The goal among the options; None where an order is given that limits of what is lost only watch over.
        InputError where one cannot be measured."""
        given = {name: getattr(options, name) for name in _ROWS if getattr(options, name) is not None}
        if options.mixes_types:
            given.pop("size", None)  # types are chosen for it, not what is removed
        if options.ratio is not None:
            given.pop("kv_bytes", None)  # an order as the ratio is
        if not given or (options.gives_orders and not any(_ROWS[name].is_goal for name in given)):
            return None
        if "footprint" in given and options.device != "local":
            raise InputError(f"--footprint is measured on this machine: leave out --device {options.device}")
        if "throughput" in given and options.device != "local":
            raise InputError(f"--throughput is measured on this machine: leave out --device {options.device}")
        for name in ("speedup", "latency", "decode_latency", "fps", "throughput", "footprint"):
            if name in given and not options.measure:
                raise InputError(f"{_ROWS[name].flag} needs the measurement: leave out --no-measure")
        return Goal(**given)

    @staticmethod
    def unasked(options: CompileOptions) -> Goal | None:
        """Where samples are given and nothing is asked for: the fastest that loses nothing measurable, by the metric
        where there is one. None where something is ordered, nothing is timed, or nothing judges."""
        ordered = (
            options.gives_orders or options.names_slots or options.prune != PRUNED or options.last_logits
        )
        if ordered or options.samples is None or not options.measure or Goal.of(options) is not None:
            return None
        if options.evaluate is not None:
            return Goal(max_drop=0.0)
        return Goal(min_quality=UNNOTICED, min_agreement=1.0)

    @property
    def asked(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def is_timed(self) -> bool:
        asked = self.speedup, self.latency, self.decode_latency, self.fps, self.throughput
        return any(value is not None for value in asked)

    @property
    def is_of_cache_alone(self) -> bool:
        """Whether nothing but the bytes of a cache is to be reached."""
        others = self.is_timed, self.size is not None, self.footprint is not None
        return self.kv_bytes is not None and not any(others)

    @property
    def has_target(self) -> bool:
        """Whether something is to be reached; with limits alone the fastest within them is wanted."""
        return self.is_timed or any(one is not None for one in (self.size, self.footprint, self.kv_bytes))

    @property
    def milliseconds(self) -> float | None:
        """The longest that a run may take, which is a token of a decoder; with a throughput, a sample."""
        rate = self.fps if self.throughput is None else self.throughput
        if rate is not None:
            return 1e3 / rate
        return self.latency if self.decode_latency is None else self.decode_latency

    def excess(self, trial: Trial) -> float:
        """ln of how much too slow or too large a trial is; zero or less is what was asked for."""
        over = [-math.inf]
        if self.size is not None:
            over.append(math.log(trial.bytes / self.size))
        if self.footprint is not None and trial.memory is not None:
            over.append(math.log(max(trial.memory, 1) / self.footprint))
        if self.kv_bytes is not None and trial.kv is not None:
            over.append(math.log(max(trial.kv, 1) / self.kv_bytes))
        if self.speedup is not None and trial.speedup is not None:
            over.append(math.log(self.speedup / trial.speedup))
        limit = self.milliseconds
        if limit is not None and trial.speedup is not None and trial.dense_ms is not None:
            over.append(math.log(trial.dense_ms / trial.speedup / limit))
        return max(over)

    def excess_of_dense(self, trial: Trial) -> float:
        """The same of the dense model that a trial was measured against."""
        dense = Trial(0, 0, trial.dense_bytes, trial.dense_bytes, speedup=1.0, dense_ms=trial.dense_ms)
        return self.excess(replace(dense, memory=trial.dense_memory, kv=trial.dense_kv))

    def loses_too_much(self, trial: Trial) -> bool:
        """Whether a trial breaks a limit, or is of no use. What could not be judged breaks none."""
        if trial.is_useless:
            return True
        drop = self.max_drop is not None and trial.score is not None and trial.dense_score is not None
        if drop and trial.dense_score - trial.score > self.max_drop + 1e-12:  # type: ignore[operator]
            return True
        if (
            self.min_quality is not None
            and trial.quality_db is not None
            and trial.quality_db < self.min_quality
        ):
            return True
        return (
            self.min_agreement is not None
            and trial.agreement is not None
            and trial.agreement < self.min_agreement
        )

    def words(self, *, limits_only: bool = False) -> str:
        """`--speedup 2, --max-drop 0.01`."""
        asked = {n: v for n, v in self.asked.items() if _ROWS[n].is_limit or not limits_only}
        return ", ".join(f"{_ROWS[name].flag} {_number(value)}" for name, value in asked.items())

    def short(self, best: Trial, excess: float) -> str:
        """What was reached instead, and what holds it back."""
        reached = [f"{best.speedup:.2f}x"] if best.speedup is not None else []
        if best.serving is not None:
            reached.append(words_of_serving(best.serving))
        elif self.milliseconds is not None and best.dense_ms is not None and best.speedup is not None:
            reached.append(f"{best.dense_ms / best.speedup:.3g} ms")
        if self.size is not None:
            reached.append(f"{best.bytes:,} bytes")
        if self.footprint is not None and best.memory is not None:
            reached.append(f"{best.memory:,} bytes of memory")
        if self.kv_bytes is not None and best.kv is not None:
            reached.append(f"{best.kv:,} bytes of cache a token")
        held = f": {best.held}" if best.held else ""
        far = f" {math.expm1(excess):.0%}" if excess < math.log(10) else ""
        pulled = "".join(f" and {word}" for word in words_of(best.levers))
        return (
            f"{self.words()} is{far} out of reach: the best is "
            f"{', '.join(reached)} with {best.removed:.1%} removed{pulled}{held}"
        )


def _number(value: float) -> str:
    """Bytes are whole numbers and may be many."""
    return f"{value:.0f}" if value == int(value) else f"{value:g}"


def found_in(measured: Mapping[str, Any], trial: Trial, *, throughput: bool) -> Trial:
    """A trial with the speed that the end of a compile measured, where it did."""
    if throughput and "throughput" in measured:
        before, after = (Serving(**measured["throughput"][side]) for side in ("before", "after"))
        return trial.served(before, after)
    if (latency := measured.get("latency")) is None:
        return trial
    speedup, dense = float(latency["speedup"]["estimate"]), float(latency["before_ms"]["p50"])
    return replace(trial, speedup=speedup, ci95=None, dense_ms=dense, ms=dense / speedup)


def judge(goal: Mapping[str, Any], measured: Mapping[str, Any], kv: int | None = None) -> dict[str, Any]:
    """What the final measurement says of a goal: asked, found, and whether it is met within 5 %; of a speed that was
    foretold that, and None. `kv` are the bytes of cache a token that are left."""
    asked = Goal(**goal["asked"])
    if "foretold" in goal:
        return {"asked": asked.asked, "met": None, "excess": None, "foretold": dict(goal["foretold"])}
    found = Trial(0, 0, measured["bytes"]["after"], measured["bytes"]["before"])
    found = found_in(measured, found, throughput=asked.throughput is not None)
    if asked.footprint is not None:
        found = replace(found, memory=measured["footprint"]["after"]["model_memory_bytes"])
    found = replace(found, kv=kv)
    excess = asked.excess(found)
    return {
        "asked": asked.asked,
        "met": excess <= NEAR,
        "excess": None if math.isinf(excess) else math.expm1(excess),
    }
