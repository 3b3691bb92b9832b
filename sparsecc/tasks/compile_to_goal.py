"""Compile to a goal: models made in a few ways and at a few ratios, and measured, until what meets it is known."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from sparsecc.backends import backend_named
from sparsecc.compilation import Compilation
from sparsecc.decide.cache_budget import share_to_go
from sparsecc.decide.channels import require_methods
from sparsecc.decide.decision import Decision
from sparsecc.decide.goal_search import MOST, EndedError, Family, Search, Settled
from sparsecc.decide.goals import REFUSED, Goal, Trial, found_in, words_of
from sparsecc.decide.joint_levers import next_together
from sparsecc.decide.layers import cache_levers, has_layers
from sparsecc.decide.passes import require_passes
from sparsecc.decide.type_levers import AIM, INT8, at_speed, in_part
from sparsecc.errors import GoalError, InputError, UnavailableError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.token_sites import CannotReduceError, find_site
from sparsecc.options import CompileOptions
from sparsecc.options.table import PRUNED
from sparsecc.remarks import Remark
from sparsecc.system.files import file_sha256, size_of
from sparsecc.system.progress import Emit
from sparsecc.system.scratch import Scratch
from sparsecc.system.temp_folders import temporary_folder
from sparsecc.targets import target_named
from sparsecc.tasks import compile as pipeline
from sparsecc.tasks.ask_device import require_device
from sparsecc.tasks.fewer_words import compilation_of
from sparsecc.tasks.known_trials import KnownTrials
from sparsecc.tasks.stages import MAKING, Work, begin, walk
from sparsecc.tasks.trial_figures import Figures, is_foretold

FIRST_ANSWER = 60.0
"""Seconds for which levers are tried where `--budget` says nothing."""
LATE = 5.0
"""After so many times that, of a minute at least, no model is made any more, although nothing meets the goal."""
_TOKENS = 0.7
"""The share of an image's patches that a trial with fewer of them keeps."""


