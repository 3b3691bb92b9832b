"""A model with fewer words, and its tokenizer and configuration with it: made, and proved, before a compile begins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.data.texts import TOKENIZER
from sparsecc.data.vocabulary import is_stale, settings_with_words, with_words, words_kept
from sparsecc.errors import InputError, InternalError
from sparsecc.graph.vocabulary import Vocabulary, vocabulary_of
from sparsecc.ir.save import write
from sparsecc.loading.models import load_ir
from sparsecc.loading.normalise import normalise
from sparsecc.loading.package import Package, package_at
from sparsecc.options import CompileOptions
from sparsecc.system.progress import Emit
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.chain import compilation_of_chain

WORDS = "given_vocabulary.json"
"""The numbers before of the words that stayed, in a bundle."""
FURTHEST = 1e-5
"""How far a score may be from that of the model before, relative to the largest: kernels of unlike widths round in
another order."""


@dataclass(frozen=True)
class FewerWords:
    """The `model` to compile, a folder where one was given; `kept` (words,) int64 are the numbers before of its words,
    of `before`; `exact` says that their scores are the same bit by bit. `sizes` are the bytes of the model before and
    after."""

    model: Path
    kept: np.ndarray
    before: int
    exact: bool
    sizes: tuple[int, int]

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return {
            "before": self.before,
            "after": len(self.kept),
            "exact": self.exact,
            "bytes": list(self.sizes),
        }


def compilation_of(path: Path, options: CompileOptions, scratch: Scratch, emit: Emit) -> Compilation:
    """A compile of the model at `path`, after `--vocabulary` left words out of it; of all files of a package."""
    package = package_at(path)
    if package is not None and package.is_chain:
        return compilation_of_chain(package, options, scratch, emit)
    if options.vocabulary is None:
        return Compilation.opened_at(path, options, scratch, emit)
    require_text(options)
    emit({"stage": "vocabulary", "share": 0.0})
    fewer = with_fewer_words(path, options, scratch)
    compilation = Compilation.opened_at(fewer.model, options, scratch, emit)
    compilation.original = path if package is None else package.model
    compilation.vocabulary = {**fewer.facts(), "kept": fewer.kept}
    return compilation


def require_text(options: CompileOptions) -> None:
    """InputError where numbers of words would come from outside: they are those before."""
    given = options.samples
    is_text = given is None or given == "self" or str(given).lower().endswith(".txt")
    wrong = "--calib" if not is_text else "--eval" if options.evaluate is not None else None
    if wrong:
        raise InputError(
            f"{wrong} would hand the numbers that words have now: with --vocabulary give text or nothing, and compile "
            "the result again with it"
        )


def with_fewer_words(path: Path, options: CompileOptions, scratch: Scratch) -> FewerWords:
    """Leave the words that `--vocabulary` names, in a folder of the scratch; the files beside the model follow.

    InputError where words cannot go, InternalError where what is left does not score them as before.
    """
    package = package_at(path)
    file = path if package is None else package.model
    model = normalise(load_ir(file))
    vocabulary = vocabulary_of(model)
    assert options.vocabulary is not None
    kept = words_kept(Path(options.vocabulary), file.parent / TOKENIZER, vocabulary.number)
    before = vocabulary.number
    vocabulary.keep(kept)
    plain = CompileOptions.of(
        {"calib": "none", "inputs": options.inputs, "working_memory": options.working_memory}
    )
    asked = Compilation.opened_at(path, plain, scratch)
    asked.begin(normalise(load_ir(file)))
    exact = _proved(asked, vocabulary, model, kept)
    folder = scratch.words
    folder.mkdir(parents=True, exist_ok=True)
    write(model, folder / file.name)
    written = [path for path in folder.iterdir() if path.is_file()]
    _write_beside(folder, file.parent, package, kept)
    made = folder if package is not None else folder / file.name
    return FewerWords(made, kept, before, exact, (asked.dense.bytes, sum(f.stat().st_size for f in written)))


def _proved(asked: Compilation, vocabulary: Vocabulary, model: ir.Model, kept: np.ndarray) -> bool:
    """Whether outputs for the words that stay are the same bit by bit. InternalError where they are not the same."""
    name = vocabulary.ids.name or ""
    scored = {value.name for value in vocabulary.scores if value.is_graph_output()}
    runner, exact = asked.opened(model.clone(), owned=True), True
    for number, feeds in enumerate(asked.feeds):
        ids = np.random.default_rng(number).integers(0, len(kept), feeds[name].shape)
        dtype = feeds[name].dtype
        wanted = asked.dense.runner.run({**feeds, name: kept[ids].astype(dtype)})
        found = runner.run({**feeds, name: ids.astype(dtype)})
        for output, values in found.items():
            right = wanted[output][..., kept] if output in scored else wanted[output]
            if np.array_equal(values, right, equal_nan=values.dtype.kind == "f"):
                continue
            exact = False
            if not np.allclose(
                values, right, rtol=0, atol=FURTHEST * float(np.abs(right).max()), equal_nan=True
            ):
                raise InternalError(
                    f"with fewer words output {output!r} differs: please report it with the file, or with what "
                    "--debug keeps"
                )
    return exact


def _write_beside(folder: Path, source: Path, package: Package | None, kept: np.ndarray) -> None:
    """The tokenizer, the configurations, and all else that a runtime reads, in the new numbers."""
    if package is None:
        if (source / TOKENIZER).is_file():
            _write_json(folder / TOKENIZER, with_words(source / TOKENIZER, kept))
        return
    _write_json(folder / package.config, settings_with_words(package.settings, kept))
    carried, _ = package.others()
    for name in carried:
        if name == TOKENIZER:
            _write_json(folder / name, with_words(package.folder / name, kept))
        elif not is_stale(name):
            if name.lower().endswith(".json"):
                _write_json(folder / name, settings_with_words(package.parsed(name), kept))
            else:
                (folder / name).write_bytes(package.read(name))


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
