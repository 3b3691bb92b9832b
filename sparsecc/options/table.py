"""The table of options: what each is called, what it may be, what it is for. Everything else about options follows
from it: the command line and its help, the signatures of `sparsecc.compile` and `sparsecc.search`, what recipes may
say, goals, what a search tries, and docs/options.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from sparsecc.errors import InputError, unknown
from sparsecc.graph.kinds import KINDS
from sparsecc.options import reading
from sparsecc.options.row import (
    ALIGN,
    AMOUNTS,
    CALL,
    DECIBELS,
    DROP,
    FLAG,
    INPUTS,
    KEPT,
    LIBRARIES,
    MILLISECONDS,
    NAMED_IO,
    PAIRS,
    PATTERNS,
    RATE,
    RATIO,
    RATIOS,
    SECONDS,
    SIZE,
    SLOTS,
    TIMES,
    Data,
    Hook,
    Inputs,
    Kind,
    Libraries,
    Pairs,
    Score,
    StrPath,
    choice,
    listed,
    memory,
    option,
    rows_of,
    source,
    text,
    whole,
    word,
)
from sparsecc.targets import TARGETS, target_named

Event = Callable[[dict[str, Any]], None]
Table = TypeVar("Table", bound="Options")

SWITCHES = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
"""How an option of a pass or a builder that is on or off may be written."""
METRICS = ("macs", "params", "channels", "kv", "latency")
RECOVERIES = ("auto", "none", "bias", "bn", "reconstruct", "distill")
LAYER_CRITERIA = ("output", "divergence", "angular", "span")
"""How layers to leave out are chosen: by a distance of the outputs, or as a span of the residual stream."""
CHOOSY = ("int8", "int8-dynamic", "int8-weights", "int4")
"""Types that leave layers in float which they make no faster; followed by ! they do not."""
TYPES = (
    *(f"{one}{end}" for one in CHOOSY for end in ("", "!")),
    "fp16",
    "bf16",
    "fp8",
    "nvfp4",
    "mxfp8",
    "mixed",
)
"""Of --quantize."""
FORMS = ("onnx", "ort", "engine")
LEVERS = ("channels", "types", "layers", "tokens", "patterns")
"""What a search to a goal may pull: removal of channels and heads, 8-bit types, whole layers, tokens of an image, 2:4
where the target has kernels for it."""
PRUNED = ("channels", "heads", "head_dims")
"""What may go unless --prune says otherwise."""
SCORES = ("top1", "map", "miou", "wer", "perplexity")
"""Metrics that `evaluate` may name."""
AUTO = "auto"
SYNTHETIC, SELF, NO_SAMPLES = "synthetic", "self", "none"
"""What `calib` says to ask for random inputs, for text that a decoder writes itself, and for neither."""
SMALLEST_MEMORY = 16 << 20
"""Bytes that calibration needs at least."""

BUDGET = "Budget (one of ratio, speedup, latency, decode-latency, fps, throughput)"
REMOVAL = "What may be removed"
NUMBERS = "Numbers"
DATA = "Data"
RUNNING = "Target and measurement"
OUTPUT = "Bundle"
TRIED = "What to try"
GROUPS = (TRIED, BUDGET, REMOVAL, NUMBERS, DATA, RUNNING, OUTPUT)
"""The sections of the help and of docs/options.md, in their order."""

SHORT_TARGETS = {"ort": "onnxruntime", "trt": "tensorrt"}


def _target(name: str) -> str:
    return target_named(SHORT_TARGETS.get(name.lower(), name)).name


def _drivers(name: str) -> str:
    """Why a file may not name this target; "" where it may."""
    return "which talks to the drivers of a GPU" if TARGETS[name].talks_to_drivers else ""


def _kinds(text: str) -> tuple[str, ...]:
    return reading.names_of("kind", KINDS)(text)


def _ratios(text: str) -> tuple[float, ...]:
    return tuple(reading.ratio(part) for part in reading.names(text))


def _types(text: str) -> tuple[str | None, ...]:
    return tuple(None if name == "none" else name for name in reading.names(text))


CODE = "PATH|FILE.py:FUNCTION"
TARGET: Kind[str] = Kind("TARGET", _target, text("TARGET").check, names=TARGETS)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Values that are checked, each by its row, and kept in one form."""

    def __post_init__(self) -> None:
        for name, row in rows_of(type(self)).items():
            object.__setattr__(self, name, row.take(getattr(self, name)))

    @classmethod
    def of(cls: type[Table], given: Mapping[str, Any]) -> Table:
        """From plain data (a recipe, a request), in which None leaves an option out. InputError names an unknown
        option and the closest one."""
        known = tuple(one.name for one in fields(cls))
        for name in given:
            if name not in known:
                raise unknown("option", "options", name, known)
        return cls(**{name: value for name, value in given.items() if value is not None})

    def to_request(self) -> dict[str, Any]:
        """Plain data, of the rows that have a value."""
        values = {name: getattr(self, name) for name in rows_of(type(self))}
        return {name: _plain(value) for name, value in values.items() if value is not None}


