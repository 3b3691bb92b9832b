"""`sparsecc gate`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparsecc.cli import options
from sparsecc.cli.command import Command
from sparsecc.cli.terminal import Terminal, write_file
from sparsecc.cli.values import Value
from sparsecc.cli.view import Block, Grid, Line
from sparsecc.options import reading

if TYPE_CHECKING:
    from sparsecc.cli.progress import OnEvent

STYLES = {"OK": "good", "REGRESSION": "bad", "INCONCLUSIVE": "warn"}
EXIT_CODES = {"OK": 0, "REGRESSION": 1, "INCONCLUSIVE": 4}
WORST_FIRST = (1, 4, 0)
REVISIONS = ("GITHUB_SHA", "CI_COMMIT_SHA", "GIT_COMMIT")
"""Where GitHub, GitLab and Jenkins name the commit."""


def run(terminal: Terminal, given: dict[str, Any]) -> int:
    """Gate one model, or all of a file; the exit code is that of the worst."""
    from sparsecc.gate.report import append_history, bencher, github_benchmark, history_of, junit, markdown

    forms = {"junit": junit, "markdown": markdown, "github_benchmark": github_benchmark, "bencher": bencher}
    documents = [(given.pop(name, None), document) for name, document in forms.items()]
    history, trend = given.pop("history", None), given.pop("trend", None)
    if trend is not None and history is None:
        raise click.UsageError("--trend draws a history: give --history FILE too")
    is_many = "config" in given
    results = _gate_all(terminal, given) if is_many else [_gate_one(terminal, given)]
    for path, document in documents:
        if path is not None:
            write_file(path, document(results))
    if history is not None:
        for result in results:
            append_history(Path(history), result, when=_now(), revision=_revision())
    if trend is not None:
        from sparsecc.report.html import trend_page

        write_file(trend, trend_page(history_of(Path(history))))
    terminal.result({"schema": "sparsecc.gates/1", "results": results} if is_many else results[0], gate_view)
    return min((EXIT_CODES[result["verdict"]] for result in results), key=WORST_FIRST.index)


def _gate_one(terminal: Terminal, given: dict[str, Any]) -> dict[str, Any]:
    for name, spelled in (("current", "CURRENT"), ("baseline", "--baseline")):
        if name not in given:
            raise click.UsageError(f"missing {spelled}: give CURRENT and --baseline, or --config")
    from sparsecc import api

    with terminal.progress() as on_event:
        return api.gate(given.pop("current"), given.pop("baseline"), **given, on_event=on_event)


def _gate_all(terminal: Terminal, given: dict[str, Any]) -> list[dict[str, Any]]:
    clash = [name for name in given if name not in ("config", "custom_ops")]
    if clash:
        raise click.UsageError(f"--config names the models and their limits itself: leave out '{clash[0]}'")
    from sparsecc import api
    from sparsecc.gate.config import read_gate_config

    entries = read_gate_config(Path(given["config"]))
    with terminal.progress() as on_event:
        return [
            api.gate(
                entry.current,
                entry.baseline,
                max_regression=entry.max_regression,
                threads=entry.threads,
                name=entry.name,
                checks=entry.checks,
                custom_ops=given.get("custom_ops"),
                on_event=partial(_at, on_event, number / len(entries)),
            )
            for number, entry in enumerate(entries)
        ]


def _at(on_event: OnEvent, share: float, event: Mapping[str, Any]) -> None:
    """One model's event on the way through them all."""
    on_event({**event, "share": share})


def _now() -> str:
    from datetime import datetime, timezone

    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _revision() -> str:
    """The commit that a CI says it works on; nothing elsewhere."""
    return next((os.environ[name] for name in REVISIONS if os.environ.get(name)), "")


def gate_view(found: Mapping[str, Any]) -> list[Block]:
    """Per model: the verdict, the checks, the latency."""
    blocks: list[Block] = []
    for result in found.get("results", [found]):
        blocks += [*([Line("")] if blocks else []), *_one(result)]
    return blocks


def _one(result: Mapping[str, Any]) -> Sequence[Block]:
    verdict = result["verdict"]
    rows = [("✓" if check["ok"] else "✗", check["name"], check["detail"]) for check in result["checks"]]
    if change := result["change"]:
        low, high = change["ci95"]
        told = f"{change['estimate']:+.1%} (95 % interval {low:+.1%} to {high:+.1%})"
        mark = {"OK": "✓", "REGRESSION": "✗"}.get(verdict, "–")
        rows.append((mark, "latency", f"{told}, {result['max_regression']:.1%} allowed"))
    head = Line(f"{result['name']}: {verdict}: {result['reason']}", STYLES[verdict])
    return [head, Line(""), Grid(("", "check", "detail"), rows)] if rows else [head]


command = Command(
    "gate",
    run,
    about="Say whether CURRENT is slower than its baseline: exit 0 no, 1 yes, 4 could not tell.",
    examples=(
        "sparsecc gate out/ --baseline released/ --max-regression 5%",
        "sparsecc gate new.onnx --baseline old.onnx --threads 4 --junit gate.xml --markdown gate.md",
        "sparsecc gate --config gate.yaml --history history.jsonl --trend trend.html --json",
    ),
    arguments=(click.Argument(["current"], type=click.Path(), required=False),),
    sections={
        "What to gate": (
            click.Option(
                ["--baseline"], type=click.Path(), metavar="MODEL", help="What it must not be slower than."
            ),
            click.Option(
                ["--max-regression"],
                type=Value("SHARE", reading.share),
                help="How much slower is allowed.  [default: 5%]",
            ),
            click.Option(
                ["--min-agreement"],
                type=Value("SHARE", reading.kept_share),
                help="How much of the answers must be the same on --data, e.g. 99%.",
            ),
            click.Option(
                ["--config"], type=click.Path(), metavar="FILE", help="A YAML list of many models and limits."
            ),
            click.Option(["--name"], metavar="TEXT", help="What to call the model in the output."),
        ),
        "Measurement": (
            options.option("device"),
            options.option("threads"),
            options.option("data"),
            options.option("custom_ops"),
        ),
        "Output": (
            click.Option(
                ["--junit"], type=click.Path(), metavar="FILE", help="Also write JUnit XML for the CI."
            ),
            click.Option(
                ["--markdown"], type=click.Path(), metavar="FILE", help="Also write a pull request summary."
            ),
            click.Option(
                ["--github-benchmark"],
                type=click.Path(),
                metavar="FILE",
                help="Also write the medians for github-action-benchmark (customSmallerIsBetter).",
            ),
            click.Option(
                ["--bencher"], type=click.Path(), metavar="FILE", help="Also write them as Bencher's JSON."
            ),
            click.Option(
                ["--history"], type=click.Path(), metavar="FILE", help="Add the result to this history."
            ),
            click.Option(
                ["--trend"], type=click.Path(), metavar="FILE", help="Draw the history on this HTML page."
            ),
        ),
    },
)
