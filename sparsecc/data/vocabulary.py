"""Fewer words: which a list or a text asks for, and a tokenizer and configurations in the numbers that are left.

Tokenizers are Hugging Face's `tokenizer.json` (BPE, Unigram, WordPiece, WordLevel).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.data.texts import tokenizer_at
from sparsecc.errors import InputError
from sparsecc.escaping import one_line
from sparsecc.loading.package import JSON_LARGEST, LARGEST, plain_bytes

FEWEST = 2
"""Words that a vocabulary has at least."""
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_LISTS = frozenset({"suppress_tokens", "begin_suppress_tokens"})
"""Lists of numbers of words in configurations, besides those that end in `_token_id`."""
_NUMBER = re.compile(r"[0-9]{1,9}")
_STALE = frozenset(
    {
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "added_tokens.json",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
    }
)
"""Other files that hold a vocabulary: of the numbers before."""


def is_stale(name: str) -> bool:
    """Whether a file beside a model holds the vocabulary in a form that is not written again."""
    return name.lower() in _STALE or name.lower().endswith((".tiktoken", ".bpe", ".vocab"))


def words_kept(source: Path, tokenizer: Path, number: int) -> np.ndarray:
    """The words of `number` that stay, ascending int64: those of a `.json` list of numbers, or all that a text needs.

    A text needs the words that it is cut into, those they are merged from, all bytes and all special words; it is cut
    into the same words as before. InputError for words that the model has not, and for too few.
    """
    found = _listed(source) if source.suffix.lower() == ".json" else _used(source, tokenizer)
    if tokenizer.is_file():
        found |= set(_special(_read(tokenizer)))
    wrong = [word for word in found if not 0 <= word < number]
    if wrong:
        raise InputError(
            f"{one_line(str(source), 120)}: the model has {number} words, and none is {wrong[0]}"
        )
    if len(found) < FEWEST:
        raise InputError(
            f"{one_line(str(source), 120)}: {len(found)} words are no vocabulary: give a text with more"
        )
    return np.array(sorted(found), dtype=np.int64)


def _listed(source: Path) -> set[int]:
    try:
        found = json.loads(plain_bytes(source.resolve(), JSON_LARGEST))
    except (ValueError, RecursionError) as e:
        raise InputError(
            f"{one_line(str(source), 120)}: no list of numbers of words: {one_line(str(e), 120)}"
        ) from e
    if not isinstance(found, list) or not all(type(word) is int for word in found):
        raise InputError(
            f"{one_line(str(source), 120)}: give a list of numbers of words, as [0, 1, 5], or a text"
        )
    return set(found)


def _used(source: Path, tokenizer: Path) -> set[int]:
    by = tokenizer_at(tokenizer)
    by.no_truncation()
    text = plain_bytes(source.resolve(), LARGEST).decode("utf-8", errors="replace")
    used = {*by.encode(text).ids, *(word for line in text.splitlines() for word in by.encode(line).ids)}
    told = json.loads(by.to_str())
    numbers = _numbers(told["model"])
    alphabet = _BYTES | set(_byte_letters()) if _is_bytewise(told) else _BYTES
    used |= {number for word, number in numbers.items() if word in alphabet}
    unknown = told["model"].get("unk_token")
    used |= {numbers[unknown]} if unknown in numbers else set()
    used |= {told["model"]["unk_id"]} if isinstance(told["model"].get("unk_id"), int) else set()
    used |= set(_special(told))
    merges = _merges(told["model"])
    waiting, names = list(used), {number: word for word, number in numbers.items()}
    while waiting:
        for pair in merges.get(names.get(waiting.pop(), ""), ()):
            new = {numbers[part] for part in pair if part in numbers} - used
            used |= new
            waiting += new
    return used


def _read(tokenizer: Path) -> dict[str, Any]:
    """A tokenizer.json that the library can use, as data. InputError for any other."""
    told: dict[str, Any] = json.loads(tokenizer_at(tokenizer).to_str())
    return told


def with_words(tokenizer: Path, kept: np.ndarray) -> dict[str, Any]:
    """A tokenizer.json with these words alone, in their new numbers."""
    place = {int(old): new for new, old in enumerate(kept)}
    told = _read(tokenizer)
    model = told["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {word: place[number] for word, number in model["vocab"].items() if number in place}
    else:  # Unigram: a word's number is its place
        model["vocab"] = [one for number, one in enumerate(model["vocab"]) if number in place]
        if isinstance(model.get("unk_id"), int):
            model["unk_id"] = place.get(model["unk_id"])
    if "merges" in model:
        left = model["vocab"]
        model["merges"] = [
            merge
            for merge in model["merges"]
            if all(part in left for part in (*_pair(merge), "".join(_pair(merge))))
        ]
    told["added_tokens"] = [
        {**one, "id": place[one["id"]]} for one in told.get("added_tokens") or () if one["id"] in place
    ]
    told["post_processor"] = _renumbered(told.get("post_processor"), place)
    if isinstance(told.get("padding"), dict):
        told["padding"]["pad_id"] = place.get(told["padding"].get("pad_id"), 0)
    return told


def settings_with_words(settings: Any, kept: np.ndarray) -> Any:
    """A configuration whose words have their new numbers: keys that end in `_token_id`, `vocab_size`, the keys of
    `added_tokens_decoder`. Numbers of words that went leave lists, and are null by themselves."""
    place = {int(old): new for new, old in enumerate(kept)}
    if isinstance(settings, list):
        return [settings_with_words(one, kept) for one in settings]
    if not isinstance(settings, dict):
        return settings
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if key.endswith(("_token_id", "_token_ids")) or key in _LISTS:
            result[key] = _placed(value, place)
        elif key == "forced_decoder_ids" and isinstance(value, list):
            result[key] = [[at, place[word]] for at, word in filter(_is_pair, value) if word in place]
        elif key == "bad_words_ids" and isinstance(value, list):
            rows = [
                row for row in value if isinstance(row, list) and all(_is_in(word, place) for word in row)
            ]
            result[key] = [_placed(row, place) for row in rows]
        elif key == "vocab_size" and type(value) is int:
            result[key] = len(kept)
        elif key == "added_tokens_decoder" and isinstance(value, dict):
            result[key] = {
                str(place[int(w)]): v for w, v in value.items() if _NUMBER.fullmatch(w) and int(w) in place
            }
        else:
            result[key] = settings_with_words(value, kept)
    return result


def _is_in(word: Any, place: Mapping[int, int]) -> bool:
    return type(word) is int and word in place


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(one) is int for one in value)


def _placed(value: Any, place: Mapping[int, int]) -> Any:
    """The new number of a word, or those of a list that are left; what is no word is handed on as null."""
    if isinstance(value, list):
        return [place[word] for word in value if _is_in(word, place)]
    return place[value] if _is_in(value, place) else None


def _numbers(model: Mapping[str, Any]) -> dict[str, int]:
    """The number of each word of a tokenizer's model."""
    words = model["vocab"]
    return dict(words) if isinstance(words, dict) else {one[0]: number for number, one in enumerate(words)}


