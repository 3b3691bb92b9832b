"""What a language model's runtime needs beside it: the configuration, with the sizes that are left, and the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsecc.bundle.folder import OURS
from sparsecc.graph.decoder_sizes import DecoderSizes
from sparsecc.loading.package import Package

_SPELLED = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads",),
    "width": ("head_size", "head_dim"),
    "hidden": ("hidden_size", "n_embd"),
    "words": ("vocab_size",),
}
"""The names of sizes in configurations."""


def carry(
    package: Package, folder: Path, main: str, dense: DecoderSizes, left: DecoderSizes
) -> dict[str, Any]:
    """Write the configuration and what else a runtime reads into the folder of the new model `main`.

    Facts for the report: {"config", "sizes": {name: [before, after]}, "uneven": {name: per layer}, "copied",
    "left_out", "dropped"}. A size that layers differ in is told as the largest.
    """
    settings = json.loads(json.dumps(package.settings))
    decoder = settings["model"]["decoder"] if package.is_genai else settings
    changed: dict[str, list[int]] = {}
    uneven: dict[str, list[int]] = {}
    for name, spelled in _SPELLED.items():
        before, after = (_largest(getattr(sizes, name)) for sizes in (dense, left))
        rows = getattr(left, name)
        if isinstance(rows, tuple) and len(set(rows)) > 1:
            uneven[name] = list(rows)
        if not before or not after or before == after:
            continue
        for holder in (decoder, settings["model"] if package.is_genai else {}):
            for key in spelled:
                if type(holder.get(key)) is int:
                    changed[key] = [holder[key], after]
                    holder[key] = after
    if package.is_genai:
        decoder["filename"] = main
        window = decoder.get("sliding_window")
        if isinstance(window, dict) and (dense.sliding or window.get("layers") == []):
            window["layers"] = list(left.sliding)
            if not left.sliding:  # onnxruntime-genai 0.18 gives uneven caches no room then
                del decoder["sliding_window"]
    elif (
        left.width and "head_dim" not in settings
    ):  # which is then taken to be hidden_size / num_attention_heads
        settings["head_dim"] = left.width
    (folder / package.config).write_text(json.dumps(settings, indent=4) + "\n", encoding="utf-8")
    carried, behind = package.others()
    taken = {*OURS, *(path.name for path in folder.iterdir())}
    copied = [name for name in carried if name not in taken]
    for name in copied:
        (folder / name).write_bytes(package.read(name))
    return {
        "config": package.config,
        "sizes": changed,
        **({"uneven": uneven} if uneven else {}),
        "copied": copied,
        "left_out": [*behind, *sorted(set(carried) - set(copied))],
        **({"dropped": list(package.dropped)} if package.dropped else {}),
    }


def _largest(size: Any) -> int | None:
    return max(size, default=None) if isinstance(size, tuple) else size
