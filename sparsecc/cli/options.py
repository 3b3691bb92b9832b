"""Options that more than one command has."""

from __future__ import annotations

from typing import Any

import click

from sparsecc.cli import values
from sparsecc.cli.values import Name, Value
from sparsecc.targets import TARGETS, target_named


class TargetName(click.ParamType[str]):
    """A target, answered with the closest when unknown."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return target_named(str(value)).name

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        return Name("target", TARGETS).shell_complete(ctx, param, incomplete)


def model(name: str = "model") -> click.Argument:
    """A model or bundle on disk."""
    return click.Argument([name], type=click.Path())


def target() -> click.Option:
    """`--target`."""
    return click.Option(
        ["-t", "--target"], type=TargetName(), help=f"Runtime: {', '.join(TARGETS)}.  [default: onnxruntime]"
    )


def known_device(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """The address of the device that was named."""
    from sparsecc.cli.device_book import address_of

    return None if value is None else address_of(value)


def device() -> click.Option:
    """`--device`."""
    return click.Option(
        ["--device"],
        callback=known_device,
        metavar="local|NAME|ssh://USER@HOST|adb:SERIAL",
        help="Where to measure; NAME is one of `sparsecc devices list`.  [default: local]",
    )


def known_devices(context: click.Context, option: click.Parameter, value: str | None) -> list[str] | None:
    """The addresses of the devices that were named, with commas."""
    from sparsecc.cli.device_book import address_of

    return None if value is None else [address_of(name.strip()) for name in value.split(",")]


def devices() -> click.Option:
    """`--device` where several are taken."""
    return click.Option(
        ["--device"],
        callback=known_devices,
        metavar="DEVICE[,DEVICE…]",
        help="Where to measure: local, a NAME of `sparsecc devices list`, ssh://USER@HOST or adb:SERIAL; several "
        "are measured in parallel.  [default: local]",
    )


def calibration() -> click.Option:
    """`--calib`."""
    return click.Option(
        ["calibration", "--calib"],
        metavar="PATH|FILE.py:FUNCTION",
        help="Samples to calibrate on: .npz, .npy, a folder of those or of images, a .txt beside its "
        "tokenizer.json, or a function.",
    )


def evaluate() -> click.Option:
    """`--eval`."""
    return click.Option(
        ["evaluate", "--eval"],
        metavar="FILE.py:FUNCTION",
        help="A function that scores a model: accuracy before and after.",
    )


def build() -> click.Option:
    """`--build`."""
    return click.Option(
        ["--build"],
        multiple=True,
        type=Value("KEY=VALUE", values.key_value),
        help="Option of the target's builder, e.g. workspace=4GiB, optimization_level=5, "
        "compute_capabilities=8.6,12.0 (docs/tensorrt.md). May be repeated.",
    )


def general() -> click.Option:
    """`--calib-general`."""
    return click.Option(
        ["calibration_general", "--calib-general"],
        metavar="PATH|FILE.py:FUNCTION",
        help="Samples of everything else, which --criterion dai compares those of --calib with.",
    )


def inputs() -> click.Option:
    """`--input`, given as often as there are inputs."""
    return click.Option(
        ["inputs", "-i", "--input"],
        multiple=True,
        type=Value("NAME:SHAPE", values.input_text),
        help="Fix the shape of an input, e.g. x:1x3x224x224; or a range, x:1x64|8x64|16x64 (min|opt|max).",
    )


def shape_inputs(given: dict[str, Any]) -> None:
    """Turn `inputs` into what the API takes: name -> shape, or name -> (min, opt, max) for a range."""
    if "inputs" in given:
        read = [values.input_shape(text) for text in given["inputs"]]
        given["inputs"] = {one.name: one.shapes[0] if len(one.shapes) == 1 else one.shapes for one in read}


def threads() -> click.Option:
    """`--threads`."""
    return click.Option(
        ["--threads"], type=click.IntRange(min=1), help="Threads when a model runs.  [default: 1]"
    )


def data() -> click.Option:
    """`--data`."""
    return click.Option(
        ["--data"],
        type=click.Path(),
        metavar="PATH",
        help="Inputs to run on: .npz, .npy, a folder, FILE.py:FUNCTION.",
    )


def keep() -> click.Option:
    """`--keep`."""
    return click.Option(
        ["--keep"],
        multiple=True,
        metavar="PATTERN",
        help="Leave these alone: a glob on node, tensor or group names. May be repeated.",
    )


def only() -> click.Option:
    """`--only`."""
    return click.Option(
        ["--only"], multiple=True, metavar="PATTERN", help="Touch nothing but these. May be repeated."
    )


def prune_io() -> click.Option:
    """`--prune-io`."""
    return click.Option(
        ["--prune-io"], is_flag=True, help="Let the sizes of the model's inputs and outputs change too."
    )


def html(what: str) -> click.Option:
    """`--html`; `what` names what the page shows."""
    return click.Option(
        ["--html"], type=click.Path(), metavar="FILE", help=f"Also write {what} as one HTML file."
    )
