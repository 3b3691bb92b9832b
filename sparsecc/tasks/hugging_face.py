"""Folders of Hugging Face: what they lack is said before torch and transformers are imported to export them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecc.errors import InputError
from sparsecc.escaping import one_line
from sparsecc.loading.package import HUGGING_FACE
from sparsecc.system.progress import Emit


def export_folder(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """As `sparsecc.torch.hugging_face.export_folder`, of the architecture that `request["folder"]` names.

    InputError where its configuration names none, and where there are no safetensors.
    """
    folder = Path(request["folder"])
    shown = one_line(str(folder), 120)
    emit({"stage": "export", "share": 0.0})
    named = _config(folder).get("architectures")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{shown} has no .safetensors: save it with save_pretrained, or export it to ONNX")
    if not isinstance(named, list) or not named:
        raise InputError(
            f'{shown}: its {HUGGING_FACE} names no architecture: add it ("architectures"), or export it to ONNX'
        )
    from sparsecc.torch import hugging_face

    return hugging_face.export_folder({**request, "architecture": str(named[0])})


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / HUGGING_FACE).read_bytes())
    except (OSError, ValueError) as e:
        told = one_line(str(folder / HUGGING_FACE), 120)
        raise InputError(f"{told} is no JSON: {one_line(str(e), 120)}") from e
    return found if isinstance(found, dict) else {}
