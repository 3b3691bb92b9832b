"""Metrics by name, on labelled samples: top-1, mean average precision, mean intersection over union, word errors,
perplexity. Larger is better in all: of word errors what is left to 1 is told, of perplexity its inverse.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.data.files import Feeds, checked, inputs_of, labelled_from
from sparsecc.data.preprocessing import opened_image
from sparsecc.data.sources import LABEL, Sample, SampleSource
from sparsecc.errors import InputError, MissingPackageError
from sparsecc.verify.detection import average_precision

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
NO_CLASS = 255
"""The value of a mask's pixels that are not judged."""
_BLANKS = ("<pad>", "[PAD]", "<blank>", "_")
"""What the token of connectionist temporal classification that means nothing is called."""


@dataclass(frozen=True)
class Labelled:
    """The labelled samples `spec` of a model, whose own files lie in `beside`."""

    spec: str
    model: ir.Model
    beside: Path

    def __iter__(self) -> Iterator[tuple[Feeds, Sample]]:
        return labelled_from(self.spec, self.model, self.beside)

    def label(self, sample: Sample) -> Any:
        if LABEL not in sample:
            has = ", ".join(sorted(map(str, sample)))
            raise InputError(
                f"--labels {self.spec}: a sample without a label (it holds {has}): give a folder for each class, or "
                "'label' beside the inputs"
            )
        return sample[LABEL]


def top1(run: Run, data: Labelled) -> float:
    """The share of samples whose largest number of the first output is at the label. Shape (batch, classes, …)."""
    right = total = 0
    for feeds, sample in data:
        scores = _first(run(feeds))
        answers = scores.reshape(len(scores), -1).argmax(1)
        labels = np.asarray(data.label(sample)).reshape(-1)
        if len(labels) != len(answers):
            raise InputError(
                f"--labels {data.spec}: {len(labels)} labels for {len(answers)} samples: give one for each"
            )
        right, total = right + int((answers == labels).sum()), total + len(answers)
    return right / _some(total, data)


def mean_iou(run: Run, data: Labelled) -> float:
    """Intersection over union of the classes that occur, their mean; pixels of 255 are not judged.

    The first output is (batch, classes, height, width); masks of another size are compared at their own, nearest.
    """
    shared, either = Counter[int](), Counter[int]()
    for feeds, mask in _masked(data):
        scores = _first(run(feeds))
        if scores.ndim != 4:
            raise InputError(
                f"miou needs an output of 4 axes (batch, classes, height, width), not {scores.ndim}"
            )
        found = _nearest(scores.argmax(1)[0], mask.shape)
        known = mask != NO_CLASS
        for label in np.union1d(found[known], mask[known]).tolist():
            a, b = (found == label) & known, (mask == label) & known
            shared[label] += int((a & b).sum())
            either[label] += int((a | b).sum())
    _some(len(either), data)
    return float(np.mean([shared[label] / either[label] for label in either]))


def word_accuracy(run: Run, data: Labelled) -> float:
    """1 less the rate of word errors, of a model of letters by connectionist temporal classification: its first
    output is (1, time, letters). The letters are those of the vocab.json beside the model."""
    try:
        import jiwer
    except ImportError as e:
        raise MissingPackageError("wer needs jiwer: pip install 'sparsecc[metrics]'") from e
    letters = _letters(data.beside / "vocab.json")
    spoken, heard = [], []
    for feeds, sample in data:
        text = sample.get("text", sample.get(LABEL))
        if not isinstance(text, str):
            raise InputError(
                f"--labels {data.spec}: a sound without its text: give 'audio' and 'text' in each line"
            )
        spoken.append(text)
        heard.append(_spelled(_first(run(feeds)).argmax(-1)[0], letters))
    _some(len(spoken), data)
    return 1.0 - float(jiwer.wer(spoken, heard))