def _pair(merge: Any) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else list(merge)


def _merges(model: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """The pairs that each word of a BPE is merged from."""
    found: dict[str, list[list[str]]] = {}
    for merge in model.get("merges") or ():
        pair = _pair(merge)
        found.setdefault("".join(pair), []).append(pair)
    return found


def _special(told: Mapping[str, Any]) -> Iterator[int]:
    """The words that are added to the model's, and those that its template puts around a text."""
    for one in told.get("added_tokens") or ():
        yield one["id"]
    waiting = [told.get("post_processor")]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            for key, value in part.items():
                yield from value if key == "ids" else ()
                yield from (value[1],) if key in ("sep", "cls") else ()
                waiting.append(value)
        elif isinstance(part, list):
            waiting += part


def _renumbered(part: Any, place: Mapping[int, int]) -> Any:
    """A post-processor with the new numbers of the words that it puts around a text."""
    if isinstance(part, list):
        return [_renumbered(one, place) for one in part]
    if not isinstance(part, dict):
        return part
    result: dict[str, Any] = {}
    for key, value in part.items():
        if key == "ids":
            result[key] = [place[word] for word in value]
        elif key in ("sep", "cls") and isinstance(value, list):
            result[key] = [value[0], place[value[1]]]
        else:
            result[key] = _renumbered(value, place)
    return result


def _is_bytewise(told: Mapping[str, Any]) -> bool:
    """Whether a tokenizer writes bytes as letters of its own (GPT-2's)."""
    return '"ByteLevel"' in json.dumps([told.get("pre_tokenizer"), told.get("decoder")])


def _byte_letters() -> Collection[str]:
    """The letters that GPT-2's tokenizer writes bytes as: printable ones as themselves, others from U+0100 on."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = [chr(256 + place) for place in range(256 - len(printable))]
    return {*map(chr, printable), *others}
