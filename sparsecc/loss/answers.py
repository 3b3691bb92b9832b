"""Answers rather than numbers: the classes that outputs name, and the neighbours that embeddings have.

A class axis is known where the graph says so (Softmax, LogSoftmax, ArgMax, TopK over it, in the model or as its
last operators), where an output's name does, or where scores come out of a last linear layer as [batch, classes].
Embeddings are named, normalised, or wider than anything that reads as classes; they agree where each sample's
nearest neighbours do.

Scores that stand each for itself (a Sigmoid), and those beside boxes in one output, name a class only where the dense
model is sure of something: elsewhere the best of many small numbers is chance. There the same class must still stand
out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from sparsecc.errors import InputError
from sparsecc.escaping import quoted
from sparsecc.graph.patterns import WILD, matches
from sparsecc.graph.vocabulary import vocabulary_of
from sparsecc.loss.parts import Part, pieces_of, source_of
from sparsecc.rules import Trait, traits_of

Kind = Literal["classes", "detections", "labels", "embedding"]

_CLASSES = re.compile(r"logit|prob|score|class|cls|softmax|label|pred", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|feature|hidden|pooler|encod|vector|represent", re.IGNORECASE)
_LINEAR = frozenset({"Gemm", "MatMul", "Add", "Conv", "MatMulNBits"})
_NORMS = frozenset(
    {"LpNormalization", "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}
)
_SCORES = frozenset({"Sigmoid", "HardSigmoid"})
_STEPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
SOFTMAX_LAST = 13
"""The opset from which on Softmax is over one axis."""
SURE = 0.5
"""Of the dense model's strongest score: places with a class above this share of it are detections, and one is still
found where its score is above this share of what it was."""


@dataclass(frozen=True)
class Question:
    """What an output part is asked: the class along `axis`, that of places where one stands out (along the axis of
    classes by its shape where None), its labels, or which other sample is nearest."""

    part: Part
    kind: Kind
    axis: int | None = -1


def questions(model: ir.Model, parts: Sequence[Part]) -> tuple[Question, ...]:
    """What can be asked of a model's parts; nothing of those whose meaning is not known."""
    values = {value.name or "": value for value in model.graph.outputs}
    asked = [_question(values[part.output], part) for part in parts if part.output in values]
    return tuple(question for question in asked if question is not None)