# Rows of several tables --------------------------------------------------------------------------------

_keep: Sequence[str] = option(
    (),
    PATTERNS,
    "Leave these alone: a module (`layer4`), or a glob on node, tensor or group names. May be repeated.",
    REMOVAL,
    is_common=True,
)
_only: Sequence[str] = option((), PATTERNS, "Touch nothing but these. May be repeated.", REMOVAL)
_prune_io: Sequence[str] = option(
    (),
    NAMED_IO,
    "Inputs and outputs whose sizes may change, by name or glob; words and classes by name alone, caches unasked. May "
    "be repeated.",
    REMOVAL,
)
_inputs: Inputs = option(
    {},
    INPUTS,
    "Fix the shape of an input, e.g. x:1x3x224x224; or a range, x:1x64|8x64|16x64 (min|opt|max).",
    DATA,
    flags=("-i", "--input"),
    is_common=True,
)
_target_row: str = option(
    "onnxruntime",
    TARGET,
    "Runtime: {names}.",
    RUNNING,
    flags=("-t", "--target"),
    refused_in_a_file=_drivers,
    is_common=True,
)
_device: str = option(
    "local",
    text("local|NAME|ssh://USER@HOST|adb:SERIAL"),
    "Where to measure; NAME is one of `sparsecc devices list`.",
    RUNNING,
    never_in_a_file="a machine to run on",
    is_common=True,
)
_threads: int = option(1, whole(1), "Threads when a model runs.", RUNNING)
_custom_ops: Libraries | None = option(
    None,
    LIBRARIES,
    "A library of operators of your own, for ONNX Runtime: it is loaded wherever a model runs, and what its "
    "operators touch stays. May be repeated.",
    RUNNING,
    never_in_a_file="which names code to run",
    names_code=True,
)
_data: Data | None = option(
    None, source(CODE), "Inputs to run on: .npz, .npy, a folder, FILE.py:FUNCTION.", DATA, by=CALL
)


