"""Samples from a text file: its lines through the tokenizer that lies beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from sparsecc.errors import InputError, MissingPackageError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

TOKENIZER = "tokenizer.json"
LONGEST = 512
"""Tokens of a sample of a model that says no length."""


class Texts:
    """Lines of text as samples, through the `tokenizer.json` (Hugging Face's format) in one of `folders`.

    Lines are cut at the model's length, where it has one, and filled up to it, masked. InputError where there is no
    tokenizer, and for inputs that are none of those that a line gives.
    """

    def __init__(self, file: Path, inputs: list[ir.Value], folders: Sequence[Path]) -> None:
        self._length, self._parts = _length(inputs), _parts(file, inputs)
        self._tokenizer = _tokenizer([folder / TOKENIZER for folder in folders])

    def sample(self, line: str) -> dict[str, np.ndarray] | None:
        """int64 of (1, tokens) for each input: `input_ids` (or the only one), `attention_mask`, `token_type_ids`,
        `position_ids`. None where the line has no tokens."""
        found: Encoding = self._tokenizer.encode(line.strip())
        number = min(len(found.ids), self._length or LONGEST)
        rows = {
            "input_ids": found.ids[:number],
            "attention_mask": [1] * number,
            "token_type_ids": found.type_ids[:number],
            "position_ids": list(range(self._length or number)),
        }
        if not number:
            return None
        return {name: _row(rows[part], self._length) for name, part in self._parts.items()}

    def samples(self, file: Path) -> Iterator[dict[str, np.ndarray]]:
        """One sample a line that is not empty."""
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip() and (sample := self.sample(line)) is not None:
                    yield sample


def _tokenizer(paths: Sequence[Path]) -> Tokenizer:
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise InputError(f"{paths[0]}: no such file: put the model's {TOKENIZER} beside the text")
    return tokenizer_at(path)


def tokenizer_at(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. InputError where the library cannot use it, or is missing."""
    try:
        from tokenizers import Tokenizer
    except ImportError as e:
        raise MissingPackageError("text samples need tokenizers: pip install 'sparsecc[text]'") from e
    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises nothing narrower
        raise InputError(f"{path}: tokenizers cannot use it: {e}") from e


def _length(inputs: list[ir.Value]) -> int:
    """Tokens that the inputs have room for, 0 where they say none."""
    known = [value.shape[1] for value in inputs if value.shape is not None and len(value.shape) == 2]
    return min((size for size in known if isinstance(size, int) and size > 0), default=0)


def _parts(file: Path, inputs: list[ir.Value]) -> dict[str, str]:
    """Which part of an encoded line each input takes."""
    parts = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    names = [value.name or "" for value in inputs]
    if len(names) == 1:
        return {names[0]: "input_ids"}
    unknown = next((name for name in names if name not in parts), None)
    if unknown is not None:
        raise InputError(
            f"{file}: input '{unknown}' is none of {', '.join(parts)}: give .npz or file.py:function instead"
        )
    return {name: name for name in names}


def _row(numbers: list[int], length: int) -> np.ndarray:
    filled = [*numbers, *[0] * (length - len(numbers))]
    return np.array([filled], dtype=np.int64)