def named_io(model: ir.Model, patterns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(inputs and outputs that `--prune-io` may cut, a sentence on each that it names by a glob alone and that stays).

    Those hold answers: words, classes, labels. Who cuts them names them.
    """
    inputs = [value.name or "" for value in model.graph.inputs]
    answers = {v.name or "" for v in model.graph.outputs if _answers(v)} | _words(model)
    free: list[str] = []
    stay: list[str] = []
    for name in (*inputs, *(value.name or "" for value in model.graph.outputs)):
        found = [pattern for pattern in patterns if matches(name, pattern)]
        is_named = any(name == pattern or not WILD.search(pattern) for pattern in found)
        if found:
            (stay if name in answers and not is_named else free).append(name)
    why = "whole: its slots are answers, name it to cut it"
    return tuple(free), tuple(f"--prune-io leaves {quoted(name)} {why}" for name in stay)


def _answers(value: ir.Value) -> bool:
    question = _question(value, Part(value.name or ""))
    return question is not None and question.kind != "embedding"


def _words(model: ir.Model) -> set[str]:
    """The outputs that score words."""
    try:
        scores = vocabulary_of(model).scores
    except InputError:
        return set()
    return {value.name or "" for value in scores if value.is_graph_output()}


def _question(value: ir.Value, part: Part) -> Question | None:
    """Integers are labels, but for steps of scores that are quantized."""
    if value.dtype is None or not value.dtype.is_integer():
        return _of_numbers(value, part)
    made = value.producer()
    scores = _of_numbers(value, part) if made is not None and made.op_type == "QuantizeLinear" else None
    return scores or Question(part, "labels")


def _of_numbers(value: ir.Value, part: Part) -> Question | None:
    name, rank = value.name or "", len(value.shape or ())
    if part.ranges:
        is_scores = part.source in _SCORES | {"Softmax"}
        return Question(part, "detections", part.ranges[-1][0]) if is_scores else None
    source, axis = _source(value)
    kind = source.op_type if source is not None else ""
    if kind == "Concat":
        kind = next(iter(kinds)) if len(kinds := _kinds(value)) == 1 else ""
    if kind in _SCORES and rank >= 2:
        is_map = rank == 2 and bool(part.places)  # one number to each place, and no class
        return None if is_map else Question(part, "detections", None)
    if kind in ("Softmax", "LogSoftmax"):
        return Question(part, "classes", axis if axis is not None else -1)
    if _EMBEDDING.search(name) or kind in _NORMS or (kind == "Div" and _is_norm(source)):
        return Question(part, "embedding") if rank == 2 else None
    if _CLASSES.search(name) and rank >= 2:
        return Question(part, "classes", -1)
    if rank == 2 and kind in _LINEAR:
        return Question(part, "classes", 1)
    return None


def _source(value: ir.Value) -> tuple[ir.Node | None, int | None]:
    """The operator that makes an output's numbers, views and steps of them passed by, and the axis it normalises over
    where no view moved it."""
    node, moved = value.producer(), False
    while node is not None and _passes(node) and node.inputs[0] is not None:
        moved = moved or (node.op_type not in _STEPS and Trait.SLOTWISE not in traits_of(node))
        node = node.inputs[0].producer()
    if node is None or moved:
        return node, None
    return node, node.attributes.get_int("axis", _axis_by_default(node))


def _passes(node: ir.Node) -> bool:
    return node.op_type in _STEPS or bool(traits_of(node) & Trait.KEEPS_SIZE)


def _axis_by_default(node: ir.Node) -> int:
    """Of Softmax and LogSoftmax: the last axis; 1 before opset 13."""
    opset = node.graph.opset_imports.get("", SOFTMAX_LAST) if node.graph is not None else SOFTMAX_LAST
    return -1 if opset >= SOFTMAX_LAST else 1


def _is_norm(node: ir.Node | None) -> bool:
    """Whether a division is by the length of what it divides."""
    divisor = node.inputs[1] if node is not None and len(node.inputs) > 1 else None
    for _ in range(4):
        made = divisor.producer() if divisor is not None else None
        if made is None:
            return False
        if made.op_type in ("ReduceL2", "Sqrt"):
            return True
        divisor = made.inputs[0] if made.inputs else None
    return False


@dataclass(frozen=True)
class Agreement:
    """Of one part: the share of `number` answers that are the same as the dense model's."""

    part: str
    kind: Kind
    share: float
    number: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % by Wilson's score: wide where there are few answers."""
        z, n, p = 1.96, max(self.number, 1), self.share
        middle, width = p + z * z / (2 * n), z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
        scale = 1 + z * z / n
        return max(0.0, (middle - width) / scale), min(1.0, (middle + width) / scale)

    def to_json(self) -> dict[str, Any]:
        """{"part", "kind", "share", "number", "interval"}."""
        return {**asdict(self), "interval": list(self.interval)}


def agreement(
    asked: Sequence[Question],
    dense: Sequence[Mapping[str, np.ndarray]],
    found: Sequence[Mapping[str, np.ndarray]],
) -> tuple[Agreement, ...]:
    """How often the answers are the dense model's, question by question; those without answers are left out."""
    told = []
    for question in asked:
        same = _same(question, dense, found)
        if same.size:
            told.append(Agreement(question.part.name, question.kind, float(np.mean(same)), int(same.size)))
    return tuple(told)


def _same(
    question: Question,
    dense: Sequence[Mapping[str, np.ndarray]],
    found: Sequence[Mapping[str, np.ndarray]],
) -> np.ndarray:
    name, of = question.part.output, question.part.of
    pairs = [(a[name], b.get(name)) for a, b in zip(dense, found, strict=True)]
    blocks = [(of(a), of(b)) for a, b in pairs if isinstance(b, np.ndarray) and a.shape == b.shape]
    if not blocks:
        return np.zeros(len(pairs), dtype=bool)
    if question.kind == "labels":
        return np.concatenate([(a == b).reshape(-1) for a, b in blocks])
    if question.kind == "detections":
        return _still_found(blocks, question.axis)
    if question.kind == "classes":
        axis = -1 if question.axis is None else question.axis
        if all(a.shape[2:] == (1, 1) for a, _ in blocks):
            axis = 1  # [batch, classes, 1, 1], as a global pooling leaves them
        if min(a.ndim for a, _ in blocks) <= max(axis, 0) or any(a.shape[axis] < 2 for a, _ in blocks):
            return np.zeros(0, dtype=bool)
        return np.concatenate([(a.argmax(axis) == b.argmax(axis)).reshape(-1) for a, b in blocks])
    ours, theirs = (np.concatenate([pair[side] for pair in blocks]) for side in (0, 1))
    if len(ours) < 3:
        return np.zeros(0, dtype=bool)
    return np.asarray(_nearest(ours) == _nearest(theirs))


def _still_found(blocks: Sequence[tuple[np.ndarray, np.ndarray]], axis: int | None) -> np.ndarray:
    """Of every place where the dense model is sure of a class: whether the same one still stands out there."""
    strongest = max((float(dense.max(initial=0.0)) for dense, _ in blocks), default=0.0)
    same = []
    for dense, found in blocks:
        along = _class_axis(dense.shape) if axis is None else axis
        best, other = dense.max(along), found.max(along)
        agrees = (dense.argmax(along) == found.argmax(along)) & (other > SURE * best)
        same.append(agrees[best > SURE * strongest])
    return np.concatenate(same) if same else np.zeros(0, dtype=bool)


def _class_axis(shape: Sequence[int]) -> int:
    """Where classes lie: axis 1 of pictures and of [batch, classes, places], the last of [batch, places, classes]."""
    return 2 if len(shape) == 3 and shape[2] < shape[1] else 1


def _kinds(value: ir.Value) -> set[str]:
    """The operators that make the pieces of a concatenation."""
    nodes = [source_of(piece) for piece in pieces_of(value)]
    return {node.op_type if node is not None else "" for node in nodes}


def _nearest(rows: np.ndarray) -> np.ndarray:
    """Of every row, the number of the other that is nearest by cosine."""
    rows = rows.astype(np.float64)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    return np.asarray(likeness.argmax(1))
