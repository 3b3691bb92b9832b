"""Detections of the models that there are, judged as COCO does."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.errors import InputError, MissingPackageError
from sparsecc.escaping import quoted

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
OVERLAP = 0.7
"""Intersection over union beyond which the less sure of two boxes of a class goes."""
MOST, LEAST_SURE = 100, 0.001
"""Boxes of a picture that are judged, and how sure they are at least."""


def average_precision(run: Run, file: Path, feeds_of: Callable[[Path], Mapping[str, np.ndarray]]) -> float:
    """COCO's mean average precision of a detector on the annotations `file`. The n-th class of the model is the n-th
    category by its number; where the model has more classes than there are categories, the category of that number.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as e:
        raise MissingPackageError("map needs pycocotools: pip install 'sparsecc[metrics]'") from e
    try:
        pictures = [
            (one["id"], one["file_name"]) for one in json.loads(file.read_text(encoding="utf-8"))["images"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"--labels {file}: no annotations of COCO: {e!r}: give an instances.json") from e
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables
        truth = COCO(str(file))
        categories = sorted(truth.getCatIds())
        found: list[dict[str, Any]] = []
        for number, name in pictures:
            picture = _picture(file, str(name))
            found += _rows(number, run, feeds_of(picture), truth.imgs[number], categories)
        if not found:
            return 0.0
        judge = COCOeval(truth, truth.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return max(float(judge.stats[0]), 0.0)


def _picture(labels: Path, name: str) -> Path:
    """Where a picture lies that annotations name: beside them or in images/, through links that the user laid there.
    InputError where it is not there, or where the name itself leads out of their folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise InputError(
            f"--labels {labels}: picture {quoted(name)} leads out of its folder: lay the pictures beside it"
        )
    places = labels.parent / name, labels.parent / "images" / name
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"--labels {labels}: no picture {quoted(name)} beside it or in images/: add it")
    return found


def _rows(
    number: int, run: Run, feeds: Mapping[str, np.ndarray], picture: Mapping[str, Any], categories: list[int]
) -> list[dict[str, Any]]:
    image = next(array for array in feeds.values() if array.ndim == 4)
    height, width = image.shape[2:] if image.shape[1] in (1, 3, 4) else image.shape[1:3]
    boxes, scores, classes, known = decoded(run(feeds), (height, width))
    scale = np.array([picture["width"] / width, picture["height"] / height] * 2)
    rows = []
    for box, score, label in zip(boxes * scale, scores, classes.tolist(), strict=True):
        category = categories[label] if known <= len(categories) and label < len(categories) else label
        x0, y0, x1, y1 = map(float, box)
        rows.append(
            {
                "image_id": number,
                "category_id": category,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(score),
            }
        )
    return rows


def decoded(
    outputs: Mapping[str, np.ndarray], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(boxes as corners in pixels of the input, scores, classes, how many classes the model has) of one picture, the
    surest first. InputError for outputs of none of these forms:

    - boxes (n, 4) as corners, scores (n,), labels (n,), each with or without a batch axis: torchvision, TensorFlow.
    - one output (1, 4 + classes, n): centres and sizes in pixels, then scores (YOLOv8 and later).
    - logits (1, n, classes + 1) and boxes (1, n, 4), centres and sizes as shares of the picture (DETR).
    """
    arrays = {name: np.asarray(array) for name, array in outputs.items()}
    if len(arrays) == 1 and (only := next(iter(arrays.values()))).ndim == 3 and only.shape[1] > 4:
        rows = only[0].T
        boxes, scores = _corners(rows[:, :4]), rows[:, 4:]
        return (*_kept(boxes, scores.max(1), scores.argmax(1), suppress=True), scores.shape[1])
    boxes = _one(arrays, lambda a: a.ndim >= 2 and a.shape[-1] == 4)
    logits = next((a for a in arrays.values() if a.ndim == 3 and a.shape[-1] != 4), None)
    if logits is not None:
        likely = np.exp(logits[0] - logits[0].max(-1, keepdims=True))
        likely = (likely / likely.sum(-1, keepdims=True))[:, :-1]
        scaled = _corners(boxes.reshape(-1, 4)) * np.array([size[1], size[0]] * 2)
        return (*_kept(scaled, likely.max(1), likely.argmax(1)), likely.shape[1])
    flat = {n: a.reshape(-1) for n, a in arrays.items() if a.ndim <= 2 and a.shape[-1:] != (4,)}
    scores = _one(flat, lambda a: a.dtype.kind == "f", "score")
    labels = _one(flat, lambda a: a.dtype.kind in "iu", "label")
    return (*_kept(boxes.reshape(-1, 4), scores, labels.astype(int)), int(labels.max(initial=0)) + 1)


def _one(arrays: Mapping[str, np.ndarray], fits: Callable[[np.ndarray], bool], word: str = "") -> np.ndarray:
    """The array whose name has the word, or that is such a one."""
    named = [a for n, a in arrays.items() if word and word in n.lower()]
    found = named or [a for a in arrays.values() if fits(a)]
    if not found:
        shapes = ", ".join(f"{name} {'x'.join(map(str, a.shape))}" for name, a in arrays.items())
        raise InputError(
            f"map does not know detections of this form ({shapes}): score them with --eval FILE.py:FUNCTION"
        )
    return found[0]


def _corners(boxes: np.ndarray) -> np.ndarray:
    """Centre, width and height -> corners."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _kept(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, *, suppress: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The surest, of overlapping ones of a class with `suppress` the surest alone."""
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > LEAST_SURE]
    chosen: list[int] = []
    for one in order.tolist():
        if len(chosen) == MOST:
            break
        rivals = [c for c in chosen if classes[c] == classes[one]] if suppress else []
        if not rivals or _overlaps(boxes[one], boxes[rivals]).max() <= OVERLAP:
            chosen.append(one)
    return boxes[chosen], scores[chosen], classes[chosen]


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box and each of others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return np.asarray(shared / np.maximum(areas - shared, 1e-9))
