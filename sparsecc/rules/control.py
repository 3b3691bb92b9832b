"""Operators with a body, and those that hold sequences or optionals."""

from __future__ import annotations

from sparsecc.rules.table import pinned

pinned("If", "its branches are not followed")
pinned("Loop Scan SequenceMap", "its body is not followed")
pinned("Optional OptionalGetElement OptionalHasElement", "it holds an optional value")
pinned(
    """SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SplitToSequence
    ConcatFromSequence""",
    "it holds a sequence of tensors",
)
