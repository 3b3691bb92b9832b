"""The same model made otherwise and judged as the compile's own result is: other samples held out, other options.

Nothing is built or timed: a sibling is the graph that a backend would build from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from sparsecc.allocators.output_error import WORK, macs_of_sample
from sparsecc.compilation import Compilation
from sparsecc.data.samples import Samples
from sparsecc.decide.channels import require_methods
from sparsecc.decide.passes import require_passes
from sparsecc.errors import SparseccError
from sparsecc.loss.judge import lowest_agreement, worst_quality
from sparsecc.loss.quality import told
from sparsecc.options import CompileOptions
from sparsecc.report.verdict import Verdict, verdict
from sparsecc.tasks.measure import reads_text, text_facts
from sparsecc.verify.evaluate import metric_of, score
from sparsecc.verify.probes import HELD_OUT

if TYPE_CHECKING:
    from sparsecc.tasks.stages import Work

Make = Callable[[Compilation], "Work"]
"""Walks the stages that make a graph."""

FITS = 60
"""Runs of the dense model on all samples in the time that a fold takes, curves and rehearsals with it."""
TYPES, TRIES = 6, 20
"""The same of a next step: of types alone, and of a lower ratio, whose curves are known."""
STEPS = 3
"""Next steps that are tried at most."""
AFTERWARDS = WORK / 4
"""Multiply-accumulates that next steps take in all: about a minute on one core."""


def cross_fit(work: Work, make: Make) -> None:
    """Judge by all samples where they are few: each by a sibling that nothing of it was fitted to.

    The compile's own result, and siblings that hold out others, are compared with the dense model on what each holds
    out, and told together. What is told is the quality of such a fit.
    """
    compilation = work.compilation
    folds = [] if compilation.calibration is None else compilation.calibration.folds()
    number = sum(fold.held_out.number for fold in folds) + compilation.held_out.number
    if not folds or not _is_fitted(work) or not _affordable(work, number, FITS * len(folds)):
        return
    pairs = []
    if compilation.held_out.batches:
        pairs.append(work.probes.outputs(work.backend, work.compiled, compilation.held_out))
    for at, fold in enumerate(folds):
        compilation.progress(f"fit {at + 1} of {len(folds)} with other samples held out", at / len(folds))
        sibling = compilation.again(compilation.options)
        sibling.calibration = fold
        pairs.append(_outputs(make(sibling), fold.held_out))
    wanted, found = ([one for pair in pairs for one in pair[side]] for side in (0, 1))
    fits = [len(pair[0]) for pair in pairs]
    close = told(wanted, found, compilation.judged_parts, compilation.judged_answers, fits)
    work.measured["fidelity"] = {**close, "data": HELD_OUT, "samples": number, "fits": len(pairs)}


def try_next_steps(work: Work, make: Make) -> None:
    """Where the result is not usable: what other options give on the same held-out samples, the best first.

    {"flags", "judgement", "lost", "quality_db", "agreement", "nats"} each, as "next_steps" among what was measured.
    """
    compilation, found = work.compilation, list[dict[str, Any]]()
    held_out = compilation.held_out
    is_useless = (
        _verdict_of(work, work.measured["fidelity"], work.accuracy, work.measured.get("text")).judgement
        == "useless"
    )
    wanted = is_useless and compilation.options.next_steps and held_out.batches
    number = compilation.samples.number + held_out.number if wanted else 0
    if not number or compilation.dense.by_parts:
        return
    left = AFTERWARDS
    cache = work.decision.costs["before"].get("kv")
    steps = islice(_steps(compilation.options, work.decision.choice.advised, cache), STEPS)
    for at, (flags, options) in enumerate(steps):
        left -= _work(work, number, TRIES if options.ratio else TYPES)
        if left < 0:
            break
        compilation.progress(f"not usable: trying {flags}", at / STEPS)
        try:
            require_methods(options)
            require_passes(options)
            found.append({"flags": flags, **_tried(work, make(compilation.again(options)), held_out)})
        except SparseccError:  # not with this target or model: no step then
            continue
        if found[-1]["judgement"] == "usable" and options.ratio:
            break
    if found:
        ranked = sorted(found, key=lambda step: (_ORDER.index(step["judgement"]), -step["quality_db"]))
        work.measured["next_steps"] = ranked


_ORDER = ("usable", "doubtful", "useless", "not judged")


def _steps(
    options: CompileOptions, advised: float | None, cache: float | None = None
) -> Iterator[tuple[str, CompileOptions]]:
    """What is most likely to help, as flags and as options: types alone, then lower and lower ratios, each with a
    larger cache (bytes a token, `cache` those of the dense model) where its size is among what was asked."""
    ratio, type_ = options.ratio or 0.0, options.quantize
    if ratio and not options.mixes_types:
        types = type_ or "int8"
        alone = options.pulled(0.0, {"quantize": types, "tokens": None, "kv_bytes": None})
        yield f"--quantize {types} instead of pruning", alone
    if ratio:
        lower = advised if advised and advised < ratio else ratio / 2
        for share, way in ((lower, 1 / 2), (lower / 2, 3 / 4)):
            flags, levers = f"--ratio {share:.3g}", dict[str, Any]()
            if options.kv_bytes and cache and options.kv_bytes < cache:
                levers["kv_bytes"] = round(options.kv_bytes + way * (cache - options.kv_bytes))
                flags += f" --kv-bytes {levers['kv_bytes']}"
            yield flags, options.pulled(share, levers)
    elif type_ is not None:
        yield "--quantize fp16", replace(options, quantize="fp16", quantize_options={})


def _tried(work: Work, made: Work, held_out: Samples) -> dict[str, Any]:
    """How a sibling is judged, and what it keeps."""
    compilation, wanted, found = made.compilation, *_outputs(made, held_out)
    close = told(wanted, found, compilation.judged_parts, compilation.judged_answers, chosen=True)
    close |= {"data": HELD_OUT, "samples": held_out.number}
    text = None
    if reads_text(compilation):
        before, after = iter(wanted), iter(found)
        text = text_facts(compilation, held_out, lambda feeds: next(before), lambda feeds: next(after))
    said = _verdict_of(made, close, _metric_of(work, made), text)
    agreed = {"agreement": lowest_agreement(close)} if "agreement" in close else {}
    quality = worst_quality(close)
    nats = {"nats": text["after"]} if text else {}
    return {"judgement": said.judgement, "lost": said.lost, "quality_db": quality or 0.0, **agreed, **nats}


def _metric_of(work: Work, made: Work) -> dict[str, Any] | None:
    """The user's metric of a sibling beside that of the dense model; None without one."""
    asked, compilation = made.compilation.options.evaluate, made.compilation
    if asked is None:
        return None
    function = metric_of(compilation)
    runner = compilation.opened(made.analysis.model)
    after = score(function, lambda feeds: runner.run(compilation.narrowed.feeds(feeds)))
    return {"metric": function.__name__, "before": work.score, "after": after}