@dataclass(frozen=True, kw_only=True)
class CompileOptions(Options):
    """What a compile was asked for: every option with its value, as the recipe records it."""

    ratio: float | None = option(
        None,
        RATIO,
        "Remove this share of --metric: 0.5 or 50% removes half.",
        BUDGET,
        is_common=True,
        alone=True,
    )
    metric: str = option(
        "macs",
        choice("metric", METRICS),
        "What --ratio counts, of the whole model, with --only too; kv are the caches of a decoder.",
        BUDGET,
    )
    speedup: float | None = option(
        None, TIMES, "Compile until it is this much faster.", BUDGET, is_common=True, alone=True, is_goal=True
    )
    latency: float | None = option(
        None,
        MILLISECONDS,
        "Compile until it takes this long, e.g. 5ms; plain numbers of Python and recipes are milliseconds.",
        BUDGET,
        is_common=True,
        alone=True,
        is_goal=True,
    )
    decode_latency: float | None = option(
        None,
        MILLISECONDS,
        "Compile until a decoder writes a token in this time, behind a cache of --cache-tokens.",
        BUDGET,
        alone=True,
        is_goal=True,
    )
    fps: float | None = option(
        None, RATE, "Compile until it runs this often a second.", BUDGET, alone=True, is_goal=True
    )
    throughput: float | None = option(
        None,
        RATE,
        "Compile until it serves so many samples a second, e.g. 200/s, in the batch and the streams that serve most.",
        BUDGET,
        alone=True,
        is_goal=True,
    )
    size: float | None = option(
        None, SIZE, "Compile until it is this small, e.g. 5MiB.", BUDGET, is_common=True, is_goal=True
    )
    footprint: float | None = option(
        None,
        SIZE,
        "Compile until loading and running it takes no more than this memory.",
        BUDGET,
        was_flags=("--memory",),
        is_goal=True,
    )
    kv_bytes: float | None = option(
        None,
        SIZE,
        "Compile until the caches of a decoder take no more for each token, e.g. 2KiB; an order beside --ratio.",
        BUDGET,
        is_goal=True,
    )
    max_drop: float | None = option(
        None,
        DROP,
        "Lose at most this much accuracy (needs --evaluate).",
        BUDGET,
        is_common=True,
        is_goal=True,
        is_limit=True,
    )
    min_quality: float | None = option(
        None,
        DECIBELS,
        "Write nothing where a part of the outputs keeps less on held-out samples, e.g. 20dB (needs --calib). Without "
        "an order (--ratio, --quantize, …) the fastest within it is looked for.",
        BUDGET,
        is_limit=True,
    )
    min_agreement: float | None = option(
        None,
        KEPT,
        "Write nothing where less of the answers stay the same on held-out samples, e.g. 0.98 (needs --calib). "
        "Without an order the fastest within it is looked for.",
        BUDGET,
        is_limit=True,
    )
    levers: Sequence[str] = option(
        LEVERS,
        listed("LEVERS", reading.names_of("lever", LEVERS)),
        f"What a search to a goal may use, with commas: {', '.join(LEVERS)}. What is ordered (--quantize, --tokens, "
        "--prune) is obeyed.",
        BUDGET,
    )
    budget: float | None = option(
        None,
        SECONDS,
        "How long a search to a goal goes on once something meets it, e.g. 10min; one minute without.",
        BUDGET,
    )
    prune: Sequence[str] = option(
        PRUNED,
        listed("KINDS", _kinds),
        f"What may go, with commas: {', '.join(KINDS)}.",
        REMOVAL,
        is_common=True,
    )
    criterion: str = option(
        "auto",
        word("NAME"),
        "How the importance of a slot is scored, e.g. l2, wanda, obs (docs/methods.md).",
        REMOVAL,
    )
    allocator: str = option(
        "auto",
        word("NAME"),
        "How the budget is spread over the groups, e.g. uniform, global, distortion (docs/methods.md).",
        REMOVAL,
    )
    align: str | int = option("auto", ALIGN, "Multiples for channel counts.", REMOVAL)
    layer_criterion: str = option(
        "output",
        choice("layer criterion", LAYER_CRITERIA),
        "What layers are judged by with --prune layers: the outputs without them (relative change, Jensen-Shannon "
        "divergence, angle), or how far consecutive ones turn what passes by.",
        REMOVAL,
    )
    tokens: float | None = option(
        None,
        KEPT,
        "Keep this share of an image's patches from a third of the layers of a vision transformer on: those that "
        "its class token attends to most.",
        REMOVAL,
    )
    keep: Sequence[str] = _keep
    only: Sequence[str] = _only
    ratio_for: Mapping[str, float] = option(
        {},
        RATIOS,
        "Remove this share of the slots of each group that the pattern names, e.g. 'layer4.*=0.6'; of several "
        "patterns the longest counts. Beside --ratio, which the other groups then make up. May be repeated.",
        REMOVAL,
    )
    at_least: Mapping[str, float | int] = option(
        {},
        AMOUNTS,
        "So many slots, or this share of them, stay of each group that the pattern names, e.g. 'layer1.*=16'. May "
        "be repeated.",
        REMOVAL,
    )
    at_most: Mapping[str, float | int] = option(
        {}, AMOUNTS, "No more than so many, or this share, stay of each. May be repeated.", REMOVAL
    )
    protect: Mapping[str, tuple[int, ...]] = option(
        {},
        SLOTS,
        "These slots stay of each group that the pattern names, e.g. fc1.weight:0=0-7,12. May be repeated.",
        REMOVAL,
    )
    slots: StrPath | None = option(
        None,
        source("FILE"),
        "Slots chosen by a method of your own: .npz or .json, by tensor of the model (docs/slots.md); groups that it "
        "names keep just these.",
        REMOVAL,
        names_code=True,
    )
    plan: StrPath | None = option(
        None,
        source("FILE"),
        "The plan.json of another compile of this graph, with these or other weights: what it removed goes, and more "
        "where --ratio says so.",
        REMOVAL,
        names_code=True,
    )
    dead_only: bool = option(
        False,
        FLAG,
        "Remove channels that are the same on every input, or that nobody reads, and nothing else: exactly.",
        REMOVAL,
    )
    last_logits: bool = option(
        False,
        FLAG,
        "A decoder gives the logits of the last position alone, all that writing takes: prompts are read faster.",
        REMOVAL,
    )
    vocabulary: StrPath | None = option(
        None,
        source("FILE"),
        "Words that stay: all that a text needs (.txt, by the tokenizer.json beside the model), or a .json list of "
        "their numbers. Tokenizer and configuration follow; scores of words that stay are the same.",
        REMOVAL,
        names_code=True,
    )
    prune_io: Sequence[str] = _prune_io
    sparsity: str | None = option(
        None, word("PATTERN"), "Pattern over what is left, e.g. 2:4.", NUMBERS, is_common=True
    )
    sparsity_options: Pairs = option(
        {},
        PAIRS,
        "How, e.g. method=sparsegpt, permute=true (docs/quantization.md). May be repeated.",
        NUMBERS,
        flags=("--sparsity-option",),
    )
    quantize: str | None = option(
        None,
        choice("type", TYPES),
        "Type of the weights and activations. Integers leave layers in float that they make no faster, with ! none; "
        "mixed finds a type for each layer, so that all fit --size.",
        NUMBERS,
        is_common=True,
    )
    quantize_options: Pairs = option(
        {},
        PAIRS,
        "How, e.g. method=mse, algorithm=gptq, block=64, max_drop=0.01 (docs/quantization.md). May be repeated.",
        NUMBERS,
        flags=("--quantize-option",),
    )
    recover: str = option("auto", choice("recovery", RECOVERIES), "Repair after removal.", NUMBERS)
    recover_budget: str = option("2m", word("BUDGET"), "How long to distil: 10m, 90s or steps:2000.", NUMBERS)
    calib: Data | None = option(
        None,
        source(CODE),
        "Samples to calibrate on: .npz, .npy, images, .wav, a folder of those, .jsonl, a .txt beside its "
        "tokenizer.json, a function, or synthetic: random inputs; self: what a language model writes, the default for "
        "those; or none.",
        DATA,
        was=("calibration",),
        is_common=True,
        names_code=True,
    )
    calib_general: Data | None = option(
        None,
        source(CODE),
        "Samples of everything else, which --criterion dai compares those of --calib with.",
        DATA,
        was=("calibration_general",),
        names_code=True,
    )
    ranges: StrPath | None = option(
        None,
        source("FILE"),
        "Ranges of activations for int8 and fp8 that another tool found: a TensorRT calibration cache, encodings of "
        "AIMET, or JSON of [low, high] by value; --calib finds those that it lacks.",
        DATA,
        names_code=True,
    )
    evaluate: Score | None = option(
        None,
        text("FILE.py:FUNCTION"),
        "What scores a model before and after: a function, or on --labels one of top1, map, miou, wer, perplexity.",
        DATA,
        flags=("--evaluate", "--eval"),
        never_in_a_file="which names code to run",
        is_common=True,
        names_code=True,
    )
    labels: Data | None = option(
        None,
        source(CODE),
        "Labelled samples for a metric by name: a folder for each class, .jsonl or .npz with labels, COCO's .json, "
        "images/ and masks/, a .txt.",
        DATA,
        names_code=True,
    )
    working_memory: int = option(
        2 << 30,
        memory(SMALLEST_MEMORY),
        "Memory that calibration, repair and quantization may hold, e.g. 4GiB; beyond it they use the disk and "
        "several passes.",
        DATA,
        was=("calib_memory",),
        was_flags=("--calib-memory",),
    )
    inputs: Inputs = _inputs
    custom_ops: Libraries | None = _custom_ops
    seed: int = option(0, whole(0), "Seed of everything random.", DATA)
    cache_tokens: int | None = option(
        None,
        whole(1),
        "How many tokens are in the cache behind which a decoder's step is timed, and in its prompt; 128, or as many "
        "as it knows, without.",
        RUNNING,
    )
    target: str = _target_row
    device: str = _device
    device_table: StrPath | None = option(
        None,
        source("FILE"),
        "Where the target does not run here: what `sparsecc devices table` measured on such a device, by which "
        "goals of time are foretold; without one, --speedup is by rules of the target.",
        RUNNING,
        names_code=True,
    )
    threads: int = _threads
    measure: bool = option(True, FLAG, "Skip the latency measurement.", RUNNING)
    next_steps: bool = option(True, FLAG, "Try nothing else where the result is not usable.", RUNNING)
    emit: str | None = option(
        None,
        choice("form", FORMS),
        "Write this form: ort for ONNX Runtime; onnx with build scripts for TensorRT, to be finished by "
        "`sparsecc build`.",
        OUTPUT,
    )
    opset: int | None = option(
        None,
        whole(1),
        "Write the result at this version of the ONNX operators, for an older runtime (with --target onnx, which "
        "has no operators of ONNX Runtime's own).",
        OUTPUT,
    )
    ir_version: int | None = option(
        None, whole(1), "Write the result at this version of the ONNX format.", OUTPUT
    )
    doc_strings: bool = option(
        False, FLAG, "Keep the doc strings of the model, its inputs and its outputs.", OUTPUT
    )
    build: Pairs = option(
        {},
        PAIRS,
        "Option of the target's builder, e.g. workspace=4GiB, optimization_level=5, compute_capabilities=8.6,12.0 "
        "(docs/tensorrt.md). May be repeated.",
        OUTPUT,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = rows_of(CompileOptions).values()
        asked = [row.flag for row in rows if row.alone and getattr(self, row.name) is not None]
        if len(asked) > 1:
            names = " and ".join(asked)
            raise InputError(f"{names} are different budgets: give one of them (--max-drop may go with it)")
        if self.dead_only and (
            asked or self.names_slots or "layers" in self.prune or self.tokens is not None
        ):
            what = (*asked, *self.names_slots, "--tokens" if self.tokens is not None else "--prune layers")[0]
            raise InputError(f"--dead-only removes what is dead and nothing else: leave out {what}")
        if self.max_drop is not None and self.evaluate is None:
            raise InputError("--max-drop needs an accuracy to watch: give --evaluate FILE.py:FUNCTION")
        if str(self.evaluate).lower() in SCORES and self.labels is None:
            raise InputError(f"--evaluate {self.evaluate} needs labelled samples: give them with --labels")
        for name in ("min_quality", "min_agreement"):
            if getattr(self, name) is not None and self.samples is None:
                raise InputError(f"--{name.replace('_', '-')} is judged on samples: give them with --calib")

    def to_recipe(self) -> dict[str, Any]:
        """Plain data that `of` reads back."""
        values = {name: getattr(self, name) for name in rows_of(CompileOptions)}
        return {name: _plain(value) for name, value in values.items() if value is not None}

    def settled(self, chosen: Mapping[str, Any]) -> CompileOptions:
        """With what was chosen by measuring said by name: they make the same again without measuring."""
        return CompileOptions.of({**self.to_recipe(), **chosen})

    def pulled(self, ratio: float, levers: Mapping[str, Any]) -> CompileOptions:
        """The same compile to a ratio, with these options besides, instead of to goals. The size that types are chosen
        for is no goal, the bytes of the cache are counted while slots are chosen, and limits still hold."""
        rows, other = rows_of(CompileOptions), CompileOptions()
        searched = {row.name: None for row in rows.values() if row.is_goal}
        del searched["kv_bytes"]
        if self.mixes_types:
            del searched["size"]
        how = {name: getattr(other, name) for name in ("levers", "budget", "device_table")}
        return replace(self, **{"ratio": ratio, **searched, **how, **levers})

    @property
    def gives_orders(self) -> bool:
        """Whether it is said what to do, and not only what is wanted."""
        orders = (self.ratio, self.quantize, self.sparsity, self.tokens)
        return any(order is not None for order in orders) or self.dead_only

    @property
    def samples(self) -> str | None:
        """Where real samples come from; None where there are none, or random inputs were asked for."""
        return None if self.calib in (None, SYNTHETIC, NO_SAMPLES) else str(self.calib)

    @property
    def data(self) -> str | None:
        """What is calibrated on, random inputs too; None where that is nothing."""
        return None if self.calib in (None, NO_SAMPLES) else str(self.calib)

    @property
    def type(self) -> str | None:
        """The type that `quantize` asks for, whether it insists or not."""
        return None if self.quantize is None else self.quantize.removesuffix("!")

    @property
    def only_what_pays(self) -> bool:
        """Whether layers that integers make no faster stay in float: not where `int8!` insists, nor where a size is
        asked for."""
        return self.quantize in CHOOSY and self.size is None and self.footprint is None

    @property
    def names_slots(self) -> list[str]:
        """The flags of the options given that say themselves what goes, of which group."""
        given = ("ratio_for", "at_most", "slots", "plan")
        return [f"--{name.replace('_', '-')}" for name in given if getattr(self, name)]

    @property
    def removes(self) -> bool:
        """Whether channels, heads or experts are to go."""
        return bool(self.ratio or self.kv_bytes or self.dead_only or self.names_slots)

    @property
    def mixes_types(self) -> bool:
        """Whether layers have different types, for which `size` is then the budget."""
        return self.quantize == "mixed"

    @property
    def dims(self) -> dict[str, tuple[int, ...]]:
        """The inputs whose shape is fixed."""
        return {name: shape for name, shape in self._shapes() if _is_shape(shape)}

    @property
    def profiles(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """The inputs with a range: (least, usual, largest) shape."""
        return {name: shape for name, shape in self._shapes() if not _is_shape(shape)}

    def _shapes(self) -> list[tuple[str, Any]]:
        return list(self.inputs.items())


def _is_shape(shape: Any) -> bool:
    return all(isinstance(d, int) for d in shape)


def _plain(value: Any) -> Any:
    """Lists instead of tuples, which YAML has no word for."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class Running(Options):
    """Where a call writes, what its workers may take, and who hears of its progress."""

    output: StrPath | None = option(
        None,
        source("DIR"),
        "The folder to write.",
        OUTPUT,
        by=CALL,
        flags=("-o", "--output"),
        is_common=True,
    )
    deadline: float | None = option(
        None,
        SECONDS,
        "Stop a native call after this, e.g. 10min.",
        RUNNING,
        never_in_a_file="a limit of the worker",
    )
    memory_limit: int | None = option(
        None,
        SIZE,
        "Memory of a worker, e.g. 4GiB.",
        RUNNING,
        was=("memory",),
        never_in_a_file="a limit of the worker",
    )
    on_event: Event | None = None


@dataclass(frozen=True, kw_only=True)
class CompileCall(Running, CompileOptions):
    """What `sparsecc.compile` and `sparsecc compile` take besides the model."""

    force: bool = option(
        False, FLAG, "Replace the output folder if it exists.", OUTPUT, by=CALL, is_common=True
    )
    dry_run: bool = option(False, FLAG, "Decide and report, write nothing.", OUTPUT, by=CALL)
    example_inputs: Any = None
    """The arguments of a call of a torch module, which is exported with them."""
    log_to: Hook | None = option(
        None,
        text("mlflow|FILE.py:FUNCTION"),
        "Log report and figures there too: MLflow by its own settings, or a function that gets the result.",
        OUTPUT,
        by=CALL,
    )


@dataclass(frozen=True, kw_only=True)
class Tried(Options):
    """What a search is told to try: every combination of these; None in `quantizes` leaves the types as they are, AUTO
    is what a search to a goal would try."""

    ratios: Sequence[float] | None = option(
        None,
        listed("SHARES", _ratios),
        "Shares to remove, e.g. 0.3,0.5: these of each type, and nothing but between neighbours on the front besides. "
        "Without, every lever is pulled as far as it pays.",
        TRIED,
        by=CALL,
        is_common=True,
        tries="ratio",
    )
    criteria: Sequence[str] = option(
        ("auto",),
        listed("NAMES", reading.names),
        "Criteria to try, e.g. auto,wanda (docs/methods.md).",
        TRIED,
        by=CALL,
        is_common=True,
        tries="criterion",
    )
    allocators: Sequence[str] = option(
        ("auto",),
        listed("NAMES", reading.names),
        "Allocators to try, e.g. auto,global (docs/methods.md).",
        TRIED,
        by=CALL,
        is_common=True,
        tries="allocator",
    )
    recovers: Sequence[str] = option(
        ("auto",),
        listed("NAMES", reading.names),
        "Repairs to try, e.g. none,reconstruct.",
        TRIED,
        by=CALL,
        is_common=True,
        tries="recover",
    )
    quantizes: Sequence[str | None] = option(
        (AUTO,),
        listed("TYPES", _types),
        "Types to try, e.g. none,int8; auto are those that a search to a goal would try.",
        TRIED,
        by=CALL,
        is_common=True,
        tries="quantize",
    )


@dataclass(frozen=True, kw_only=True)
class SearchCall(Running, CompileOptions, Tried):
    """What `sparsecc.search` takes besides the model; `sparsecc search` leaves out what each point sets."""

    rounds: int = option(
        1, whole(0), "How often to look between neighbours on the front.", TRIED, by=CALL, is_common=True
    )
    jobs: int = option(1, whole(1), "Compiles at once on this machine.", RUNNING, by=CALL, is_common=True)
    cluster: str | None = option(
        None,
        text("ADDRESS"),
        "A Dask scheduler, e.g. tcp://host:8786: compile on its workers, which see the same paths.",
        RUNNING,
        by=CALL,
    )


@dataclass(frozen=True, kw_only=True)
class InspectCall(Options):
    """What `sparsecc.inspect` and `sparsecc inspect` take besides the model."""

    inputs: Inputs = _inputs
    keep: Sequence[str] = _keep
    only: Sequence[str] = _only
    prune_io: Sequence[str] = _prune_io
    why: str | None = option(
        None,
        text("TENSOR:AXIS"),
        "Print the chain that led to this axis' coupling or pin.",
        REMOVAL,
        by=CALL,
    )
    custom_ops: Libraries | None = _custom_ops
    on_event: Event | None = None


@dataclass(frozen=True, kw_only=True)
class ProfileCall(Options):
    """What `sparsecc.profile` takes besides the model; `sparsecc profile` takes several devices, and clusters."""

    target: str = _target_row
    device: str = _device
    threads: int = _threads
    layers: bool = option(False, FLAG, "Also the time of every layer.", RUNNING, by=CALL)
    key: StrPath | None = option(
        None,
        source("PEM"),
        "Load an engine that someone else built: its bundle is signed by this public key's owner.",
        RUNNING,
        by=CALL,
    )
    inputs: Inputs = _inputs
    data: Data | None = _data
    custom_ops: Libraries | None = _custom_ops
    on_event: Event | None = None


@dataclass(frozen=True, kw_only=True)
class CompareCall(Options):
    """What `sparsecc.compare` and `sparsecc compare` take besides the two models."""

    data: Data | None = _data
    inputs: Inputs = _inputs
    threads: int = _threads
    custom_ops: Libraries | None = _custom_ops
    on_event: Event | None = None