def inverse_perplexity(run: Run, data: Labelled) -> float:
    """exp of the mean log probability of the next token: 1/perplexity. The first output is (1, tokens, vocabulary)."""
    total, tokens = 0.0, 0
    for feeds, _ in data:
        ids = feeds["input_ids"] if "input_ids" in feeds else next(iter(feeds.values()))
        length = int(feeds["attention_mask"].sum()) if "attention_mask" in feeds else ids.shape[1]
        logits = _first(run(feeds))[0, : length - 1].astype(np.float64)
        largest = logits.max(-1, keepdims=True)
        logs = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
        total += float(logs[np.arange(length - 1), ids[0, 1:length]].sum())
        tokens += length - 1
    return float(np.exp(total / _some(tokens, data)))


def mean_average_precision(run: Run, data: Labelled) -> float:
    """COCO's mean average precision (0.50 to 0.95) of a detector on a coco.json, whose pictures lie beside it or in
    `images/` there."""
    file, inputs = Path(data.spec), inputs_of(data.model)
    source = SampleSource(inputs, data.beside)

    def feeds_of(picture: Path) -> Feeds:
        return checked(picture.name, inputs, source.picture(picture))

    return average_precision(run, file, feeds_of)


NAMED_METRICS: dict[str, tuple[str, Callable[[Run, Labelled], float]]] = {
    "top1": ("top-1", top1),
    "map": ("mAP", mean_average_precision),
    "miou": ("mIoU", mean_iou),
    "wer": ("1 - WER", word_accuracy),
    "perplexity": ("1/perplexity", inverse_perplexity),
}
"""What `--evaluate` calls it -> (what reports call it, the function)."""


def metric_named(name: str, data: Labelled) -> Callable[[Run], float]:
    """A built-in metric as a function of the model."""
    title, function = NAMED_METRICS[name]

    def score(run: Run) -> float:
        return function(run, data)

    score.__name__ = title
    return score


def _masked(data: Labelled) -> Iterator[tuple[Feeds, np.ndarray]]:
    """Samples with their masks (height, width): of a folder, the pictures in images/ and those of the same names in
    masks/; of any other source, its labels."""
    folder = Path(data.spec)
    if not (folder / "masks").is_dir():
        for feeds, sample in data:
            yield feeds, np.asarray(data.label(sample)).squeeze()
        return
    inputs = inputs_of(data.model)
    masks = {file.stem: file for file in sorted((folder / "masks").iterdir())}
    source = SampleSource(inputs, data.beside)
    for file in sorted((folder / "images").iterdir()):
        if file.stem not in masks:
            raise InputError(f"{file}: no mask of that name in masks/: add it, or remove the picture")
        feeds = checked(file.name, inputs, source.picture(file))
        yield feeds, np.asarray(opened_image(masks[file.stem]))


def _nearest(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    rows = (np.arange(size[0]) + 0.5) * image.shape[0] / size[0]
    columns = (np.arange(size[1]) + 0.5) * image.shape[1] / size[1]
    picked: np.ndarray = image[rows.astype(int)[:, None], columns.astype(int)]
    return picked


def _letters(file: Path) -> list[str]:
    try:
        numbers = json.loads(file.read_text(encoding="utf-8"))
        letters = {int(number): str(letter) for letter, number in numbers.items()}
    except (OSError, ValueError, AttributeError, TypeError) as e:
        raise InputError(f"{file}: no vocabulary: {e}: put the model's vocab.json beside it") from e
    return [letters.get(number, "") for number in range(max(letters, default=-1) + 1)]


def _spelled(numbers: np.ndarray, letters: list[str]) -> str:
    """Text from the likeliest letter at every time: repeats count once, blanks not at all."""
    kept = [n for n, before in zip(numbers.tolist(), [None, *numbers.tolist()], strict=False) if n != before]
    text = "".join(letters[n] for n in kept if n < len(letters) and letters[n] not in _BLANKS)
    return " ".join(text.replace("|", " ").split())


def _first(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(next(iter(outputs.values())))


def _some(number: int, data: Labelled) -> int:
    if not number:
        raise InputError(f"--labels {data.spec} holds no samples: give at least one")
    return number
