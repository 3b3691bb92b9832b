"""Text for decoders with caches: windows of a file, or what the model writes itself; and the loss of a token.

A text begins with an empty cache. Windows are as long as the model's positions allow, at most WINDOW tokens, and all
of one length, so that many of them make a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.data.samples import CalibrationSet
from sparsecc.data.texts import TOKENIZER, tokenizer_at
from sparsecc.errors import InputError
from sparsecc.graph.caches import Cache, caches
from sparsecc.options import SELF
from sparsecc.shapes.dynamic_dims import input_values, is_fixed

Feeds = dict[str, np.ndarray]
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

WINDOW, SHORTEST = 256, 8
"""Tokens of a window at most; and at least, where a text is short."""
FEWEST_WINDOWS = 16
"""A short text is cut into so many, however short they are then."""
TOKENS, FEWEST_TOKENS = 1 << 15, 1 << 11
"""Tokens that a model writes at most; and at least, however large it is."""
WORK = 1e12
"""Parameters read times tokens written: half a minute or so on one core."""
LOGITS = 1 << 26
"""Logits of a batch of windows at most."""
TIMED = 128
"""Tokens of a prompt that is timed, and of the cache behind which a step is."""
TEXT = 1 << 22
"""Characters that are read of a file at most."""
IDS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"


@dataclass(frozen=True)
class Cached:
    """A cache as it is fed: its input, the output it leaves as, heads, width, and the type of its numbers."""

    past: str
    present: str
    heads: int
    width: int
    dtype: np.dtype
    room: int = 0
    """Positions that it has room for from the start; 0 where it grows."""
    positions: int = 2
    """The axis of positions: behind the heads, or before them."""

    def shape(self, texts: int, length: int) -> tuple[int, ...]:
        """Of so many texts, each with so many positions."""
        both = (self.heads, length) if self.positions == 2 else (length, self.heads)
        return texts, *both, self.width


@dataclass(frozen=True)
class TextModel:
    """A decoder that takes tokens and caches and nothing else, and gives logits of `words`; `context` is how many
    positions it knows, as far as it says. `any_length` says that texts need no one length."""

    inputs: Mapping[str, np.dtype]
    caches: tuple[Cached, ...]
    logits: str
    words: int
    context: int | None
    parameters: int
    any_length: bool = True

    @staticmethod
    def of(model: ir.Model) -> TextModel | None:
        """None where a model is something else."""
        found = caches(model)
        pasts, presents = {c.past: c for c in found}, {c.present for c in found}
        values = [value for value in input_values(model) if value not in pasts]
        outputs = [value for value in model.graph.outputs if value not in presents]
        known = {value.name or "" for value in values} <= {IDS, MASK, POSITIONS}
        integers = all(value.dtype in (ir.DataType.INT64, ir.DataType.INT32) for value in values)
        if not found or len(outputs) != 1 or not known or not integers or IDS not in {v.name for v in values}:
            return None
        shape = outputs[0].shape
        words = shape[-1] if shape is not None and len(shape) == 3 else None
        cached = [_cached(cache) for cache in found]
        if not isinstance(words, int) or any(one is None for one in cached):
            return None
        inputs = {value.name or "": value.dtype.numpy() for value in values if value.dtype is not None}
        weights = model.graph.initializers.values()
        parameters = sum(v.const_value.size for v in weights if v.const_value is not None)
        return TextModel(
            inputs,
            tuple(filter(None, cached)),
            outputs[0].name or "",
            words,
            _context(model),
            int(parameters),
            not any(is_fixed(value.shape[-1]) for value in values if value.name == IDS and value.shape),
        )

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return WINDOW if self.context is None else min(WINDOW, self.context)

    @property
    def batch(self) -> int:
        """Windows that are run at once at most: their logits are what takes memory."""
        return max(1, LOGITS // (self.words * self.window))

    def feeds(self, ids: np.ndarray, kept: Mapping[str, np.ndarray] | None = None, before: int = 0) -> Feeds:
        """Inputs for tokens (texts, new) behind what is `kept` of `before` earlier ones, by past input."""
        rows, new = ids.shape
        empty = {c.past: np.zeros(c.shape(rows, c.room), c.dtype) for c in self.caches}
        past = dict(kept) if kept is not None else empty
        own = {
            IDS: ids,
            MASK: np.ones((rows, before + new)),
            POSITIONS: np.tile(np.arange(before, before + new), (rows, 1)),
        }
        return {name: own[name].astype(dtype) for name, dtype in self.inputs.items()} | past

    def step(self, seed: int, cached: int | None = None) -> Feeds:
        """One token behind a cache of so many others, TIMED or as many as the model knows, drawn at random."""
        generator, before = np.random.default_rng(seed), cached or min(TIMED, self.window - 1)
        shapes = {c.past: (c, c.shape(1, c.room or before)) for c in self.caches}
        kept = {n: generator.standard_normal(shape).astype(c.dtype) for n, (c, shape) in shapes.items()}
        return self.feeds(generator.integers(0, self.words, (1, 1)), kept, before)

    def prompt(self, seed: int, tokens: int | None = None) -> Feeds:
        """A text of so many tokens, TIMED or as many as the model knows, drawn at random, before an empty cache."""
        ids = np.random.default_rng(seed).integers(0, self.words, (1, tokens or min(TIMED, self.window)))
        return self.feeds(ids)

    def windows(self, tokens: Sequence[int], begin: int | None) -> Iterator[Feeds]:
        """A text cut into windows, each behind the token that begins a text where there is one; a rest is left out."""
        head = [] if begin is None else [begin]
        length = min(self.window - len(head), max(SHORTEST, len(tokens) // FEWEST_WINDOWS))
        for start in range(0, len(tokens) - length + 1, length):
            yield self.feeds(np.array([[*head, *tokens[start : start + length]]]))

    def from_file(self, file: Path, tokenizer: Path, begin: int | None) -> Iterator[Feeds]:
        """The windows of a text file. InputError where it is too short, and for tokens that the model has not.

        `begin` None takes what the tokenizer puts before a text.
        """
        by = tokenizer_at(tokenizer)
        with file.open(encoding="utf-8", errors="replace") as text:
            tokens = by.encode(text.read(TEXT), add_special_tokens=False).ids
        if begin is None:
            begin = next(iter(by.encode("").ids), None)
        if len(tokens) < SHORTEST:
            raise InputError(f"{file}: {len(tokens)} tokens are too few to learn from: give a page of text")
        if max(tokens) >= self.words:
            raise InputError(
                f"{tokenizer}: has token {max(tokens)}, the model {self.words} words: give the model's own tokenizer"
            )
        return self.windows(tokens, begin)

    def written(self, run: Run, seed: int, begin: int | None) -> Iterator[Feeds]:
        """What the model writes, token by token as likely as it finds them, the same for the same seed.

        Texts begin with the token that begins one, or with any where none is known.
        """
        number = int(min(TOKENS, max(FEWEST_TOKENS, WORK / self.parameters)))
        length = min(self.window, max(SHORTEST, number // FEWEST_WINDOWS))
        generator, rows = np.random.default_rng(seed), max(FEWEST_WINDOWS, number // length)
        first = generator.integers(0, self.words, (rows, 1))
        ids = first if begin is None else np.full_like(first, begin)
        kept: Mapping[str, np.ndarray] | None = None
        while ids.shape[1] < length:
            new = ids if kept is None else ids[:, -1:]
            outputs = run(self.feeds(new, kept, ids.shape[1] - new.shape[1]))
            kept = {c.past: outputs[c.present] for c in self.caches}
            ids = np.concatenate([ids, _drawn(outputs[self.logits][:, -1], generator)], axis=1)
        for row in ids:
            yield self.feeds(row[None])

    def loss(self, feeds: Sequence[Feeds], run: Run) -> tuple[float, int]:
        """(nats a token, tokens): the mean of -log p of each token after those before it."""
        total, number = 0.0, 0
        for batch in feeds:
            logits = np.asarray(run(batch)[self.logits][:, :-1], dtype=np.float64)
            wanted = batch[IDS][:, 1:].astype(np.int64)
            logits -= logits.max(axis=-1, keepdims=True)
            picked = np.take_along_axis(logits, wanted[..., None], axis=-1)[..., 0]
            total += float((np.log(np.exp(logits).sum(axis=-1)) - picked).sum())
            number += wanted.size
        return total / max(number, 1), number


def _cached(cache: Cache) -> Cached | None:
    """A cache as it is fed; None where its heads, width or type are not known, and for keys and values in one."""
    sizes, dtype = list(cache.past.shape or ()), cache.past.dtype
    if len(sizes) != 4 or dtype is None:
        return None
    heads, width = sizes[cache.heads], sizes[cache.width]
    if not (is_fixed(heads) and is_fixed(width)):
        return None
    names = cache.past.name or "", cache.present.name or ""
    return Cached(*names, heads, width, dtype.numpy(), cache.room, cache.positions)


def _drawn(logits: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One token a row, with the probability that its logits (rows, words) give it."""
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    sums = np.cumsum(shares, axis=-1)
    points = generator.random((len(logits), 1)) * sums[:, -1:]
    return np.asarray(np.minimum((sums < points).sum(axis=-1, keepdims=True), logits.shape[-1] - 1))


