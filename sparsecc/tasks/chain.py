"""Packages of several files: compiled as one graph, written as the files they were, and proved to be that graph."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from sparsecc.backends import backend_named
from sparsecc.compilation import Compilation
from sparsecc.errors import InputError, InternalError
from sparsecc.escaping import one_line
from sparsecc.graph.decoder_sizes import DecoderSizes
from sparsecc.ir.save import write
from sparsecc.ir.subgraphs import show
from sparsecc.ir.versions import at_versions
from sparsecc.loading.chain import Chain
from sparsecc.loading.handed import require_whole_pairs
from sparsecc.loading.models import load_ir
from sparsecc.loading.package import Package, is_bundle_of_one, model_file, package_at
from sparsecc.options import CompileOptions
from sparsecc.runtime.numerics import QUANTIZED, worst_error
from sparsecc.runtime.session import open_session
from sparsecc.system.progress import Emit, nobody_listens
from sparsecc.system.scratch import Scratch
from sparsecc.targets import target_named
from sparsecc.verify.built import require_same

if TYPE_CHECKING:
    from sparsecc.tasks.stages import Work

Feeds = Mapping[str, np.ndarray]


def compilation_of_chain(
    package: Package, options: CompileOptions, scratch: Scratch, emit: Emit = nobody_listens
) -> Compilation:
    """A compile of a package of several files. InputError where an option is for one file alone."""
    require_one_form(package, options)
    chain = Chain.of(package)
    compilation = Compilation(write(chain.model, scratch.chain), options, scratch, emit, package)
    compilation.original, compilation.chain = package.folder, chain
    return compilation


def require_one_form(package: Package, options: CompileOptions) -> None:
    """InputError where an option has no meaning for several files."""
    on_processors = backend_named(target_named(options.target).backend).runs_here
    asked = {
        f"--target {options.target}": not on_processors,
        f"--emit {options.emit}": options.emit not in (None, "onnx"),
        f"--device {options.device}": options.device != "local",
        "--prune layers": "layers" in options.prune,
        "--vocabulary": options.vocabulary is not None,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise InputError(
                f"{one_line(str(package.folder), 120)} holds several models that share axes, which {name} does not "
                "take: leave it out, or name one of the files, and only what is its own will be cut"
            )


def require_whole(compilation: Compilation) -> None:
    """InputError where a file is cut where it meets another file of its package."""
    cut = {*compilation.narrowed.inputs, *compilation.narrowed.outputs} - compilation.caches
    if cut and compilation.chain is None:
        require_whole_pairs(compilation.original or compilation.file, cut)


def as_one_file(path: Path, file: Path) -> Path:
    """The model to run: what `model_file` says; for a package of several files `file`, where all of them are written
    as one."""
    package = package_at(path) if path.is_dir() and not is_bundle_of_one(path) else None
    if package is None or not package.is_chain:
        return model_file(path)
    return write(Chain.of(package).model, file)


def write_files(work: Work) -> dict[str, Any]:
    """Write the files of a chain in place of the one that was built of them, and run them one after the other.

    {"files": [name], "handed": [{"file", "name", "axes": {axis: [before, after]}}], "relative_error": of their outputs
    against the whole's} for the report. InternalError where they give anything else than the whole.
    """
    compilation, chain = work.compilation, work.compilation.chain
    assert chain is not None
    dense = compilation.feeds[0]
    feeds = compilation.narrowed.feeds(dense)
    before = _handed(compilation, load_ir(compilation.file), dense)
    after = _handed(compilation, work.analysis.model.clone(), feeds)
    wanted = work.probes.artefact(work.backend, work.compiled).run(feeds)
    for name in work.artefact.files:
        (work.folder / name).unlink()
    if chain.crosses:
        _, heads, _, width = after[chain.crosses[0]].shape
        chain.cross = heads, width
    found: dict[str, np.ndarray] = dict(feeds)
    for part in chain.parts:
        model = chain.part(work.analysis.model, part, {**feeds, **after})
        chain.left[part.file] = DecoderSizes.of(model)
        path = _built(work, model, part.file)
        found |= part.run(open_session(path, threads=compilation.options.threads).run, found)
    given = {name: found[name] for name in wanted}
    error = worst_error(wanted, given)
    if not work.decision.plan.quantization:
        whole = work.analysis.model
        opened = partial(compilation.opened, owned=True)
        require_same(whole, lambda: compilation.opened(whole), feeds, wanted, given, opened)
    elif not error <= QUANTIZED:
        raise InternalError(
            f"run one after the other the files differ from the whole by {error:.2g}: please report it with the "
            "folder, or with what --debug keeps"
        )
    return {
        "files": [part.file for part in chain.parts],
        "handed": list(_less(chain, before, after)),
        "relative_error": error,
    }


def _less(chain: Chain, before: Feeds, after: Feeds) -> Iterator[dict[str, Any]]:
    """What files hand each other in other sizes than before."""
    for part in chain.parts:
        for own, name in part.outputs.items():
            shapes = (before[name].shape, after[name].shape) if name in before else ((), ())
            axes = {str(i): [a, b] for i, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b}
            if axes:
                yield {"file": part.file, "name": own, "axes": axes}


def _built(work: Work, model: ir.Model, name: str) -> Path:
    """One file, as the backend builds it."""
    compilation, asked = work.compilation, work.compilation.options
    folder = compilation.scratch.chain_part
    folder.mkdir()
    options = work.backend.build_options(asked)
    model = at_versions(model, asked.opset, asked.ir_version)
    artefact = work.backend.build(model, folder, options, compilation.progress)
    path = write(load_ir(folder / artefact.main), work.folder / name)
    shutil.rmtree(folder)
    return path


def _handed(compilation: Compilation, model: ir.Model, feeds: Feeds) -> dict[str, np.ndarray]:
    """What the files of a chain hand each other."""
    chain = compilation.chain
    assert chain is not None
    show(model, chain.handed)
    found = compilation.opened(model, owned=True).run(feeds)
    return {name: found[name] for name in chain.handed}
