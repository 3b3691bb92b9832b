"""Folders that hold a model as its runtime loads it: its files, its configuration, its tokenizer.

All of it is data of a stranger's: JSON is read bounded and never evaluated, names of files are plain ones in the same
folder, links are not followed, and what a configuration says that a runtime would load as code is left out.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError
from sparsecc.escaping import one_line, quoted

LARGEST = 256 << 20
"""Bytes of a file of a package that we are ready to copy: tokenizers are the largest."""
JSON_LARGEST = 16 << 20
"""Bytes of a configuration."""
GENAI, HUGGING_FACE = "genai_config.json", "config.json"
ENCODER, MERGED, PLAIN = "encoder_model.onnx", "decoder_model_merged.onnx", "model.onnx"
STEPS = ("decoder_model.onnx", "decoder_with_past_model.onnx")
"""What optimum calls the first step of a decoder and those behind it, where they are not merged."""
_IN_CODE = ("embed_tokens.onnx", "vision_encoder.onnx", "audio_encoder.onnx")
"""Files whose outputs the caller's code joins: no file says which axes are the same."""
_ARTEFACTS = ("model.ort", "model.onnx")
_DATA = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".bpe"})
"""Endings of the files that runtimes read beside a model."""
_CODE = ("library", "path", "auto_map", "plugin")
"""Parts of the keys under which a configuration may name what a runtime would load and run."""
_SESSION = frozenset(
    "log_id log_severity_level log_verbosity_level intra_op_num_threads inter_op_num_threads enable_cpu_mem_arena "
    "enable_mem_pattern graph_optimization_level disable_cpu_ep_fallback disable_quant_qdq enable_quant_qdq_cleanup "
    "use_env_allocators provider_options".split()
)
"""What may stay of the options of sessions: others name files and libraries, and a runtime takes any key."""
_WORDS = re.compile(r"[\w+ -]{0,64}")
"""What a provider's option may say: no path, no address."""
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Package:
    """A folder, the name of its configuration ("" without one) and what that says, and the files of its model."""

    folder: Path
    config: str
    settings: Mapping[str, Any]
    models: tuple[Path, ...]
    dropped: tuple[str, ...] = ()
    """Keys of the configuration that were left out, as they would make a runtime load code."""

    @property
    def model(self) -> Path:
        """Its one file. InputError where it has several."""
        if self.is_chain:
            raise InputError(
                f"{one_line(str(self.folder), 120)} holds several models ({_listed(self.models)}) that share axes: "
                "compile, inspect and verify take them together; here name one of the files"
            )
        return self.models[0]

    @property
    def is_chain(self) -> bool:
        """Whether files of it take what others give."""
        return len(self.models) > 1

    @property
    def is_genai(self) -> bool:
        """Whether onnxruntime-genai loads it; otherwise it is of Hugging Face's form."""
        return self.config == GENAI

    @property
    def decoder(self) -> Mapping[str, Any]:
        """The part of the configuration that has sizes and names."""
        return _decoder(self.settings) if self.is_genai else self.settings

    @property
    def begin(self) -> int | None:
        """The token that begins a text; None where the configuration names none, or several."""
        holder = self.settings.get("model") if self.is_genai else self.settings
        found = holder.get("bos_token_id") if isinstance(holder, dict) else None
        return found if type(found) is int and 0 <= found < 1 << 31 else None

    def others(self) -> tuple[list[str], list[str]]:
        """(files that a runtime reads beside the model, names of all that is left behind)."""
        carried: list[str] = []
        left: list[str] = []
        for entry in sorted(os.scandir(self.folder), key=lambda entry: entry.name):
            if entry.name in (self.config, *(path.name for path in self.models)) or entry.name.startswith(
                "."
            ):
                continue
            is_data = Path(entry.name).suffix.lower() in _DATA or entry.name.upper().startswith(
                ("LICENSE", "NOTICE")
            )
            is_plain = entry.is_file(follow_symlinks=False)
            is_stale = (
                self.is_genai and entry.name == "config.json"
            )  # of the sizes before, and nothing reads it
            (carried if is_data and is_plain and not is_stale else left).append(entry.name)
        return carried, left

    def parsed(self, name: str) -> Any:
        """What one of `others` holds as JSON. InputError where it is none."""
        return _parsed(self.read(name), self.folder / name)

    def read(self, name: str) -> bytes:
        """The bytes of one of `others`, without what names code in its JSON.

        InputError where it is no plain file, or too large.
        """
        data = plain_bytes(self.folder / name, LARGEST)
        if not name.lower().endswith(".json") or b"auto_map" not in data:
            return data
        settings, _ = _without_code(_parsed(data, self.folder / name))
        return json.dumps(settings, ensure_ascii=False, indent=2).encode()


