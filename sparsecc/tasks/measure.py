"""Measuring what was built: latency beside the dense model, footprints, kernels, quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecc.backends.base import NotTimedError
from sparsecc.compilation import Compilation
from sparsecc.data.language import IDS, Run
from sparsecc.data.samples import Samples
from sparsecc.errors import SystemFailureError, UnavailableError, WorkerError
from sparsecc.measure.footprint import footprint
from sparsecc.measure.throughput import best_serving
from sparsecc.options import SELF
from sparsecc.remarks import Remark
from sparsecc.shapes.dynamic_dims import takes_any_batch
from sparsecc.tasks.ablation import against_parts

if TYPE_CHECKING:
    from sparsecc.backends.base import Backend
    from sparsecc.measure.layer_pair import LayerPair
    from sparsecc.verify.probes import Probes


LOST = UnavailableError, SystemFailureError, WorkerError
"""What a device raises that answered when it was asked first: out of reach, its disk full, too slow."""


def measure(compilation: Compilation, backend: Backend, compiled: Path, probes: Probes) -> dict[str, Any]:
    """Latency interleaved with the dense model, kernel census of both, fidelity."""
    facts: dict[str, Any] = {"fidelity": probes.close_to_dense(backend, compiled)}
    dense, asked = compilation.dense, compilation.options
    if text := of_text(compilation, backend, compiled, probes):
        facts["text"] = text
    if dense.by_parts:
        _unmeasured(compilation, f"{dense.too_large()}: latency and kernels were not measured")
        return facts
    if backend.runs_here and asked.measure:
        facts["census"] = {"before": backend.census(dense.path), "after": backend.census(compiled)}
    elif backend.runs_here and asked.quantize:  # whether the types took effect is said in any case
        facts["census"] = {"after": backend.census(compiled)}
    return facts | _timed(compilation, backend, compiled) if asked.measure else facts


def of_text(compilation: Compilation, backend: Backend, compiled: Path, probes: Probes) -> dict[str, Any]:
    """What a language model loses on text that is held out; {} for other models, and without samples."""
    if not reads_text(compilation):
        return {}
    small, narrowed = probes.artefact(backend, compiled), compilation.narrowed
    dense, held_out = compilation.dense.runner.run, compilation.held_out
    return text_facts(compilation, held_out, dense, lambda feeds: small.run(narrowed.feeds(feeds)))


def reads_text(compilation: Compilation) -> bool:
    """Whether it is a language model that still tells the probability of each token, with text held out."""
    text, narrowed = compilation.text, compilation.narrowed
    if text is None or not compilation.held_out.batches:
        return False
    return text.logits not in {*narrowed.outputs, *narrowed.last}


def text_facts(compilation: Compilation, samples: Samples, dense: Run, small: Run) -> dict[str, Any]:
    """{"before", "after", "tokens", "words", "is_own"}: nats a token of text, of how many, among how many words, and
    whether the model wrote it. Both take its batches in turn."""
    text = compilation.text
    assert text is not None
    before, tokens = text.loss(samples.batches, dense)
    after, _ = text.loss(samples.batches, small)
    is_own = compilation.options.calib == SELF
    return {"before": before, "after": after, "tokens": tokens, "words": text.words, "is_own": is_own}


def _timed(compilation: Compilation, backend: Backend, compiled: Path) -> dict[str, Any]:
    """Latency beside the dense model, and what else a clock or a meter tells.

    A device that was lost since it was asked costs only the figures: {"unmeasured": why}.
    """
    asked, facts = compilation.options, dict[str, Any]()
    try:
        for what, feeds in (("latency", compilation.timed), ("prompt", compilation.prompt)):
            if feeds is not None:
                both = feeds, compilation.narrow(feeds) or feeds
                told = backend.compare(
                    compilation.dense.path, compiled, both, asked, compilation.scratch.dense_engine
                )
                if told is not None:
                    facts[what] = told.to_json()
        if "prompt" in facts and compilation.prompt is not None:
            facts["prompt"]["tokens"] = compilation.prompt[IDS].shape[1]
        if not backend.runs_here:
            return facts
        if asked.device == "local":
            facts |= _footprints(compilation, compiled) | _throughput(compilation, compiled)
            facts["layers"] = _layers(compilation, backend, compiled)
        return facts | against_parts(compilation, compiled)
    except NotTimedError as e:
        found = _unmeasured(compilation, str(e))
        return found if asked.device != "local" and isinstance(e.__cause__, LOST) else {}
    except LOST as e:
        if asked.device == "local":
            raise
        return facts | _unmeasured(compilation, f"not measured on {asked.device}: {e}")


def _unmeasured(compilation: Compilation, reason: str) -> dict[str, Any]:
    compilation.remarks.append(("measure", Remark(compilation.file.name, reason)))
    compilation.warnings.append(reason)
    return {"unmeasured": reason}


def _throughput(compilation: Compilation, compiled: Path) -> dict[str, Any]:
    """How both models serve, where a goal asks for that."""
    if compilation.goal is None or "throughput" not in compilation.goal["asked"]:
        return {}
    dense = compilation.timed
    small = compilation.narrow(dense)
    models = {
        "before": (compilation.dense.path, dense),
        "after": (compiled, dense if small is None else small),
    }
    any_batch, threads = takes_any_batch(compilation.dense.model), compilation.options.threads
    found = {s: best_serving(m, f, any_batch=any_batch, threads=threads) for s, (m, f) in models.items()}
    return {"throughput": {side: serving.to_json() for side, serving in found.items()}}


def _layers(compilation: Compilation, backend: Backend, compiled: Path) -> LayerPair | None:
    """The time of each layer in both models, at the inputs that latency is told for."""
    feeds = compilation.timed
    both = feeds, compilation.narrow(feeds) or feeds
    return backend.compare_layers(compilation.dense.path, compiled, both, compilation.options)


def _footprints(compilation: Compilation, compiled: Path) -> dict[str, Any]:
    """Load time, first inference and memory of the given model and of the compiled one, each in a process of its
    own on this machine."""
    dense = compilation.timed
    small = compilation.narrow(dense)
    models = {"before": (compilation.file, dense), "after": (compiled, dense if small is None else small)}
    threads = compilation.options.threads
    return {"footprint": {s: footprint(m, f, threads=threads).to_json() for s, (m, f) in models.items()}}
