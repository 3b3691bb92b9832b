"""What a call in Python holds in memory, for its worker: samples become files as they are asked for, functions of the
user's run here, and the models that they call there.

In a request `memory:NAME` stands for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from sparsecc.data.array_files import read_arrays, write_arrays
from sparsecc.data.named import MEMORY
from sparsecc.errors import InputError
from sparsecc.worker import Exchange, Question, Reply, ask

FEEDS, OUTPUTS = "feeds.npz", "outputs.npz"

Run = Callable[[Mapping[str, Any]], dict[str, np.ndarray]]


def is_data(value: object) -> bool:
    """Whether a value of an option for samples is the samples themselves: an array, or what is iterated over."""
    if value is None or isinstance(value, str | bytes | Path) or hasattr(value, "__fspath__"):
        return False
    return callable(value) or any(hasattr(value, name) for name in ("__iter__", "__getitem__", "__array__"))


class InMemory:
    """The samples and functions of one call. `folder` is where they are handed over; the worker writes there too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._spools: dict[str, Spool] = {}
        self._functions: dict[str, Callable[[Run], Any]] = {}

    @property
    def has_functions(self) -> bool:
        """Whether the worker is to run models for functions, and writes what they give."""
        return bool(self._functions)

    def samples(self, option: str, value: object) -> object:
        """What stands in a request for the value of an option for samples."""
        if not is_data(value):
            return value
        self._spools[option] = value if isinstance(value, Spool) else Spool(option, value, self.folder)
        return f"{MEMORY}{option}"

    def function(self, value: object) -> object:
        """What stands in a request for a function that scores a model."""
        if not callable(value):
            return value
        name = str(getattr(value, "__name__", type(value).__name__))
        self._functions[name] = value
        return f"{MEMORY}{name}"

    def again(self) -> dict[str, Any]:
        """The same for other calls, by option: samples that are read once, functions that run one at a time."""
        again: dict[str, Any] = dict(self._spools)
        for function in self._functions.values():
            again["evaluate"] = _one_at_a_time(function)
        return again

    def __call__(self, question: Question, exchange: Exchange) -> Reply:
        """The answer to a worker's question. What a function or an iterator of the user's raises passes through."""
        if (spool := self._spools.get(str(question.get("samples")))) is not None:
            file = spool.file(question.get("index"))
            return {} if file is None else {"file": str(file)}
        if (function := self._functions.get(str(question.get("function")))) is not None:
            with self._run(exchange) as run:
                return {"value": _number(function(run), str(question["function"]))}
        raise InputError("memory: names what a call in Python holds: give a file instead")

    @contextmanager
    def _run(self, exchange: Exchange) -> Iterator[Run]:
        """The model that the worker has at hand, as a function of its inputs, for one call of the user's function:
        kept for longer it would be another model."""
        is_over = False

        def run(feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
            if is_over:
                raise InputError("--evaluate: its `run` is that of an earlier call: use the one of this call")
            write_arrays(self.folder / FEEDS, {name: as_array(name, one) for name, one in feeds.items()})
            exchange({"folder": str(self.folder)})
            return read_arrays(self.folder / OUTPUTS)

        try:
            yield run
        finally:
            is_over = True


class Spool:
    """Samples in memory as files, each written when it is first asked for: they are read once, however often and by
    however many workers they are looked at."""

    def __init__(self, option: str, source: Any, folder: Path) -> None:
        self._option, self._folder = option, folder
        self._items = _items(source)
        self._files: list[Path] = []
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Path]:
        for index in count():
            if (file := self.file(index)) is None:
                return
            yield file

    def file(self, index: Any) -> Path | None:
        """The file of a sample, None beyond the last. InputError for what are no arrays, and for a number that is not
        one of those read or the next."""
        with self._lock:
            if type(index) is not int or not 0 <= index <= len(self._files):
                raise InputError(f"--{self._option}: a sample out of turn was asked for")
            while index >= len(self._files):
                try:
                    item = next(self._items)
                except StopIteration:
                    return None
                file = self._folder / f"{self._option}[{len(self._files)}].npz"
                write_arrays(file, _arrays(file.stem, item))
                self._files.append(file)
            return self._files[index]


