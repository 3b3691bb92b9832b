"""One compile under way: what was asked, the model and inputs that it works on, and what it noted so far."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.data.language import TextModel, require_room, samples_of
from sparsecc.data.plan_file import read_plan
from sparsecc.data.random_inputs import random_feeds, require_known_inputs
from sparsecc.data.samples import DRAWN, CalibrationSet, Feeds, Samples, random_samples
from sparsecc.data.slot_files import read_slots
from sparsecc.errors import InputError
from sparsecc.graph.analysis import Analysis, analyse
from sparsecc.graph.caches import caches
from sparsecc.graph.decoder_sizes import DecoderSizes
from sparsecc.loading.chain import Chain
from sparsecc.loading.identity import identity_of, identity_with
from sparsecc.loading.models import FILES
from sparsecc.loading.package import Package, package_at
from sparsecc.loss.answers import Question, named_io, questions
from sparsecc.loss.parts import Part, parts_of_outputs
from sparsecc.options import SELF, SYNTHETIC, CompileOptions
from sparsecc.reference.pruned_io import Narrowed
from sparsecc.remarks import Remark
from sparsecc.runtime.dense import Dense, dense_of, refusal
from sparsecc.runtime.numerics import Outputs
from sparsecc.runtime.partitioned import PartedRunner
from sparsecc.runtime.piecewise import PiecewiseRunner, opened, pieces_of
from sparsecc.runtime.runner import Runs
from sparsecc.system.plain_json import read_json
from sparsecc.system.progress import Announced, Emit, Record, nobody_listens
from sparsecc.system.scratch import Scratch
from sparsecc.targets import Target, target_named

Sizes = Mapping[str, tuple[int, ...]]

BATCHES = 256
"""Batches of samples that passes get at most."""
FEW = 16
"""Integers of an input of at most so many are kept in the report: lengths, rates, choices."""
PROBE_SECONDS = 30.0
"""How long a first run on random inputs may take: a loop without an end must not hang the compile."""

_DRAWS = (None, 1, 0)
"""What the integers of random inputs are, in the order tried: drawn, or all this number (`random_feeds`)."""


@dataclass
class Compilation(Announced):
    """A compile under way. Rooms take it whole and read what they need.

    `take` sets what depends on the model and `settled` what depends on its sizes; nothing of that may be read before.
    """

    file: Path
    """The user's model. It is read once more, to be measured, and never written."""
    options: CompileOptions
    """What was asked, resolved; `take` settles what a decoder is calibrated on, then it never changes."""
    scratch: Scratch
    """Where intermediate files are; it goes away with the compile."""
    emit: Emit = nobody_listens
    """Hears {"stage", "share"} as the compile goes on; `share` of the whole never falls. "note" is how long the work
    under way will take. An event that also has "say" is a sentence for the user, known before long work; its figures
    stand beside it."""
    package: Package | None = None
    """The folder that the model came in, with what its runtime reads beside it; None where a file was named."""
    original: Path | None = None
    """The user's model where `file` was made of it (`--vocabulary`, a package of several files); None where it is
    `file`."""
    chain: Chain | None = None
    """The files that `file` was joined of; None where it is one."""
    vocabulary: Mapping[str, Any] | None = None
    """{"before", "after", "exact", "bytes", "kept"}: how many words there were and are; None where all stayed."""
    goal: Mapping[str, Any] | None = None
    """What a search to a goal tried before this compile, for the report; None without a goal."""
    records: list[Record] = field(default_factory=list)
    """What stages and methods did, in the order in which they ended."""
    warnings: list[str] = field(default_factory=list)
    """Sentences for the first screen, in the order in which they came up."""
    remarks: list[tuple[str, Remark]] = field(default_factory=list)
    """(pass or stage, what it left alone and why)."""
    span: tuple[float, float] = (0.0, 1.0)
    """The shares of the whole at which the stage under way begins and ends."""
    since: float = 0.0
    """When the part of a stage under way began, by `time.perf_counter`."""
    at: tuple[str, float] = ("load", 0.0)
    """The stage and the share of the last event."""
    narrowed: Narrowed = field(default_factory=Narrowed)
    """The slots of graph inputs and outputs that go with `--prune-io`; none until `choose` decided."""
    decoder: DecoderSizes | None = None
    """The sizes of the model in its package; None without one."""
    dense: Dense = field(init=False, repr=False)
    """The model as it was given."""
    calibration: CalibrationSet | None = None
    """The samples of `--calib`, read once; None without it and with `--calib synthetic`."""
    general: CalibrationSet | None = None
    """The samples of `--calib-general`, read once; None without it."""
    measured_options: dict[str, Any] = field(default_factory=dict)
    """What passes chose by measuring, said by name: the recipe has it in place of the options given."""
    held: dict[str, Any] = field(default_factory=dict, repr=False)
    """What the trials of a search and the compile share, by the hash of what it is of."""
    pass_feeds: Sequence[Feeds] = ()
    """The inputs of the pruned model that passes calibrate on; () until stage `passes` begins, and without any."""
    sizes: list[dict[str, tuple[int, ...]]] = field(default_factory=list, repr=False)
    """The shapes of the inputs at the (two, where axes are dynamic) sizes that the dense model was seen to run at."""
    samples_flag: str = "--calib"
    """The option of the command that samples come by, for its advice."""
    plain: int | None = None
    """How random inputs are drawn so that the model runs, as `random_feeds` takes it."""
    parts: tuple[Part, ...] = ()
    """The parts of the dense model's outputs: what is lost is told of each."""
    caches: frozenset[str] = frozenset()
    """The names of the inputs and outputs that are caches of the dense model."""
    text: TextModel | None = None
    """How the model takes text; None where it is no decoder with caches."""
    asked: tuple[Question, ...] = ()
    """What the parts are asked, where that is known: classes, labels, neighbours."""
    feeds: list[Feeds] = field(init=False, repr=False)
    """Inputs of these sizes, for the dense model: everything is compared on these."""
    reference: Runs = field(init=False, repr=False)
    """What stands for the dense model in proofs: itself, or itself with the layers or tokens silenced that went."""
    expected: list[Outputs] = field(init=False, repr=False)
    """The outputs of `reference`, one for each of `feeds`."""
    of_dense: list[Outputs] = field(init=False, repr=False)
    """The outputs of the dense model itself for them."""

    def __post_init__(self) -> None:
        self._drawn: list[Samples] = []  # random samples; a trial shares this list with its compile
        self._ran: dict[object, tuple[Feeds, Outputs]] = {}
        self._failures: list[tuple[str, Feeds]] = []

    @classmethod
    def opened_at(
        cls, path: Path, options: CompileOptions, scratch: Scratch, emit: Emit = nobody_listens
    ) -> Compilation:
        """Of a model's file, or of the folder of a language model. InputError for another folder."""
        package = package_at(path)
        return cls(path if package is None else package.model, options, scratch, emit, package)

    @property
    def target(self) -> Target:
        return target_named(self.options.target)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The hashes of the user's model, its external data with it."""
        files = self.dense.model.meta.get(FILES) if self.original is None else None
        return identity_of(self.original or self.file) if files is None else identity_with(self.file, files)

    @cached_property
    def slots(self) -> Mapping[str, np.ndarray]:
        """What `--slots` says of tensors and axes; {} without it."""
        return {} if self.options.slots is None else read_slots(Path(self.options.slots))

    @cached_property
    def base(self) -> Mapping[str, Any]:
        """The plan that `--plan` names; {} without one."""
        plan = self.options.plan
        return {} if plan is None else read_plan(read_json(Path(plan), "give the plan.json of a bundle"))

    # The model and its sizes

    def begin(self, model: ir.Model) -> Analysis:
        """Take the model, and analyse it at input sizes that it runs at."""
        self.take(model)
        return self.settled()

    @property
    def has_begun(self) -> bool:
        """Whether the sizes that the model runs at are known."""
        return bool(self.sizes)

    def take(self, model: ir.Model) -> None:
        """Load the (normalised) model. InputError where the options name an input that it does not have."""
        options = self.options
        require_known_inputs(options, model)
        self.decoder = DecoderSizes.of(model) if self.package is not None else None
        self.dense = dense_of(self.file, model, options, self.scratch)
        self.reference = self.dense.runner
        self.text = TextModel.of(model)
        require_room(self.text, options.cache_tokens, has_sizes=bool(options.inputs))
        if self.text is not None and options.calib is None and not self.dense.by_parts:
            self.options = options = replace(options, calib=SELF)
        if self.calibration is None and options.samples is not None:
            begin = None if self.package is None else self.package.begin
            run, folder = self.dense.runner.run, self.file.parent
            self.calibration = samples_of(options.samples, model, self.text, run, options.seed, folder, begin)
        if self.general is None and options.calib_general is not None:
            self.general = CalibrationSet(
                str(options.calib_general), model, "--calib-general", divide=False, beside=self.file.parent
            )

    def analysed(self, model: ir.Model) -> Analysis:
        """A model analysed as the options say, at sizes that the dense one runs at."""
        asked, sample = self.options, {name: array.shape for name, array in self.sample.items()}
        return analyse(
            model,
            asked.dims,
            prune_io=named_io(model, asked.prune_io)[0],
            runs=self.runs,
            sample=sample or None,
            known=self.sizes,
        )

    def runs(self, sizes: Sizes) -> bool:
        """Whether the dense model runs at these input sizes; once sizes are settled, whether it is one of them."""
        if self.has_begun:
            return dict(sizes) in self.sizes
        asked = self.options
        feeds = random_feeds(
            self.dense.model, seed=asked.seed, sizes=sizes, sample=self.sample, plain=self.plain
        )
        try:
            outputs = self.dense.runner.run(feeds, seconds=PROBE_SECONDS)
        except InputError as e:
            self._failures.append((str(e), feeds))
            return False
        self._ran = {**dict(list(self._ran.items())[-2:]), _key(sizes): (feeds, outputs)}
        return True

    def settled(self) -> Analysis:
        """The dense model analysed; the inputs that everything is compared on, and its outputs for them, are fixed.

        InputError where it ran at no input sizes that were tried (InternalError where the file itself does), and where
        samples cannot be read.
        """
        for plain in (None,) if self.sample else _DRAWS:
            self.plain = plain
            analysis = self.analysed(self.dense.model)
            if analysis.shapes.works:
                break
        else:
            raise refusal(self.file, self.dense.model, self._failures, self.samples_flag, PROBE_SECONDS)
        for sizes in analysis.shapes.inputs:
            if _key(sizes) not in self._ran:
                self.runs(sizes)
        ran = [self._ran[_key(sizes)] for sizes in analysis.shapes.inputs]
        self._ran = {}
        self.sizes = [dict(sizes) for sizes in analysis.shapes.inputs]
        self.warnings.extend(named_io(analysis.model, self.options.prune_io)[1])
        self.parts = parts_of_outputs(analysis)
        self.asked = questions(analysis.model, self.parts)
        kept = caches(analysis.model)
        self.caches = frozenset(v.name or "" for cache in kept for v in (cache.past, cache.present))
        self.feeds = [feeds for feeds, _ in ran]
        self.expected = self.of_dense = [outputs for _, outputs in ran]
        return analysis

    def opened(self, model: ir.Model, *, owned: bool = False) -> Runs:
        """A graph ready to run as it stands now, by parts where the dense one is; one that is `owned` is edited by
        nobody any more."""
        if self.dense.by_parts:
            return PartedRunner(model, threads=self.options.threads, owned=owned)
        return opened(model, threads=self.options.threads, owned=owned)

    def in_pieces(self, model: ir.Model, *, again: bool = False) -> Runs:
        """An owned graph whose outputs are large, and wait in a file; with `again` it is run with one weight after the
        other changed, and these runs begin there."""
        if not self.dense.by_parts and (most := pieces_of(model.graph)):
            threads = self.options.threads
            return PiecewiseRunner(model, threads=threads, most=most, owned=True, files=True, again=again)
        return self.opened(model, owned=True)

    def rest_on(self, runner: Runs) -> None:
        """From here on this model, of which layers or tokens are silenced, stands for the dense one in proofs."""
        self.reference = runner
        self.expected = [runner.run(feeds) for feeds in self.feeds]

    @property
    def judged_parts(self) -> tuple[Part, ...]:
        """The parts that results are told of: whole outputs where `--prune-io` took slots of them."""
        smaller = self.narrowed.outputs
        return tuple(dict.fromkeys(Part(p.output) if p.output in smaller else p for p in self.parts))

    @property
    def judged_answers(self) -> tuple[Question, ...]:
        """What these are asked."""
        return tuple(one for one in self.asked if one.part.output not in self.narrowed.outputs)

    @property
    def timed(self) -> Feeds:
        """The inputs that times and memory hold for: a step of a text for a decoder, else the first of `feeds`."""
        text = self._text_of_any_length
        return self.feeds[0] if text is None else text.step(self.options.seed, self.options.cache_tokens)

    @property
    def prompt(self) -> Feeds | None:
        """The prompt that a decoder is timed on as well; None where `timed` is no step of a text."""
        text = self._text_of_any_length
        return None if text is None else text.prompt(self.options.seed, self.options.cache_tokens)

    @property
    def _text_of_any_length(self) -> TextModel | None:
        """How texts are fed, where the user named no sizes and lengths are free."""
        return (
            self.text if self.text is not None and self.text.any_length and not self.options.inputs else None
        )

    def narrow(self, feeds: Feeds) -> Feeds | None:
        """Inputs for the pruned model, None where they are those of the dense one."""
        return self.narrowed.feeds(feeds) if self.narrowed.changes_inputs else None

    # Samples

    @property
    def sample(self) -> Feeds:
        """The first of the samples, whose sizes and integers are such as the model runs with; {} without any."""
        return {} if self.calibration is None else self.calibration.first

    @property
    def integers(self) -> dict[str, Any]:
        """The few integers of the sample that the inputs hold besides random numbers, by input."""
        found = {n: a for n, a in self.sample.items() if a.dtype.kind in "iu" and a.size <= FEW}
        return {name: array.tolist() for name, array in found.items()}

    @property
    def samples(self) -> Samples:
        """The calibration samples, in large batches; random inputs where there are none."""
        if self.calibration is not None:
            return self.calibration.samples
        if not self._drawn:
            self._drawn.append(self.drawn(DRAWN))
        return self._drawn[0]

    def drawn(self, number: int, *, joined: bool = True) -> Samples:
        """So many random inputs or more, of the first probe's sizes; single numbers (a share, an axis) are its own."""
        single = {
            n: a for n, a in self.feeds[0].items() if not a.ndim or (a.size == 1 and a.dtype.kind in "iu")
        }
        return random_samples(
            self.dense.model,
            sizes=self.sizes[0],
            seed=self.options.seed,
            number=number,
            joined=joined,
            plain=self.plain,
            given=single,
        )

    @property
    def held_out(self) -> Samples:
        """The samples that nothing is fitted to; empty without samples, and where they are too few."""
        return Samples((), real=True) if self.calibration is None else self.calibration.held_out

    def batches(self, number: int) -> list[Feeds]:
        """The first batches of the samples, as the user gave them; without samples, none."""
        return [] if self.calibration is None else self.calibration.batches(number)

    def calibration_feeds(self) -> Sequence[Feeds]:
        """What passes calibrate on, for the pruned model: up to BATCHES batches of samples, or with `--calib
        synthetic` a few random ones; none without either."""
        feeds = self.batches(BATCHES)
        if self.options.calib == SYNTHETIC:
            model, sizes, seed = self.dense.model, self.sizes[0], self.options.seed + 1
            feeds = [
                random_feeds(model, seed=seed + draw, sizes=sizes, plain=self.plain) for draw in range(8)
            ]
        return tuple(self.narrowed.feeds(one) for one in feeds)

    # Stages

    def note(self, name: str, facts: Mapping[str, Any] | None = None, *, begun: float | None = None) -> None:
        """Keep what a stage or method did; `begun` is when, by `time.perf_counter`.

        A compile that measures nothing keeps no times, so that its report, too, is the same bytes every time.
        """
        timed = begun is not None and self.options.measure
        seconds = round(time.perf_counter() - (begun or 0.0), 3) if timed else None
        self.records.append(Record(name, facts, seconds))

    def again(self, options: CompileOptions, emit: Emit = nobody_listens) -> Compilation:
        """A compile of the same model with other options, on the same inputs and samples; it begins with the notes
        made so far, and keeps its own from there."""
        other = copy.copy(self)
        other.options, other.emit, other.narrowed, other.pass_feeds = options, emit, Narrowed(), ()
        other.measured_options = {}
        other.records, other.warnings, other.remarks = [*self.records], [*self.warnings], [*self.remarks]
        return other

    def within(self, folder: Path) -> Compilation:
        """This compile, with its files in a folder of their own."""
        other = copy.copy(self)
        other.scratch = Scratch(folder)
        return other


def _key(sizes: Sizes) -> object:
    return tuple(sorted(sizes.items()))
