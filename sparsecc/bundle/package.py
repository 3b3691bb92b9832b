"""What a language model's runtime needs beside it: the configuration, with the sizes that are left, and the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsecc.bundle.folder import OURS
from sparsecc.graph.decoder_sizes import DecoderSizes
from sparsecc.loading.package import Package

_SPELLED = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads", "decoder_attention_heads", "num_heads"),
    "width": ("head_size", "head_dim", "d_kv"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "words": ("vocab_size",),
}
"""The names of sizes in configurations."""

Sizes = Mapping[str, tuple[DecoderSizes, DecoderSizes]]
"""File of the package -> its sizes before and after."""


def carry(
    package: Package,
    folder: Path,
    sizes: Sizes,
    main: str | None = None,
    cross: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Write the configuration and what else a runtime reads into the folder of the new model; `main` is what its one
    file is called there, None where its files are called as they were. `cross` are the heads and the width of what
    onnxruntime-genai makes room for between an encoder and its decoder.

    Facts for the report: {"config", "sizes": {name: [before, after]}, "uneven": {name: per layer}, "copied",
    "left_out", "dropped"}. A size that layers differ in is told as the largest.
    """
    settings = json.loads(json.dumps(package.settings))
    told = _Told()
    decoders = [*sizes.items()] if package.is_genai else [*sizes.items()][-1:]
    for file, (dense, left) in decoders:
        decoder = settings["model"]["decoder"] if package.is_genai else settings
        told.resize([*_holders(settings, file, main)] if package.is_genai else [settings], dense, left)
        if package.is_genai and main is not None:
            decoder["filename"] = main
        if package.is_genai and (main is not None or decoder["filename"] == file):
            _slide(decoder, dense, left)
        elif (
            left.width and package.config and not {"head_dim", "d_kv"} & settings.keys()
        ):  # which is then taken to be hidden_size / num_attention_heads
            settings["head_dim"] = left.width
    if cross is not None:
        decoder = settings["model"]["decoder"]
        decoder["num_attention_heads"], decoder["head_size"] = (
            cross  # it gives each cache of its own its room
        )
    if package.config:
        (folder / package.config).write_text(json.dumps(settings, indent=4) + "\n", encoding="utf-8")
    carried, behind = package.others()
    taken = {*OURS, *(path.name for path in folder.iterdir())}
    copied = [name for name in carried if name not in taken]
    for name in copied:
        (folder / name).write_bytes(package.read(name))
    return {
        "config": package.config,
        "sizes": told.changed,
        **({"uneven": told.uneven} if told.uneven else {}),
        "copied": copied,
        "left_out": [*behind, *sorted(set(carried) - set(copied))],
        **({"dropped": list(package.dropped)} if package.dropped else {}),
    }


def _holders(settings: dict[str, Any], file: str, main: str | None) -> Iterator[dict[str, Any]]:
    """The parts of `genai_config.json` that have the sizes of a file; what is the decoder's stands above as well."""
    model = settings["model"]
    for name, about in model.items():
        is_it = (
            name == "decoder"
            if main is not None
            else isinstance(about, dict) and about.get("filename") == file
        )
        if is_it:
            yield from (about, model) if name == "decoder" else (about,)


def _slide(decoder: dict[str, Any], dense: DecoderSizes, left: DecoderSizes) -> None:
    """Number the layers with a sliding window anew."""
    window = decoder.get("sliding_window")
    if isinstance(window, dict) and (dense.sliding or window.get("layers") == []):
        window["layers"] = list(left.sliding)
        if not left.sliding:  # onnxruntime-genai 0.18 gives uneven caches no room then
            del decoder["sliding_window"]


@dataclass
class _Told:
    """What changed in a configuration, for the report."""

    changed: dict[str, list[int]] = field(default_factory=dict)
    uneven: dict[str, list[int]] = field(default_factory=dict)

    def resize(self, holders: list[dict[str, Any]], dense: DecoderSizes, left: DecoderSizes) -> None:
        """Write the sizes that are left where a configuration has those before."""
        for name, spelled in _SPELLED.items():
            before, after = (_largest(getattr(sizes, name)) for sizes in (dense, left))
            rows = getattr(left, name)
            if isinstance(rows, tuple) and len(set(rows)) > 1:
                self.uneven[name] = list(rows)
            if not before or not after or before == after:
                continue
            for holder in holders:
                for key in spelled:
                    if type(holder.get(key)) is int:
                        self.changed[key] = [holder[key], after]
                        holder[key] = after


def _largest(size: Any) -> int | None:
    return max(size, default=None) if isinstance(size, tuple) else size