def compile_model(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """As `compile.compile_model`, with the goals among the options first turned into a ratio and levers; without any,
    but with samples, the fastest that loses nothing measurable is looked for, where it can be timed. The folder of a
    language model is left as it is then: what it loses is told in nats a token, which no trial measures.

    GoalError where nothing near the goal can be reached; nothing is written then.
    """
    options = CompileOptions.of(request["options"])
    require_methods(options)
    require_passes(options)
    goal, builds = Goal.of(options), not request.get("dry_run")
    is_asked = goal is not None
    if not is_asked and builds and not is_foretold(options):
        goal = Goal.unasked(options)
    times = (options.measure and builds) or (goal is not None and goal.is_timed)
    require_device(options, Path(request["model"]), times=times, builds=builds)
    if goal is None:
        return pipeline.compile_model(request, emit)
    with temporary_folder("scratch") as folder:
        asked = compilation_of(Path(request["model"]), options, Scratch(folder), _scaled(emit, 0.0))
        known = partial(KnownTrials, asked, request.get("origin", ""))
        if is_asked:
            shop = Workshop.open(asked, goal, known, has_ended=bool(request.get("ended")))
            return _settled(shop, request, emit)
        with suppress(UnavailableError):
            if asked.package is None:
                asked.say("nothing is asked for: the fastest that loses nothing measurable is looked for")
                shop = Workshop.open(asked, goal, known, has_ended=bool(request.get("ended")))
                return _settled(shop, request, emit, is_asked=False)
    return pipeline.compile_model(request, emit)


def _settled(shop: Workshop, request: dict[str, Any], emit: Emit, *, is_asked: bool = True) -> dict[str, Any]:
    """The compile that a search settles on; where that misses the goal, once more from what it measured."""
    settled = shop.settle()
    made = _compiled(shop, settled, request, emit, is_asked=is_asked)
    if "folder" in request and not settled.notes and shop.is_missed_by(settled.best, made["report"]):
        again = shop.settle()
        is_other = (again.ratio, again.best.levers) != (settled.ratio, settled.best.levers)
        if is_other or again.excess > REFUSED:
            for left in Path(request["folder"]).iterdir():
                left.unlink()
            made = _compiled(shop, again, request, emit, is_asked=is_asked)
    return made


def _compiled(
    shop: Workshop, settled: Settled, request: dict[str, Any], emit: Emit, *, is_asked: bool
) -> dict[str, Any]:
    """The compile that a search settled on. GoalError where that is too far from the goal."""
    if settled.excess > REFUSED:
        raise GoalError(settled.notes[-1])
    compilation = shop.compilation.again(shop.resolved(settled.best), _scaled(emit, 0.5))
    compilation.goal = {
        "asked": shop.goal.asked if is_asked else {},
        "trials": [trial.to_json() for trial in settled.trials],
        "chosen": {"ratio": settled.ratio, "levers": dict(settled.best.levers)},
        "notes": settled.notes if is_asked else (),
    }
    if (rates := shop.figures.rates) is not None:
        best = settled.best
        told = {"speedup": best.speedup, "ms": best.ms, "serving": best.serving, "by": rates.source}
        compilation.goal["foretold"] = {name: value for name, value in told.items() if value is not None}
    made = pipeline.compiled(compilation, request)
    if request.get("dry_run"):  # the chosen trial was made: its size is known
        for side, size in (("before", settled.best.dense_bytes), ("after", settled.best.bytes)):
            made["report"][side]["bytes"] = size
    return made


def _scaled(emit: Emit, start: float) -> Emit:
    """Events of one half of the whole."""
    return lambda event: emit({**event, "share": start + 0.5 * float(event.get("share", 0.0))})


@dataclass
class Workshop:
    """Makes models and measures them against the dense one."""

    compilation: Compilation
    goal: Goal
    analysis: Analysis
    figures: Figures
    known: KnownTrials
    has_ended: bool = False
    """Whether trials that are not known are no longer made."""
    made: list[Trial] = field(default_factory=list)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What passes chose by measuring, by the options of the trial (`_key`)."""
    paying: dict[str, Any] = field(default_factory=dict)
    """What timing found of 8-bit types in the first trial with them: which layers stay in float. Later trials do not
    time it again."""
    end: float = 0.0
    """When no new way is begun any more, by `time.monotonic`; 0 before the search."""

    @staticmethod
    def open(
        compilation: Compilation, goal: Goal, known: Callable[..., KnownTrials], *, has_ended: bool = False
    ) -> Workshop:
        """Load the model once to learn at which sizes it runs. UnavailableError where it cannot be timed.

        `known` finds earlier trials, by what else they depend on.
        """
        options = compilation.options
        if is_foretold(options):
            _require_foretold(goal, options)
        compilation.emit({"stage": "load", "share": 0.0})
        analysis = begin(compilation)
        dense = compilation.dense
        if dense.by_parts:
            raise UnavailableError(f"{dense.too_large()}: {goal.words()} cannot be measured, give --ratio")
        if goal.decode_latency is not None and compilation.prompt is None:
            raise InputError(
                "--decode-latency: the model is no decoder of text, or --input names sizes: give --latency instead"
            )
        share_to_go(compilation, analysis)  # a model without caches is refused before anything is measured
        figures = Figures.of(compilation, goal)
        if figures.rates is not None:
            compilation.say(
                f"speeds on {options.target} are foretold by {figures.rates.source}, not measured here"
            )
        trials = known(figures.dense_score, figures.rates)
        return Workshop(compilation, goal, analysis, figures, trials, has_ended)

    def settle(self) -> Settled:
        """What meets the goal and loses least, or comes nearest."""
        options = self.compilation.options
        budget = options.budget or FIRST_ANSWER
        end = self.end = self.end or time.monotonic() + budget
        # after the end of a search, what it found is looked at once more
        late = max(end + (LATE - 1) * max(budget, FIRST_ANSWER), time.monotonic() + FIRST_ANSWER)
        self.made.clear()
        families, more = self.levers()
        search = Search(
            self.goal,
            self.attempt,
            families,
            more,
            ceiling=options.ratio,
            keeps_all=self.keeps_all,
            orders=self.goal.kv_bytes is not None,
            finer=self.finer,
            safer=self.safer,
            together=self.together,
            is_over=lambda: time.monotonic() > end,
            is_late=lambda: time.monotonic() > late,
        )
        settled = search.settle()
        remarks = [Remark("search", reason) for reason in search.refused]
        self.compilation.remarks.extend(("goal", remark) for remark in remarks)
        return settled

    def levers(self) -> tuple[list[Family], list[Family]]:
        """(types and channels, what may join them): what the options leave free, and the model and the target have."""
        options, given = self.compilation.options, self.compilation.options.levers
        if self.goal.kv_bytes is not None:
            joins = "types" in given and (self.goal.is_timed or self.goal.size is not None)
            types = self.types() if joins else []
            return cache_levers(self.compilation, self.analysis), [{"quantize": name} for name in types]
        if options.quantize and not options.mixes_types:
            families: list[Family] = [{"quantize": options.quantize}]
        else:
            families = [{"quantize": name} for name in self.types()] if "types" in given else []
            families += [{}] if "channels" in given or not families else []
        more: list[Family] = []
        if options.samples is None:
            return families, more
        if "patterns" in given and options.sparsity is None and "2:4" in self.compilation.target.patterns:
            more += [{"sparsity": "2:4"}] if self.figures.times else []
        if "channels" in given and options.metric == "macs" and self.times_layers:
            more.append({"metric": "latency"})
        if "layers" in given and options.prune == PRUNED and has_layers(options, self.analysis):
            more.append({"prune": (*(PRUNED if "channels" in given else ()), "layers")})
        if "tokens" in given and options.tokens is None and _has_tokens(self.analysis):
            more.append({"tokens": _TOKENS})
        return families, more

    def keeps_all(self, family: Family) -> bool:
        """Whether the levers allow to remove nothing with these options besides."""
        if self.goal.is_of_cache_alone:
            return True  # a ratio besides would make the cache no smaller
        is_order = self.compilation.options.ratio is not None
        return not is_order and "channels" not in self.compilation.options.levers and "prune" not in family

    @property
    def times_layers(self) -> bool:
        """Whether the table of this machine's layers says what removal saves on the target."""
        is_here = self.compilation.target.timed_here and self.compilation.options.device == "local"
        return is_here and self.figures.times and self.figures.rates is None

    def types(self) -> list[str]:
        """Types that may pay on the target: 8 bits, which need samples, for all layers where no time is asked for; 16
        bits on GPUs."""
        options, target = self.compilation.options, self.compilation.target
        if options.quantize is not None or options.samples is None or "int8" not in target.types:
            return []
        halves = ["fp16"] if target.device == "gpu" and "fp16" in target.types else []
        return ["int8" if self.figures.times else "int8!", *halves]

    def finer(self, trial: Trial) -> Family | None:
        """Types per layer at the speed that is asked, where all in 8 bits are faster than that."""
        is_free = self.compilation.options.quantize is None and trial.levers == INT8
        is_timed = self.goal.is_timed and self.figures.rates is None
        if not (is_free and is_timed and trial.speedup and self.compilation.target.timed_here):
            return None
        return at_speed(AIM * trial.speedup * math.exp(self.goal.excess(trial)))

    def safer(self, trial: Trial) -> Family | None:
        """8 bits without the layers that lose most, where they are free to choose."""
        return None if self.compilation.options.quantize is not None else in_part(self.goal, trial)

    def together(self, trials: Sequence[Trial]) -> tuple[Family, float] | None:
        """8 bits in part and a ratio that should lose least of all, where types are free and time is all that is to be
        reached."""
        is_free, goal = self.compilation.options.quantize is None, self.goal
        is_of_time = goal.is_timed and goal.size is None and goal.footprint is None
        return next_together(goal, trials) if is_free and is_of_time else None

    def attempt(self, family: Family, ratio: float) -> Trial:
        """Make and measure a model; where the same slots went before, its figures are taken. EndedError where it is
        not known and no more are made."""
        number, options = len(self.made), self.pulled(family, ratio)
        known = self.remembered(options)
        trial, chosen = known or self.new(family, ratio, options)
        trial = replace(trial, ratio=ratio, levers=dict(family))
        self.chosen[_key(family, ratio)] = chosen
        if not self.paying and family == INT8:
            self.paying = chosen
        self.made.append(trial)
        earlier = " (of an earlier search)" if known is not None else ""
        self.compilation.say(f"trial {number + 1}: {trial.words()}{earlier}", trial=trial.to_json())
        return trial

    def remembered(self, options: CompileOptions) -> tuple[Trial, dict[str, Any]] | None:
        """What an earlier search found with these options, timed as long as this goal wants it."""
        found = self.known.find(options)
        if found is None:
            return None
        trial, chosen = found
        measured = (
            (trial.speedup is not None or not self.figures.times)
            and (trial.serving is not None) == (self.goal.throughput is not None)
            and (trial.quality_db is not None or not self.figures.judges)
            and (trial.memory is not None or self.goal.footprint is None)
            and (trial.is_fine or not self.figures.is_near(trial))
        )
        return (trial, chosen) if measured else None

    def new(self, family: Family, ratio: float, options: CompileOptions) -> tuple[Trial, dict[str, Any]]:
        """A model that is made and measured now, and what its passes chose by measuring."""
        if self.has_ended:
            raise EndedError("no trial had ended when the search was: nothing can be written")
        number = len(self.made)
        self.compilation.emit({"stage": self.doing(family, ratio), "share": min(1.0, number / MOST)})
        folder = self.compilation.scratch.trial(number)
        folder.mkdir(exist_ok=True)
        work = walk(Work(self.compilation.again(options), folder), MAKING)
        choice = work.decision.choice
        same = (t for t in self.made if t.levers == family and abs(t.removed - choice.removed) < 1e-9)
        known = next(same, None)
        if known is None:
            sizes = size_of(folder), self.compilation.dense.bytes
            trial = Trial(ratio, choice.removed, *sizes, levers=dict(family))
            dense, left = (work.decision.costs[side] for side in ("before", "after"))
            trial = replace(trial, macs=left["macs"] / (dense["macs"] or 1))
            trial = replace(trial, kv=left.get("kv"), dense_kv=dense.get("kv"))
            trial = replace(trial, sha256=file_sha256(work.compiled), levels=levels_of(work))
            known = self.figures.measured(trial, work)
        held = self.figures.held_back(work, known.dense_bytes)
        if ratio and not held:  # where nothing was to go, all that is left stays whole
            held = held_back(work.decision)
        trial = replace(known, exhausted=not choice.reached, held=held)
        for file in folder.iterdir():
            file.unlink()
        chosen = work.compilation.measured_options
        self.known.keep(options, trial, chosen)
        return trial, chosen

    def is_missed_by(self, trial: Trial, report: Mapping[str, Any]) -> bool:
        """Whether the compile of a trial missed the goal after all; from there on the trial is what it measured."""
        if report["goal"]["met"] is not False or not self.goal.is_timed or self.has_ended:
            return False
        trial = replace(found_in(report, trial, throughput=self.goal.throughput is not None), is_fine=True)
        self.known.keep(self.pulled(trial.levers, trial.ratio), trial, self.chose(trial))
        return True

    def doing(self, family: Family, ratio: float) -> str:
        """`trial 3 (int8, ratio 0.2), best so far int8: 1.72x, 28.4 dB`."""
        what = ", ".join([*words_of(family), *([f"ratio {ratio:.3f}"] if ratio or not family else [])])
        met = [t for t in self.made if self.goal.excess(t) <= 0 and not self.goal.loses_too_much(t)]
        best = f", best so far {max(met, key=lambda t: t.merit).words()}" if met else ""
        return f"trial {len(self.made) + 1} ({what}){best}"

    def pulled(self, family: Family, ratio: float) -> CompileOptions:
        """The options of a trial. Layers that go may be among those that timing named."""
        named: dict[str, Any] = {}
        if self.paying and family.get("quantize") == "int8" and "prune" not in family:
            how = {**self.paying.get("quantize_options", {}), **family.get("quantize_options", {})}
            named = {"quantize": self.paying["quantize"], "quantize_options": how}
        return self.compilation.options.pulled(ratio, {**family, **named})

    def resolved(self, trial: Trial) -> CompileOptions:
        """The options of the compile that a trial stands for, with what it chose by measuring."""
        return self.pulled(trial.levers, trial.ratio).settled(self.chose(trial))

    def chose(self, trial: Trial) -> dict[str, Any]:
        """What the passes of a trial chose by measuring."""
        return self.chosen.get(_key(trial.levers, trial.ratio), {})


def _key(family: Family, ratio: float) -> str:
    return json.dumps([ratio, dict(family)], sort_keys=True)


def _has_tokens(analysis: Analysis) -> bool:
    try:
        return bool(find_site(analysis))
    except CannotReduceError:
        return False


def _require_foretold(goal: Goal, options: CompileOptions) -> None:
    """UnavailableError for what neither a table nor rules tell of a target that does not run here."""
    cannot = f"target {options.target} cannot be measured here"
    runs_here = backend_named(target_named(options.target).backend).runs_here
    if goal.footprint is not None and (goal.is_timed or not runs_here):
        raise UnavailableError(f"{cannot}: give --size or --ratio instead of {goal.words()}")
    if goal.milliseconds is not None and options.device_table is None:
        raise UnavailableError(
            f"{cannot}: {goal.words()} needs a table of such a device (sparsecc devices table) with --device-table; "
            "--speedup is foretold without one"
        )


def levels_of(work: Work) -> tuple[tuple[float, float], ...]:
    """What a pass foresaw of 8 bits without other layers."""
    facts = [record.facts or {} for record in work.compilation.records]
    found = [levels for row in facts for levels in [row.get("mixed_precision", {}).get("levels")] if levels]
    return tuple((loss, share) for loss, share in found[-1]) if found else ()


def held_back(decision: Decision) -> str:
    """Why no more goes: the share of the work left in layers that stay whole, and the main reason."""
    left = sum(layer["macs_after"] for layer in decision.layers) or 1
    whole = sum(y["macs_after"] for y in decision.layers if y["macs_after"] == y["macs_before"])
    pinned = [group for group in decision.groups if group.pinned is not None and group.params]
    why = f"most pinned weights are at {max(pinned, key=lambda g: g.params).pinned}" if pinned else ""
    share = f"{whole / left:.0%} of the multiply-accumulates left are in layers that stay whole"
    return ", ".join(text for text in (share if whole / left > 0.005 else "", why) if text)
