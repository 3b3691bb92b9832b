"""The pages: each a function from the JSON of a report to one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sparsecc.escaping import escape
from sparsecc.report import numbers
from sparsecc.report.compile_page import CompilePage
from sparsecc.report.front_page import FrontPage
from sparsecc.report.inspect_page import InspectPage
from sparsecc.report.profile_page import ProfilePage
from sparsecc.report.trend_page import TrendPage

if TYPE_CHECKING:
    from jinja2 import Template


def compile_page(
    report: Mapping[str, Any], plan: Mapping[str, Any], *, recipe: str = "", command: str = ""
) -> str:
    """`report.html`: a compile, from report.json, plan.json, the recipe's text and the command line."""
    return _template("compile.html.j2").render(page=CompilePage.of(report, plan, recipe, command))


def inspect_page(found: Mapping[str, Any]) -> str:
    """The groups of a model, from what `inspect` found; drawn where that has a "graph" (see `topology`)."""
    return _template("inspect.html.j2").render(page=InspectPage.of(found))


def profile_page(measured: Mapping[str, Any]) -> str:
    """The latency of a model and its layers, from what `profile` measured."""
    return _template("profile.html.j2").render(page=ProfilePage.of(measured))


def trend_page(entries: Sequence[Mapping[str, Any]]) -> str:
    """The change of each model in a gate's history, from its lines."""
    return _template("trend.html.j2").render(page=TrendPage.of(entries))


def front_page(found: Mapping[str, Any]) -> str:
    """The front of a search, from front.json."""
    return _template("front.html.j2").render(page=FrontPage.of(found))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters.update(
        count=numbers.count, size=numbers.size, percent=numbers.percent, milliseconds=numbers.milliseconds
    )
    return environment


def _template(name: str) -> Template:
    return _environment().get_template(name)


def _visible(value: Any) -> Any:
    """Names come from model files: control and direction characters are shown, not obeyed."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "\n".join(escape(line) for line in value.split("\n"))
    return "" if value is None else value
