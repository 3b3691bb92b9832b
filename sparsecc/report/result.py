"""What a compile gives in Python: the bundle and its figures, short in a shell, a page in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODELS = ("model.engine", "model.ort", "model.onnx")
"""What the main file of a bundle may be called."""
PAGE = '<iframe srcdoc="{}" style="width:100%;height:36em;border:0" title="report of the compile"></iframe>'


@dataclass(frozen=True, repr=False)
class CompileResult:
    """What a compile gave: the bundle's folder (None on a dry run), its report and its plan.

    The figures that are asked for most are attributes; None is one that was not measured.
    """

    bundle: Path | None
    report: dict[str, Any]
    plan: dict[str, Any] = field(repr=False)

    @property
    def model(self) -> Path | None:
        """The file to load: ONNX, ORT format or an engine. None on a dry run, and of a package of several files, which
        `report["package"]["files"]` names in the order in which they run."""
        files = [] if self.bundle is None else [self.bundle / name for name in MODELS]
        return next((file for file in files if file.is_file()), None)

    @property
    def removed(self) -> float:
        """The share of the metric that went (0.5 is half)."""
        return float((self.report.get("removed") or {}).get("share") or 0.0)

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the original."""
        speedup = (self.report.get("latency") or {}).get("speedup")
        return None if speedup is None else float(speedup["estimate"])

    @property
    def speedup_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `speedup`."""
        speedup = (self.report.get("latency") or {}).get("speedup")
        return None if speedup is None else (float(speedup["ci95"][0]), float(speedup["ci95"][1]))

    @property
    def accuracy(self) -> tuple[float, float] | None:
        """The metric of `evaluate`, of the original and of the result."""
        told = self.report.get("accuracy")
        return None if not told else (float(told["before"]), float(told["after"]))

    @property
    def is_proved(self) -> bool:
        """Whether the surgery was proved; `report["verification"]` says how, or why not."""
        return (self.report.get("verification") or {}).get("status") == "proved"

    @property
    def warnings(self) -> list[str]:
        """What to look at before the result is used."""
        return list(self.report.get("warnings") or ())

    @property
    def summary(self) -> str:
        """What was gained and what was lost, in one line."""
        from sparsecc.report.summary import headline
        from sparsecc.report.verdict import verdict

        return f"{headline(self.report)}; {verdict(self.report).lost}"

    def __repr__(self) -> str:
        where = "dry run" if self.bundle is None else str(self.bundle)
        return f"<CompileResult {where}: {self.summary}>"

    def _repr_html_(self) -> str:
        """The page of the report, in a frame of its own: notebooks call this."""
        from sparsecc.report.html import compile_page

        return PAGE.format(html.escape(compile_page(self.report, self.plan)))