def _verdict_of(
    work: Work, fidelity: dict[str, Any], accuracy: dict[str, Any] | None, text: dict[str, Any] | None
) -> Verdict:
    removed = {"share": work.decision.choice.removed}
    return verdict({"removed": removed, "fidelity": fidelity, "accuracy": accuracy, "text": text})


def _outputs(made: Work, samples: Samples) -> tuple[list[Any], list[Any]]:
    """What the dense model and a sibling give for samples, batch by batch."""
    compilation = made.compilation
    runner = compilation.opened(made.analysis.model)
    return made.probes.compared(runner, samples)


def _is_fitted(work: Work) -> bool:
    """Whether samples decided anything of the result."""
    options = work.compilation.options
    return bool(work.decision.plan.removes_anything or options.quantize or options.sparsity)


def _affordable(work: Work, samples: int, runs: int) -> bool:
    """Whether so many runs of the dense model on so many samples take some minutes at most."""
    return _work(work, samples, runs) <= WORK


def _work(work: Work, samples: int, runs: int) -> float:
    """Multiply-accumulates of so many runs of the dense model on so many samples."""
    macs, compilation = float(work.decision.costs["before"]["macs"]), work.compilation
    return macs_of_sample(macs, compilation.sizes[0], compilation.samples) * samples * runs
