"""ONNX files of the zoo, made on demand and kept in a cache: `python -m tests.zoo.export all`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import onnx.version_converter
import onnxruntime as ort
import platformdirs
import torch

from tests.zoo import ZOO, known, registry, weights
from tests.zoo.registry import Entry, Model

Exporter = Literal["dynamo", "torchscript"]
Form = Literal["plain", "unoptimized", "onnxslim", "onnxsim", "ort-basic", "ort-extended"]
EXPORTERS: tuple[Exporter, ...] = get_args(Exporter)
FORMS: tuple[Form, ...] = get_args(Form)
_RECURRENT = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)
EXPORT_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What exporters raise when they meet something they do not know."""
OPSETS: dict[Exporter, int] = {"dynamo": 18, "torchscript": 17}
RANGES: dict[Exporter, range] = {"dynamo": range(18, 24), "torchscript": range(9, 21)}
"""The opsets that each exporter writes itself."""


class ZooUnavailable(Exception):
    """The exporter cannot export that entry; the message says why in one line."""


def onnx_path(name: str, exporter: Exporter = "dynamo", form: Form = "plain") -> Path:
    """The ONNX file of a zoo entry, exported now unless the cache holds it.

    `form`: "plain" as the exporter gives it, "unoptimized" without the exporter's own optimizer (dynamo
    only), put through "onnxslim" or "onnxsim", or saved by ONNX Runtime after its basic or its extended
    optimizations. ZooUnavailable when the exporter is known or found to fail on it.
    """
    if name not in ZOO:
        raise ZooUnavailable(f"no zoo entry is named '{name}': see tests.zoo.ZOO")
    if (name, exporter) in known.FAILURES:
        raise ZooUnavailable(f"{exporter} cannot export {name}: {known.FAILURES[name, exporter]}")
    if form == "unoptimized" and exporter == "torchscript":
        raise ZooUnavailable(f"{name}: only dynamo has an optimizer to leave out")
    suffix = "" if form == "plain" else f".{form}"
    path = cache_folder() / fingerprint(ZOO[name].source) / f"{name}.{exporter}{suffix}.onnx"
    if not path.exists():
        with quietly():
            _write(path, _make(ZOO[name], exporter, form))
    return path


def cache_folder() -> Path:
    """SPARSECC_ZOO_CACHE, or sparsecc-zoo in the user's cache."""
    given = os.environ.get("SPARSECC_ZOO_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("sparsecc-zoo"))


@cache
def fingerprint(source: Path) -> str:
    """Changes with the exporting packages and with what makes the entry: its file and the zoo's machinery."""
    digest = hashlib.sha256()
    for package in ("torch", "onnx", "onnxscript", "transformers", "onnxslim", "onnxsim"):
        digest.update(f"{package}={_version(package)};".encode())
    blocks = Path(__file__).with_name("blocks.py")
    for file in (source, Path(registry.__file__), Path(weights.__file__), blocks):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silences what exporters print, warn and log; the TorchScript exporter prints from C++ too."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            _to_null(1),
            _to_null(2),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def _to_null(descriptor: int) -> Iterator[None]:
    saved, null = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, descriptor)
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)
        os.close(null)


def _make(entry: Entry, exporter: Exporter, form: Form) -> onnx.ModelProto:
    if form not in ("plain", "unoptimized"):
        return in_form(onnx_path(entry.name, exporter), form)
    static = known.STATIC.get((entry.name, exporter), known.Static())
    try:
        proto = export(entry.build(), exporter, optimize=form == "plain", fixed=static.dimensions)
    except EXPORT_ERRORS as e:
        root: BaseException = e
        while root.__cause__ is not None:
            root = root.__cause__
        lines = [line for line in str(root).splitlines() if line.strip()] or [""]
        raise ZooUnavailable(
            f"{exporter} cannot export {entry.name}: {type(root).__name__}: {' '.join(lines)[:200]}"
        ) from e
    return proto


def export(
    model: Model,
    exporter: Exporter,
    *,
    optimize: bool = True,
    fixed: frozenset[str] = frozenset(),
    opset: int | None = None,
) -> onnx.ModelProto:
    """The module as ONNX, straight from torch's exporter, at the opset of OPSETS unless another is given.

    The model's named dimensions are dynamic, but for those in `fixed`, which keep their example size.
    """
    arguments = model.example()
    names = list(model.input_names)
    axes = {
        name: {axis: d for axis, d in found.items() if d not in fixed}
        for name, found in model.dynamic_axes.items()
    }
    if exporter == "torchscript":
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            torch.onnx.export(
                model.module,
                arguments,
                file,
                dynamo=False,
                input_names=names,
                dynamic_axes=axes,
                opset_version=opset or OPSETS[exporter],
            )
            return onnx.load(file)
    for operator in _RECURRENT:
        # The first export leaves its decomposition cached, and the next one would unroll the loop over time.
        operator._dispatch_cache.clear()
    program = torch.onnx.export(
        model.module,
        arguments,
        dynamo=True,
        input_names=names,
        dynamic_shapes=tuple(axes[name] for name in names),
        opset_version=opset or OPSETS[exporter],
        optimize=optimize,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def at_opset(name: str, exporter: Exporter, opset: int) -> onnx.ModelProto:
    """A zoo entry at an opset: as the exporter writes it where it can, else its usual file converted by onnx.

    ZooUnavailable where neither can be.
    """
    if opset in RANGES[exporter]:
        if (name, exporter) in known.FAILURES:
            raise ZooUnavailable(f"{exporter} cannot export {name}: {known.FAILURES[name, exporter]}")
        fixed = known.STATIC.get((name, exporter), known.Static()).dimensions
        with quietly():
            try:
                return export(ZOO[name].build(), exporter, fixed=fixed, opset=opset)
            except EXPORT_ERRORS as e:
                raise ZooUnavailable(f"{exporter} cannot export {name} at opset {opset}") from e
    try:
        return onnx.version_converter.convert_version(onnx.load(onnx_path(name, exporter)), opset)
    except (RuntimeError, ValueError) as e:
        raise ZooUnavailable(f"onnx cannot convert {name} of {exporter} to opset {opset}") from e


def in_form(path: Path, form: Form) -> onnx.ModelProto:
    """The model of a file as onnxslim, onnxsim or ONNX Runtime leave it. ZooUnavailable where they fail."""
    if form in _LEVELS:
        return _saved_by_runtime(path, _LEVELS[form])
    proto = onnx.load(path)
    result: Any
    if form == "onnxslim":
        import onnxslim

        result = onnxslim.slim(proto)
    else:
        import onnxsim

        result, valid = onnxsim.simplify(proto)
        if not valid:
            raise ZooUnavailable(f"onnxsim says its own result for {path.name} is wrong")
    if not isinstance(result, onnx.ModelProto):
        raise ZooUnavailable(f"{form} gives no model for {path.name}")
    return result


_LEVELS: dict[str, ort.GraphOptimizationLevel] = {
    "ort-basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "ort-extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def _saved_by_runtime(path: Path, level: ort.GraphOptimizationLevel) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _write(path: Path, proto: onnx.ModelProto) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    with os.fdopen(handle, "wb") as file:
        file.write(proto.SerializeToString())
    os.replace(partial, path)


if __name__ == "__main__":
    from tests.zoo.report import main

    main()
