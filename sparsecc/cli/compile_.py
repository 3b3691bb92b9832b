"""`sparsecc compile`."""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from sparsecc.bundle.foreign import NEEDED, LeftOut
from sparsecc.cli import options, values
from sparsecc.cli.command import Command
from sparsecc.cli.compile_view import compile_view
from sparsecc.cli.recipe import KEYED, read_recipe
from sparsecc.cli.terminal import Terminal
from sparsecc.cli.values import Name, Value
from sparsecc.errors import GoalError, InputError
from sparsecc.graph.kinds import KINDS
from sparsecc.options import LAYER_CRITERIA, METRICS, RECOVERIES

TYPES = ("int8", "int8-dynamic", "int4", "fp16", "bf16", "fp8", "mixed")
FORMS = ("onnx", "ort", "engine")
BUDGETS = {"ratio": "--ratio", "speedup": "--speedup", "latency": "--latency", "fps": "--fps"}
NOT_IN_A_RECIPE = {"model", "output", "force", "dry_run", "recipe", "as_json", "quiet", "verbose", "debug"}
LEFT_OUT = "sparsecc.cli.left_out"
SPELLED = {
    "calib": "calibration",
    "calib_general": "calibration_general",
    "eval": "evaluate",
    "input": "inputs",
    "memory_limit": "memory",
    "quantize_option": "quantize_options",
    "sparsity_option": "sparsity_options",
}


def run(terminal: Terminal, given: dict[str, Any]) -> None:
    """Compile, and say what came of it. GoalError where a device was lost before it had measured."""
    recipe = given.pop("recipe", None)
    _settle_budgets(given)
    for line in _left_out(recipe, given):
        terminal.note(line)
    if given.pop("no_measure", False):
        given["measure"] = False
    if "max_drop" in given and "evaluate" not in given:
        raise click.UsageError("--max-drop needs an accuracy to watch: give --eval FILE.py:FUNCTION")
    options.shape_inputs(given)
    of_recipe = click.get_current_context().default_map or {}
    for name in KEYED & set(given):
        given[name] = values.keyed((*of_recipe.get(name, ()), *given[name]))
    from sparsecc import api

    command = shlex.join(["sparsecc", *sys.argv[1:]])
    with terminal.progress() as on_event:
        result = api.compile(given.pop("model"), **given, on_event=on_event)
    report = {**result.report, "bundle": str(result.bundle) if result.bundle else None, "command": command}
    terminal.result(report, compile_view)
    if "unmeasured" in report:
        raise GoalError(f"{report['bundle']} is written, but {report['unmeasured']}")


def _left_out(recipe: str | None, given: dict[str, Any]) -> list[str]:
    """What the recipe says and no file may, a line each, unless it is given on the command line.

    InputError where the compile would be another one without it.
    """
    left: list[LeftOut] = click.get_current_context().meta.get(LEFT_OUT, [])
    keys = {f"build {text.partition('=')[0]}" for text in given.get("build", ())}
    missing = [one for one in left if one.option not in given and one.option not in keys]
    for one in missing:
        if one.option in NEEDED:
            raise InputError(one.line(str(recipe)))
    return [one.line(str(recipe)) for one in missing]


def _settle_budgets(given: dict[str, Any]) -> None:
    """At most one size budget. One on the command line replaces those of the recipe."""
    context = click.get_current_context()
    budgets = [name for name in BUDGETS if name in given]
    typed = [name for name in budgets if context.get_parameter_source(name) is _TYPED]
    kept = typed or budgets
    if len(kept) > 1:
        names = " and ".join(BUDGETS[name] for name in kept)
        raise click.UsageError(f"{names} are different budgets: give one of them (--max-drop may go with it)")
    for name in set(budgets) - set(kept):
        del given[name]


_TYPED = click.core.ParameterSource.COMMANDLINE


def _use_recipe(context: click.Context, option: click.Parameter, path: str | None) -> str | None:
    """Runs before the other options are read: the recipe's values become their defaults."""
    if path is not None:
        names = {p.name for p in context.command.params if p.name} - NOT_IN_A_RECIPE | {"measure"}
        recipe, context.meta[LEFT_OUT] = read_recipe(path, names - {"no_measure"}, SPELLED)
        if "measure" in recipe:
            recipe["no_measure"] = not recipe.pop("measure")
        context.default_map = {name: _as_option(context, name, value) for name, value in recipe.items()}
    return path


def _as_option(context: click.Context, name: str, value: Any) -> Any:
    """A recipe's value as its option wants it: commas, repeats, and the unit of a plain number."""
    if name == "latency" and not isinstance(value, str):
        return f"{value}ms"
    option = next(p for p in context.command.params if p.name == name)
    if isinstance(value, list) and not option.multiple:
        return ",".join(str(part) for part in value)
    return [value] if option.multiple and not isinstance(value, list) else value


def _option(*names: str, type: click.ParamType[Any] | None = None, **settings: Any) -> click.Option:
    return click.Option(list(names), type=type, **settings)


def _keyed(*names: str, help: str) -> click.Option:
    """An option of KEY=VALUE pairs."""
    return _option(*names, multiple=True, type=Value("KEY=VALUE", values.key_value), help=help)