def files_of(spec: str) -> Iterator[Path]:
    """The worker's side of samples in memory: a file for each, in order, made when it is reached."""
    for index in count():
        reply = ask({"samples": spec.removeprefix(MEMORY), "index": index})
        if "file" not in reply:
            return
        yield Path(reply["file"])


def function_in_parent(spec: str) -> Callable[[Run], float]:
    """The worker's side of a function in memory: it runs in the parent, which sends the inputs that it calls `run`
    with here."""
    name = spec.removeprefix(MEMORY)

    def score(run: Run) -> float:
        reply = ask({"function": name})
        while "folder" in reply:
            folder = Path(reply["folder"])
            write_arrays(folder / OUTPUTS, run(read_arrays(folder / FEEDS)))
            reply = ask({"ran": name})
        return float(reply["value"])

    score.__name__ = name
    return score


def _one_at_a_time(function: Callable[[Run], Any]) -> Callable[[Run], Any]:
    lock = threading.Lock()

    @wraps(function)
    def alone(run: Run) -> Any:
        with lock:
            return function(run)

    return alone


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as e:
        raise InputError(f"--evaluate {name} returned {value!r}: it must return a number") from e
    if isinstance(value, bool) or not np.isfinite(number):
        raise InputError(f"--evaluate {name} returned {value!r}: it must return a finite number")
    return number


def _items(source: Any) -> Iterator[Any]:
    """The samples of what a user gave: one array or mapping holds all of them; a function is called; a data set that
    only counts its items is read by their numbers."""
    if isinstance(source, Mapping) or hasattr(source, "__array__"):
        return iter([source])
    if hasattr(source, "__iter__"):
        return iter(source)
    if callable(source):
        made = source()
        if not is_data(made):
            name = getattr(source, "__name__", type(source).__name__)
            raise InputError(
                f"{name}() gives {type(made).__name__}: yield a dict or a tuple of arrays per sample"
            )
        return _items(made)
    return (source[index] for index in range(len(source)))


def _arrays(where: str, item: Any) -> dict[str, np.ndarray]:
    """A sample by input names, or by arr_0, arr_1, … in their order, as `numpy.savez` calls them.

    Of a mapping, what are no arrays (records, ragged lists) is left out: a model has no inputs for them.
    """
    if isinstance(item, tuple | list) and item and isinstance(item[0], Mapping):
        rest = {f"arr_{number}": one for number, one in enumerate(item) if number}
        item = {**item[0], **rest}
    if isinstance(item, Mapping):
        found = {str(name): _array(one) for name, one in item.items() if one is not None}
        return {name: array for name, array in found.items() if array.dtype.kind != "O"}
    parts = list(item) if _is_row(item) else [item]
    return {f"arr_{number}": as_array(where, part) for number, part in enumerate(parts)}


def _is_row(item: Any) -> bool:
    """Whether a sample is several arrays: a tuple, or a list of arrays rather than of numbers."""
    return isinstance(item, tuple) or (isinstance(item, list) and any(map(_is_array, item)))


def _is_array(part: Any) -> bool:
    return hasattr(part, "__array__") or hasattr(part, "detach")


def as_array(where: str, value: Any) -> np.ndarray:
    """An array, a tensor of another library, a picture or nested lists as an array. InputError for anything else."""
    array = _array(value)
    if array.dtype.kind == "O" and not all(isinstance(one, str) for one in array.ravel()):
        raise InputError(f"{where} holds {type(value).__name__}, which is no array: give numbers or text")
    return array


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # torch, whose bfloat16 numpy does not know
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    try:
        return np.asarray(value)
    except ValueError:  # lists of unlike lengths
        return np.empty((), dtype=object)