def package_at(path: Path) -> Package | None:
    """The package in a folder; None for a file. InputError for a folder without models that it says."""
    if not path.is_dir():
        return None
    for config in (GENAI, HUGGING_FACE):
        if (path / config).is_file():
            settings, dropped = _without_code(_json(path / config))
            return Package(path, config, settings, _models(path, config, settings), tuple(dropped))
    models = sorted(file for file in path.glob("*.onnx") if file.is_file() and not file.is_symlink())
    if len(models) > 1:
        return Package(path, "", {}, tuple(models))
    raise InputError(
        f"{one_line(str(path), 120)} is a folder without {GENAI} or {HUGGING_FACE}: name the .onnx file in it"
    )


def is_bundle_of_one(path: Path) -> bool:
    """Whether a folder holds one model under the name that a compile gives it."""
    return any((path / name).is_file() for name in _ARTEFACTS)


def model_file(path: Path) -> Path:
    """The model to run: the file itself, the artefact of a bundle, or what a language model's folder names."""
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path}: no such file: check the path")
        return path
    for name in _ARTEFACTS:
        if (path / name).is_file():
            return path / name
    package = package_at(path)
    assert package is not None  # of a folder
    return package.model


def _models(folder: Path, config: str, settings: Mapping[str, Any]) -> tuple[Path, ...]:
    names = _named(settings) if config == GENAI else _beside(folder)
    if not names:
        raise InputError(
            f"{one_line(str(folder / config), 120)} names no model in it: name the .onnx file itself"
        )
    if (config == GENAI and "pipeline" in _decoder(settings)) or {*names} & {*_IN_CODE}:
        raise InputError(
            f"{one_line(str(folder), 120)} holds several models ({one_line(', '.join(names), 200)}) that code puts "
            "together: name one of their files, and only what is its own will be cut"
        )
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(
                f"{one_line(str(folder / config), 120)} names no model in it but {quoted(name)}: name the .onnx file "
                "itself"
            )
    return tuple(folder / name for name in names)


def _named(settings: Mapping[str, Any]) -> list[str]:
    """The files that `genai_config.json` names."""
    parts = settings.get("model")
    named = [
        about["filename"]
        for about in (parts if isinstance(parts, dict) else {}).values()
        if isinstance(about, dict) and isinstance(about.get("filename"), str)
    ]
    return list(dict.fromkeys(named))


def _beside(folder: Path) -> list[str]:
    """The files beside a Hugging Face configuration that make up its model; a merged decoder stands for its steps."""
    there = [name for name in (ENCODER, MERGED, *STEPS, PLAIN, *_IN_CODE) if (folder / name).is_file()]
    return [name for name in there if name not in STEPS] if MERGED in there else there


def _listed(models: tuple[Path, ...]) -> str:
    return one_line(", ".join(path.name for path in models), 200)


def _decoder(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    model = settings.get("model")
    found = model.get("decoder") if isinstance(model, dict) else None
    return found if isinstance(found, dict) else {}


def _without_code(settings: Any, where: str = "") -> tuple[Any, list[str]]:
    """A configuration without what names programs, and the keys that went."""
    dropped: list[str] = []
    if isinstance(settings, list):
        pairs = [_without_code(one, f"{where}[{number}]") for number, one in enumerate(settings)]
        return [kept for kept, _ in pairs], [name for _, names in pairs for name in names]
    if not isinstance(settings, dict):
        return settings, dropped
    kept = {}
    inside = where.rpartition(".")[2].partition("[")[0]
    for key, value in settings.items():
        name = f"{where}.{key}" if where else key
        is_open = inside == "session_options" and key not in _SESSION
        is_place = ".provider_options[" in where and isinstance(value, str) and not _WORDS.fullmatch(value)
        if is_open or is_place or any(part in key.lower() for part in _CODE):
            dropped.append(name)
            continue
        kept[key], more = _without_code(value, name)
        dropped += more
    return kept, dropped


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. InputError for what is none."""
    found = _parsed(plain_bytes(path, JSON_LARGEST), path)
    if not isinstance(found, dict):
        raise InputError(f"{one_line(str(path), 120)} holds no JSON object: name the .onnx file itself")
    return found


def _parsed(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{one_line(str(path), 120)} is not JSON: {one_line(str(e), 120)}") from e


def plain_bytes(path: Path, most: int) -> bytes:
    """What a plain file holds, links not followed. InputError for pipes, links, devices, and for more than `most`."""
    shown = one_line(str(path), 120)
    try:
        with os.fdopen(os.open(path, _FLAGS), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{shown} is not a plain file: copy what it stands for")
            data = file.read(most + 1)
    except OSError as e:
        raise InputError(f"cannot read {shown}: {one_line(e.strerror or str(e))}; copy it there") from e
    if len(data) > most:
        raise InputError(f"{shown} has over {most >> 20} MiB: it is no part of a language model that we know")
    return data