BUDGET = (
    _option(
        "--ratio", type=Value("SHARE", values.ratio), help="Remove this share of --metric: 0.5 removes half."
    ),
    _option("--metric", type=Name("metric", METRICS), help="What --ratio counts.  [default: macs]"),
    _option("--speedup", type=Value("TIMES", values.speedup), help="Compile until it is this much faster."),
    _option(
        "--latency",
        type=Value("TIME", values.duration_ms),
        help="Compile until it takes this long, e.g. 5ms.",
    ),
    _option("--fps", type=Value("RATE", values.rate), help="Compile until it runs this often a second."),
    _option("--size", type=Value("SIZE", values.size), help="Compile until it is this small, e.g. 5MiB."),
    _option(
        "working_memory",
        "--memory",
        type=Value("SIZE", values.size),
        help="Compile until loading and running it takes no more than this memory.",
    ),
    _option(
        "--max-drop",
        type=Value("SHARE", values.share),
        help="Lose at most this much accuracy (needs --eval).",
    ),
)
REMOVAL = (
    _option(
        "--prune",
        type=Value("KINDS", values.names_of("kind", KINDS)),
        help=f"What may go, with commas: {', '.join(KINDS)}.  [default: channels,heads,head_dims]",
    ),
    _option(
        "--criterion",
        metavar="NAME",
        help="How the importance of a slot is scored, e.g. l2, wanda, obs (docs/methods.md).  [default: auto]",
    ),
    _option(
        "--allocator",
        metavar="NAME",
        help="How the budget is spread over the groups, e.g. uniform, global, distortion (docs/methods.md).  "
        "[default: auto]",
    ),
    _option(
        "--align", type=Value("auto|N", values.align), help="Multiples for channel counts.  [default: auto]"
    ),
    _option(
        "--layer-criterion",
        type=Name("layer criterion", LAYER_CRITERIA),
        help="What layers are judged by with --prune layers: the outputs without them (relative change, "
        "Jensen-Shannon divergence, angle), or how far consecutive ones turn what passes by.  [default: output]",
    ),
    _option(
        "--tokens",
        type=Value("SHARE", values.share),
        help="Keep this share of an image's patches from a third of the layers of a vision transformer on: those "
        "that its class token attends to most.",
    ),
    options.keep(),
    options.only(),
    options.prune_io(),
)
NUMBERS = (
    _option("--sparsity", metavar="PATTERN", help="Pattern over what is left, e.g. 2:4."),
    _keyed(
        "sparsity_options",
        "--sparsity-option",
        help="How, e.g. method=sparsegpt, permute=true (docs/quantization.md). May be repeated.",
    ),
    _option(
        "--quantize",
        type=Name("type", TYPES),
        help="Type of the weights and activations; mixed finds one for each layer, so that all fit --size.",
    ),
    _keyed(
        "quantize_options",
        "--quantize-option",
        help="How, e.g. method=mse, algorithm=gptq, block=64, max_drop=0.01 (docs/quantization.md). May be "
        "repeated.",
    ),
    _option("--recover", type=Name("recovery", RECOVERIES), help="Repair after removal.  [default: auto]"),
    _option(
        "--recover-budget",
        metavar="BUDGET",
        help="How long to distil: 10m, 90s or steps:2000.  [default: 2m]",
    ),
)
DATA = (
    options.calibration(),
    options.general(),
    options.evaluate(),
    _option(
        "--calib-memory",
        type=Value("SIZE", values.size),
        help="Memory that calibration and repair may hold, e.g. 4GiB; beyond it they use the disk and several "
        "passes.  [default: 2GiB]",
    ),
    options.inputs(),
    _option("--seed", type=click.IntRange(min=0), help="Seed of everything random.  [default: 0]"),
)
MEASURING = (
    options.target(),
    options.device(),
    options.threads(),
    _option("--no-measure", is_flag=True, help="Skip the latency measurement."),
    _option(
        "--deadline", type=Value("TIME", values.duration_s), help="Stop a native call after this, e.g. 10min."
    ),
    _option(
        "memory", "--memory-limit", type=Value("SIZE", values.size), help="Memory of a worker, e.g. 4GiB."
    ),
)
WRITING = (
    _option("-o", "--output", type=click.Path(), metavar="DIR", help="The bundle's folder."),
    _option("--force", is_flag=True, help="Replace the output folder if it exists."),
    _option(
        "--emit",
        type=Name("form", FORMS),
        help="Write this form: ort for ONNX Runtime; onnx with build scripts for TensorRT, to be finished by "
        "`sparsecc build`.",
    ),
    options.build(),
    _option("--dry-run", is_flag=True, help="Decide and report, write nothing."),
    _option(
        "--recipe",
        type=click.Path(),
        metavar="FILE",
        is_eager=True,
        callback=_use_recipe,
        help="Take options from a recipe.yaml; those given here override it.",
    ),
)

command = Command(
    "compile",
    run,
    about="Make MODEL smaller and faster for the runtime it will run on, prove it, and write a bundle.",
    examples=(
        "sparsecc compile model.onnx --target onnxruntime --ratio 0.5 -o out/",
        "sparsecc compile model.onnx --speedup 2 --calib samples.npz --eval score.py:accuracy -o out/",
        "sparsecc compile model.onnx --ratio 0.3 --quantize int8 --calib images/ --json > result.json",
    ),
    arguments=(options.model(),),
    sections={
        "Budget (one of ratio, speedup, latency, fps)": BUDGET,
        "What may be removed": REMOVAL,
        "Numbers": NUMBERS,
        "Data": DATA,
        "Target and measurement": MEASURING,
        "Bundle": WRITING,
    },
)
