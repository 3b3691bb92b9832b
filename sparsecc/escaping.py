"""Untrusted text made safe to print: names and paths from model files, output of devices and libraries."""

from __future__ import annotations

import unicodedata

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories: control, direction, surrogate, private, unassigned and line-breaking characters."""


def escape(text: str) -> str:
    r"""The text with every character that could move a cursor, turn the reading direction or break a line
    written as `\x1b`, `\u202e` or `\U000e0001`. Escaping twice changes nothing more."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSAFE else c for c in text)


def one_line(text: str, limit: int = 300) -> str:
    """The text escaped and on one line of at most `limit` characters; a longer one loses its middle."""
    text = text if len(text) <= 4 * limit else text[: 2 * limit] + text[-2 * limit :]
    line = escape(" ".join(text.split()) if "\n" in text.strip() else text.strip())
    if len(line) <= limit:
        return line
    tail = (limit - 3) // 3
    return line[: limit - 3 - tail] + "..." + line[len(line) - tail :]


def quoted(name: str | bytes, limit: int = 120) -> str:
    """A name from a model as it stands in our messages: escaped, cut, and in quotes that it cannot close."""
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    return "'" + one_line(name.replace("'", "\\'"), limit) + "'"


def _escaped(character: str) -> str:
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
