"""Stands where the API does in tests of the command line, and runs the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "cli"
ROOT = Path(__file__).parent.parent
PLAN: Mapping[str, Any] = {"groups": [], "quantization": [], "patterns": [], "repaired": []}
HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "yaml", "jinja2", "torch", "scipy"}


def report(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


class Recorder(ModuleType):
    """Stands where the API does and notes what was asked of it; the answers are the golden files."""

    def __init__(self) -> None:
        super().__init__("sparsecc.api")
        self.asked: dict[str, Any] = {}
        self.error: BaseException | None = None

    def _note(self, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self.asked = {"arguments": arguments, **options}
        self.asked.pop("on_event", None)
        if self.error is not None:
            raise self.error

    def compile(self, *arguments: Any, **options: Any) -> SimpleNamespace:
        self._note(arguments, options)
        return SimpleNamespace(bundle=Path("out"), report=report("compile"), plan=PLAN)

    def inspect(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        self._note(arguments, options)
        return report("inspect")

    def profile(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        self._note(arguments, options)
        return report("profile")

    def compare(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        self._note(arguments, options)
        return report("compare")

    def verify(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        self._note(arguments, options)
        return report("verify")

    def doctor(self) -> dict[str, Any]:
        return report("doctor")


Err = Callable[..., tuple[int, str]]


def process(
    *arguments: str, env: Mapping[str, str] | None = None, **settings: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sparsecc", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )
