"""What is fuzzed: bytes in, and nothing out but a result or an InputError."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from sparsecc.bundle import Bundle
from sparsecc.cli.recipe import read_recipe
from sparsecc.errors import InputError
from sparsecc.loading.front_door import open_bytes
from sparsecc.loading.models import load_ir_bytes
from sparsecc.options import CompileOptions


def loader(data: bytes) -> None:
    """The front door and the conversion behind it."""
    try:
        open_bytes(data)
        load_ir_bytes(data)
    except InputError:
        return


def recipe(data: bytes) -> None:
    """The recipe parser of the command line."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        try:
            read_recipe(file.name, set(CompileOptions.__dataclass_fields__), {})
        except InputError:
            return


def plan(data: bytes) -> None:
    """The JSON files of a bundle."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "manifest.json").write_bytes(data)
        (Path(folder) / "plan.json").write_bytes(data)
        try:
            bundle = Bundle.open(Path(folder))
            bundle.verify_manifest()
            assert isinstance(bundle.plan, dict)
        except InputError:
            return


TARGETS: dict[str, Callable[[bytes], None]] = {"loader": loader, "recipe": recipe, "plan": plan}
