"""The Python face: the same verbs as the command line. Everything native runs in a worker process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from sparsecc.errors import GoalError, InputError
from sparsecc.options import CompareCall, CompileCall, InspectCall, ProfileCall, rows_of
from sparsecc.options.places import default_bundle, default_reduced
from sparsecc.options.renamed import warned
from sparsecc.options.row import KEPT, SHARE, Data, Kind, Libraries, Pairs, Score
from sparsecc.options.table import Event
from sparsecc.report.result import CompileResult
from sparsecc.tasks.calls import file_of, held, run_task, swept, until_ended
from sparsecc.tasks.sources import compiled_from

First = TypeVar("First")
Made = TypeVar("Made")
Given = ParamSpec("Given")

if TYPE_CHECKING:
    from sparsecc.tasks.calls import Model


def takes(
    options: Callable[Given, Any],
) -> Callable[[Callable[Concatenate[First, ...], Made]], Callable[Concatenate[First, Given], Made]]:
    """Gives a function of one argument and of options the signature that the table `options` says: for type checkers,
    and for `help` and completion."""

    def signed(function: Any) -> Any:
        parameters = signature(function).parameters
        kept = [one for one in parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        function.__signature__ = signature(function).replace(
            parameters=[*kept, *signature(options).parameters.values()]
        )
        return function

    return signed


def takes_two(
    options: Callable[Given, Any],
) -> Callable[
    [Callable[Concatenate[First, First, ...], Made]], Callable[Concatenate[First, First, Given], Made]
]:
    """The same for a function of two arguments."""
    signed: Any = takes(options)
    return cast("Callable[[Callable[Concatenate[First, First, ...], Made]], Any]", signed)


@takes(CompileCall)
def compile(model: Model, **options: Any) -> CompileResult:
    """Compile a model for a target into a bundle.

    `model` is a path, the bytes of an ONNX file, an `onnx.ModelProto`, an `onnx_ir.Model`, an
    onnx-graphsurgeon graph, an exported program of torch, or a torch module with `example_inputs` (the arguments of a
    call: a tuple, a mapping or a tensor). `options` are those of the command line (docs/options.md): target, ratio,
    metric, criterion, … `output` is the bundle's folder, by default the model's name.

    `calib` and `calib_general` may also be the samples: arrays (samples along the first axis), mappings of input names
    to arrays, or whatever yields such, one sample or batch each: lists, generators, a torch DataLoader, a data set, a
    function without arguments. `evaluate` may be a function of `run(feeds) -> outputs`, called in this process.
    Raises the errors of `sparsecc.errors`; nothing is written when it does. KeyboardInterrupt during a search to a
    goal writes the best that was tried until then, and is raised again.
    """
    from sparsecc.bundle.folder import BundleWriter
    from sparsecc.data.named import require_named
    from sparsecc.data.origin import origin
    from sparsecc.report.tracking import logger_of
    from sparsecc.tasks.outside import beyond_sandbox

    with ExitStack() as stack:
        given, memory = stack.enter_context(held(warned(options, 2)))
        hook = given.pop("log_to", None)
        log = None if hook is None else logger_of(hook)
        call = CompileCall.of(given)  # what cannot be is said before anything is opened
        path = compiled_from(stack.enter_context(file_of(model, call.example_inputs, call.on_event)))
        require_named(given)
        work = partial(
            run_task,
            "sparsecc.tasks.compile_to_goal:compile_model",
            deadline=call.deadline,
            memory=call.memory_limit,
            held=memory,
            libraries=call.custom_ops,
        )
        named = model if isinstance(model, str | os.PathLike) else path
        folder = Path(call.output) if call.output is not None else default_bundle(named)
        asked = call.to_recipe()
        request = {"model": str(path), "output": str(folder), "dry_run": call.dry_run, "options": asked}
        outside = beyond_sandbox(asked)
        if call.dry_run:
            made = work(request, call.on_event, outside=outside)
            return CompileResult(None, made["report"], made["plan"])
        with BundleWriter(folder, force=call.force) as bundle:
            request |= {"folder": str(bundle.folder), "origin": origin(asked)}
            made, ended = until_ended(work, request, call.on_event, write=[bundle.folder], outside=outside)
            bundle.facts = made["facts"]
        if ended is not None:
            raise ended
    result = CompileResult(Path(made["bundle"]), made["report"], made["plan"])
    if log is not None:
        log(result)
    return result


@takes(InspectCall)
def inspect(model: Model, **options: Any) -> dict[str, Any]:
    """The groups of a model: members, what can go, and what is pinned and why (docs/options.md)."""
    call = InspectCall.of(options)
    asked = call.to_request()
    why, libraries = asked.pop("why", None), asked.pop("custom_ops", None)
    with file_of(model, on_event=call.on_event) as path:
        request = {"model": str(path), "options": asked, "why": why}
        found: dict[str, Any] = run_task(
            "sparsecc.tasks.inspect:inspect", request, call.on_event, libraries=libraries
        )
    return found


@takes(ProfileCall)
def profile(model: Model, **options: Any) -> dict[str, Any]:
    """Latency of a model or bundle, per layer where asked (docs/options.md). `data` is like `calib` of `compile`.

    An engine of someone else is only loaded with the public `key` (PEM) that its bundle is signed for.
    """
    from sparsecc.tasks.outside import beyond_sandbox

    with held(options) as (given, memory):
        call = ProfileCall.of(given)
        request = call.to_request()
        libraries = request.pop("custom_ops", None)
        if call.key is not None:
            request["key"] = os.path.abspath(call.key)
        with file_of(model, on_event=call.on_event) as path:
            request["model"] = str(path)
            outside = beyond_sandbox(request)
            task = "sparsecc.tasks.profile:profile"
            found: dict[str, Any] = run_task(
                task, request, call.on_event, outside=outside, held=memory, libraries=libraries
            )
    return found


@takes_two(CompareCall)
def compare(a: Model, b: Model, **options: Any) -> dict[str, Any]:
    """Outputs and latency of two models or bundles, side by side, interleaved (docs/options.md).

    `data` is like `calib` of `compile`.
    """
    from sparsecc.tasks.outside import beyond_sandbox

    with held(options) as (given, memory):
        call = CompareCall.of(given)
        asked = call.to_request()
        libraries = asked.pop("custom_ops", None)
        with file_of(a) as first, file_of(b) as second:
            request = {"a": str(first), "b": str(second), **asked}
            outside = beyond_sandbox(request)
            task = "sparsecc.tasks.compare:compare"
            found: dict[str, Any] = run_task(
                task, request, call.on_event, outside=outside, held=memory, libraries=libraries
            )
    return found


def verify(
    bundle: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    reproduce: bool = False,
    key: str | os.PathLike[str] | None = None,
    calib: Data | None = None,
    calib_general: Data | None = None,
    evaluate: Score | None = None,
    target: str | None = None,
    build: Pairs | None = None,
    custom_ops: Libraries | None = None,
    on_event: Event | None = None,
) -> dict[str, Any]:
    """Check a bundle against its manifest and, with the original model, its plan and numerics.

    With `reproduce`, the original is compiled again by the bundle's recipe and the bytes are compared; `calib`,
    `calib_general`, `evaluate`, `target`, `build` and `custom_ops` are then what no recipe may name, as for `compile`.
    `calib` with the original alone tells its quality on samples anew. Each check is "ok" or "not checked" with why;
    "is_sound" says whether all were checked.
    With the public `key` (PEM), the bundle must be signed by its private half.
    GoalError names the first check that failed; after a failed manifest or signature nothing else is opened.
    """
    if reproduce and model is None:
        raise InputError("reproducing a bundle needs the model it was compiled from: give it with --model")
    own = {
        "calib": calib,
        "calib_general": calib_general,
        "evaluate": evaluate,
        "target": target,
        "build": build or None,
        "custom_ops": custom_ops,
    }
    if calib is not None and model is None:
        raise InputError("quality is told beside the model it was compiled from: give it with --model")
    named = [name for name, value in own.items() if value is not None]
    if (others := sorted({*named} - {"calib", "custom_ops"})) and not reproduce:
        raise InputError(f"{', '.join(others)}: only a compile takes that: give --reproduce too")
    from sparsecc.tasks.outside import beyond_sandbox

    rows = rows_of(CompileCall)
    with held(own) as (taken, memory), ExitStack() as stack:
        given = {name: rows[name].take(taken[name]) for name in named}
        original = None if model is None else compiled_from(stack.enter_context(file_of(model)))
        request = {
            "bundle": str(bundle),
            "model": None if original is None else str(original),
            "reproduce": reproduce,
            "key": os.path.abspath(key) if key is not None else None,
            "options": given,
        }
        outside = beyond_sandbox(given)
        task = "sparsecc.tasks.verify:verify"
        found: dict[str, Any] = run_task(
            task, request, on_event, outside=outside, held=memory, libraries=custom_ops
        )
    failed = [c for c in found["checks"] if c["ok"] is False]
    if failed:
        raise GoalError(f"{bundle}: {failed[0]['check']} failed: {failed[0]['detail']}")
    return found


def sign(
    bundle: str | os.PathLike[str], key: str | os.PathLike[str], *, on_event: Event | None = None
) -> dict[str, Any]:
    """Sign a bundle with a private key (PEM, on P-256, P-384 or P-521) in the OpenSSF model-signing format.

    The password of an encrypted key is read from the environment variable SPARSECC_KEY_PASSWORD.
    """
    request = {"bundle": str(bundle), "key": os.path.abspath(key)}
    beside = Path(
        os.path.abspath(bundle)
    ).parent  # where the signature is written, and takes its place in one step
    signed: dict[str, Any] = run_task("sparsecc.bundle.signing:sign", request, on_event, write=[beside])
    return signed


def build(
    bundle: str | os.PathLike[str],
    *,
    device: str | None = None,
    build: Mapping[str, Any] | None = None,
    deadline: float | None = None,
    on_event: Event | None = None,
) -> dict[str, Any]:
    """Build the engine of a bundle that was compiled with `emit="onnx"`, here or on a device.

    The options `build` stand above those of build.json, which may name neither plug-ins nor a timing cache.

    The bundle is replaced as a whole, its manifest with it; when this raises, it is as it was.
    """
    folder = Path(os.path.abspath(bundle))
    request = {"bundle": str(folder), "device": device, "options": dict(build or {})}
    with swept(folder):
        made: dict[str, Any] = run_task(
            "sparsecc.tasks.build:build",
            request,
            on_event,
            deadline=deadline,
            outside="engines are built by drivers and programs of a GPU's maker",
        )
    return made


def reduce(
    model: str | os.PathLike[str],
    check: str,
    *,
    output: str | os.PathLike[str] | None = None,
    seconds: float | None = None,
    on_event: Event | None = None,
) -> dict[str, Any]:
    """The smallest model found with which the command `check` still gives the same exit code.

    In `check`, {} stands for the model's path. The reduced model is written to `output`, by default
    `<name>.reduced.onnx`. InputError where the command does not fail on the whole model.
    """
    with file_of(model) as given:
        path = compiled_from(given)
        made = Path(output) if output is not None else default_reduced(path)
        request = {"model": str(path), "output": str(made.absolute()), "check": check, "seconds": seconds}
        outside = "--check is a command of your own"
        found: dict[str, Any] = run_task(
            "sparsecc.tasks.reduce:reduce_model", request, on_event, outside=outside
        )
    return found


def gate(
    current: str | os.PathLike[str],
    baseline: str | os.PathLike[str],
    *,
    max_regression: float | str = 0.05,
    min_agreement: float | str | None = None,
    name: str | None = None,
    checks: Sequence[str] | None = None,
    device: str = "local",
    threads: int = 1,
    data: Data | None = None,
    custom_ops: Libraries | None = None,
    on_event: Event | None = None,
) -> dict[str, Any]:
    """Whether `current` is slower than `baseline` by more than `max_regression` (0.05 or "5%"), or gives less than the
    share `min_agreement` of its answers on `data`.

    Both are .onnx or .ort files, or bundle folders. "verdict" is "OK", "REGRESSION" or "INCONCLUSIVE"; `checks` are
    those that need no clock, by default all. The rest is as `gate --json` prints it.
    """
    from sparsecc.tasks.outside import beyond_sandbox

    request = {
        "current": os.path.abspath(current),
        "baseline": os.path.abspath(baseline),
        "max_regression": _share(SHARE, "--max-regression", max_regression),
        "min_agreement": None if min_agreement is None else _share(KEPT, "--min-agreement", min_agreement),
        "name": name,
        "checks": list(checks) if checks is not None else None,
        "device": device,
        "threads": threads,
    }
    with held({"data": data}) as (given, memory):
        request |= given
        outside = beyond_sandbox(request)
        task = "sparsecc.tasks.gate:gate_model"
        found: dict[str, Any] = run_task(
            task, request, on_event, outside=outside, held=memory, libraries=custom_ops
        )
    return found


def doctor() -> dict[str, Any]:
    """Which targets and devices work here, and what each missing one needs."""
    from sparsecc.tasks.doctor import examine

    return examine()


def _share(kind: Kind[float], flag: str, value: float | str) -> float:
    try:
        return kind.take(value)
    except ValueError as e:
        raise InputError(f"{flag}: {e}") from e
