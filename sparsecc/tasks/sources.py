"""Where a model comes from that is named: a file, a bundle, a folder of Hugging Face, a name at its hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsecc.bundle.folder import MANIFEST
from sparsecc.errors import InputError, MissingPackageError, UnavailableError
from sparsecc.escaping import one_line
from sparsecc.loading.package import GENAI, HUGGING_FACE

HUB = "hf:"
"""What a name at the hub begins with: `hf:owner/name`, or `hf:owner/name@revision`."""
PARTS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
"""What is fetched of a model: data, no code, and weights in no form that runs code."""
EXPORT = "sparsecc.tasks.hugging_face:export_folder"

Run = Callable[..., Any]


@contextmanager
def located(name: str | os.PathLike[str], run: Run) -> Iterator[Path]:
    """The file or folder that a worker can open. `run(task, request, write=...)` runs a task in a worker: what has
    to be exported is exported there."""
    text = os.fspath(name)
    path = _fetched(text.removeprefix(HUB)) if text.startswith(HUB) else Path(name)
    if not path.exists():
        raise InputError(f"{path}: no such file: check the path")
    if not _has_weights_alone(path):
        yield path.absolute()
        return
    from sparsecc.system.temp_folders import temporary_folder

    with temporary_folder("input") as folder:
        known_as = text.removeprefix(HUB).partition("@")[0] if text.startswith(HUB) else os.path.abspath(path)
        request = {"folder": str(path.absolute()), "output": str(folder), "name": Path(known_as).name}
        yield Path(run(EXPORT, request, write=[folder])["path"])


def compiled_from(path: Path) -> Path:
    """What a compile reads: of a bundle its model, or itself where it holds several files. InputError for a bundle
    without a model."""
    if not (path / MANIFEST).is_file() or any((path / name).is_file() for name in (GENAI, HUGGING_FACE)):
        return path
    if not (path / "model.onnx").is_file():
        if len(list(path.glob("*.onnx"))) > 1:
            return path
        raise InputError(f"{path} is a bundle without model.onnx: compile the model that it was made from")
    return path / "model.onnx"


def _has_weights_alone(path: Path) -> bool:
    """Whether it is a folder of Hugging Face without a model that a runtime loads."""
    if not (path / HUGGING_FACE).is_file() or (path / GENAI).is_file():
        return False
    return not any(path.glob("*.onnx"))


def _fetched(name: str) -> Path:
    """The folder of a model of the hub in its client's own cache; HF_ENDPOINT, HF_HOME and HF_TOKEN are obeyed."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError as e:
        raise MissingPackageError(
            f"{HUB}{one_line(name, 80)} needs the hub's client: run pip install 'sparsecc[huggingface]'"
        ) from e
    repository, _, revision = name.partition("@")
    try:
        return Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(PARTS)))
    except (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as e:
        raise InputError(f"{HUB}{one_line(name, 80)}: {one_line(str(e), 160)}") from e
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as e:
        told = f"{HUB}{one_line(name, 80)}: the hub does not give it ({one_line(str(e), 160)})"
        raise UnavailableError(f"{told}: try again, or give a folder on disk") from e
