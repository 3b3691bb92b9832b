"""What ONNX Runtime says of a refusal, in words for a user."""

from __future__ import annotations

import re

_NOISE = (
    (re.compile(r"\[ONNXRuntimeError\] : -?\d+ : [A-Z_]+ : "), ""),
    (re.compile(r"Load model from .*? failed: ?"), ""),
    (re.compile(r"(?:/[^\s:]*/)?\b\w+\.(?:cc|cpp|h|hpp):\d+ (?:\w+ (?=[\w\[]))?"), " "),
    (
        re.compile(
            r"(?:[\w:<>,&*~]+ )?onnxruntime::[\w:<>~]+\(.*?\)(?: const)?(?: \[with .*?\])? (?=[A-Z\[(])"
        ),
        "",
    ),
    (re.compile(r"\[ShapeInferenceError\] ?"), ""),
    (re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+"), " "),
    (re.compile(r" {2,}"), " "),
)
_LONGEST = 400


def plain_reason(error: Exception) -> str:
    """The fact in a message of ONNX Runtime: one line without codes, source positions, control characters."""
    text = str(error)
    for pattern, replacement in _NOISE:
        text = pattern.sub(replacement, text)
    text = text.strip(" .:")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