def _context(model: ir.Model) -> int | None:
    """Positions that the rotations of its attentions, or a table of positions, have room for."""
    rooms = []
    for cache in caches(model):
        is_turned = cache.node.op_type == "GroupQueryAttention" and len(cache.node.inputs) > 7
        value = cache.node.inputs[7] if is_turned else None
        size = value.shape[0] if value is not None and value.shape is not None else None
        rooms += [size] if isinstance(size, int) else []
    return min(rooms, default=None)


def require_room(text: TextModel | None, tokens: int | None, *, has_sizes: bool) -> None:
    """InputError where no text is, or knows, so many tokens in its cache and one more (`--cache-tokens`), and where
    the user names the sizes that are timed."""
    if tokens is None:
        return
    if text is None or not text.any_length:
        raise InputError(
            f"--cache-tokens: the model is no decoder of text, which takes {IDS} ({MASK}, {POSITIONS}) and caches of "
            "any length: leave it out; --input names sizes"
        )
    if has_sizes:
        raise InputError("--cache-tokens: --input names the sizes that are timed: leave one of them out")
    if text.context is not None and tokens >= text.context:
        most = text.context - 1
        raise InputError(
            f"--cache-tokens {tokens}: the model knows {text.context} positions: give at most {most}"
        )


def samples_of(
    spec: str,
    model: ir.Model,
    text: TextModel | None,
    run: Run,
    seed: int,
    folder: Path,
    begin: int | None,
) -> CalibrationSet:
    """The samples that `--calib` names: of a decoder with caches windows of text, for `self` what it writes by `run`.

    The tokenizer lies in the model's `folder`; one beside the text comes first. InputError where nothing can be read.
    """
    if spec == SELF and text is None:
        raise InputError("--calib self: only a decoder with caches writes text: give samples of another kind")
    is_text = spec.lower().endswith(".txt") and Path(spec).is_file()
    if text is None or not (spec == SELF or is_text):
        return CalibrationSet(spec, model, beside=folder)
    beside = Path(spec).with_name(TOKENIZER)
    source = (
        text.written(run, seed, begin)
        if spec == SELF
        else text.from_file(Path(spec), beside if beside.is_file() else folder / TOKENIZER, begin)
    )
    return CalibrationSet(spec, model, source=source, batch=text.batch)
