"""Which layers go: those whose absence changes the outputs least for the work they save.

Greedy: after every layer left out, what each of the others would cost now is measured again, as the layers
that are left depend on each other (FinerCut, Zhang et al., 2024). A layer's cost is the distance of the model's
outputs to those of the dense model, on the calibration samples or on random inputs. No labels are needed.
`--layer-criterion` names the distance, or `span`: then consecutive layers go, see `sparsecc/decide/layer_spans.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.compilation import Compilation
from sparsecc.cost import summary
from sparsecc.cost.model import CostModel, cache_model, macs_model, params_model
from sparsecc.data.samples import Feeds
from sparsecc.decide.cache_budget import share_to_go
from sparsecc.decide.channels import Choice, Dead, require_caches
from sparsecc.decide.layer_spans import spans_of, straightest, walked
from sparsecc.decide.limits import Patterns, patterns_of, require_same_graph
from sparsecc.decide.output_distances import DISTANCES, Distance, distances
from sparsecc.errors import InputError, InternalError
from sparsecc.escaping import quoted
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.caches import caches
from sparsecc.graph.groups import by_handle, find_groups, known_names
from sparsecc.graph.patterns import require_matches
from sparsecc.graph.residual_blocks import ResidualBlock, find_blocks
from sparsecc.loading.skip_norms import FUSED
from sparsecc.loss.measure import Reference
from sparsecc.loss.parts import Part
from sparsecc.options import CompileOptions
from sparsecc.options.table import PRUNED
from sparsecc.passes.drop_blocks import DropBlocks
from sparsecc.plan import Plan
from sparsecc.reference.gated_layers import Switchboard, dropped_branches, plugged, silenced
from sparsecc.remarks import Remark
from sparsecc.runtime.numerics import tolerance_of, worst_error
from sparsecc.runtime.rounding import AMPLIFIED, moved_by_rounding
from sparsecc.runtime.runner import Runs

SHARE = 0.5
"""The share of the budget that layers may take where channels, heads or experts may go as well."""

EARLINESS = 0.1
"""How much more the first layer's absence counts than the last one's: what follows builds on early layers."""

BATCHES = 8
"""Batches of samples on which layers are tried."""

AGAIN = 0.5
"""The share of the layers, best first by their last measurement, that is measured again in each round."""


@dataclass(frozen=True)
class Depth:
    """What was left out, and what the model cost before that.

    `dropped` names branches, `removed` is the share of the metric that went, `change` the relative change of
    the outputs; `before` holds the dense macs and params; `layers` are the report's rows of what went.
    `keep`, `only` and `patterns` are the user's, spelt so that they hold after the edit. `tokens` is what the plan
    says of tokens left out; `macs` are the dense ones by node where these changed, `added` how many nodes came.
    `dead` are the slots that go in any case, `absorbed` the tensors that changed for that.
    """

    blocks: Sequence[ResidualBlock] = ()
    dropped: frozenset[str] = frozenset()
    nodes: Sequence[str] = ()
    removed: float = 0.0
    change: float = 0.0
    before: Mapping[str, int] = field(default_factory=dict)
    layers: Sequence[dict[str, Any]] = ()
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    patterns: Patterns = field(default_factory=dict)
    tokens: Mapping[str, Any] = field(default_factory=dict)
    macs: Mapping[str, int] = field(default_factory=dict)
    added: int = 0
    dead: Dead = field(default_factory=Dead)
    absorbed: tuple[str, ...] = ()

    def ratio_left(self, ratio: float) -> float:
        """The ratio to take from what is left, so that `ratio` of the dense model goes."""
        return 1 - (1 - ratio) / (1 - self.removed) if self.removed < ratio else 0.0

    def joined(self, choice: Choice, ratio: float | None) -> Choice:
        """A choice among what is left, as a choice among what the dense model had."""
        before = choice.before / (1 - self.removed) if self.removed < 1 else 1.0  # of which nothing is left
        reached = choice.reached or choice.after <= (1 - (ratio or 0.0)) * before
        return replace(choice, asked=ratio or 0.0, before=before, reached=reached)

    def dense_rows(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The report's rows of what is left, with what it cost in the dense model, and of what went."""
        return [
            *({**y, "macs_before": self.macs.get(y["name"], y["macs_before"])} for y in rows),
            *self.layers,
        ]

    def rows(self, first_id: int) -> list[dict[str, Any]]:
        """The blocks as groups of the plan."""
        numbered = [replace(b, id=first_id + i) for i, b in enumerate(self.blocks)]
        return [row(b, self.dropped.issuperset(_branches([b]))) for b in numbered]


def row(block: ResidualBlock, dropped: bool) -> dict[str, Any]:
    """A block as a group of one slot."""
    return {
        "id": block.id,
        "kind": block.kind,
        "size": 1,
        "kept": 0 if dropped else 1,
        "members": [[name, 0] for name in block.members],
        "mixes": False,
        "pinned": block.pinned,
        "branches": [branch.title for branch in block.branches],
    }


def shorten(compilation: Compilation, analysis: Analysis) -> tuple[Analysis, Depth]:
    """Leave layers out where `--prune layers` asks for it; analyse what is left anew.

    InternalError where the shorter model is not the dense one with these layers adding zeros.
    """
    options, gone = (
        compilation.options,
        set(dropped_branches(compilation.base)) if compilation.base else set(),
    )
    require_same_graph(compilation, analysis.model)
    named = {"keep": options.keep, "only": options.only, **patterns_of(options)}
    if "layers" not in options.prune and not gone and not any(named.values()):
        return analysis, Depth()
    groups = find_groups(analysis)
    blocks = find_blocks(analysis, len(groups), keep=options.keep, only=options.only)
    require_matches(named, known_names(analysis, groups), len(groups) + len(blocks))
    asked = Depth(
        keep=by_handle(options.keep, groups),
        only=by_handle(options.only, groups),
        patterns=patterns_of(options, groups),
    )
    if "layers" not in options.prune and not gone:
        return analysis, asked
    before = summary.costs(analysis, {})["before"]
    planned = _planned(blocks, gone)
    budgets = _budgets(compilation, analysis) if "layers" in options.prune else {}
    chosen, change = _chosen(compilation, analysis, blocks, planned, budgets) if budgets else (planned, 0.0)
    facts = {"criterion": options.layer_criterion, "blocks": len(chosen), "change": change}
    compilation.note(DropBlocks.name, facts)
    if not chosen:
        stay = [Remark(block.exit, block.pinned) for block in blocks if budgets and block.pinned is not None]
        compilation.remarks.extend((DropBlocks.name, remark) for remark in stay)
        return analysis, replace(asked, blocks=blocks, before=before)
    layers = summary.layers(analysis, {})
    plan = _drop(compilation, analysis.model, chosen)
    left = compilation.analysed(analysis.model)
    metric = options.metric if options.metric in ("params", "kv") else "macs"
    after = summary.costs(left, {})["before"]
    gone = set(plan.dropped_nodes)
    rows = [{**y, "after": 0, "macs_after": 0} for y in layers if y["name"] in gone]
    removed = 1 - after.get(metric, 0) / (before[metric] or 1)  # the last cache may be gone
    return left, replace(
        asked,
        blocks=blocks,
        dropped=frozenset(_branches(chosen)),
        nodes=plan.dropped_nodes,
        removed=removed,
        change=change,
        before=before,
        layers=rows,
    )


def _drop(compilation: Compilation, model: ir.Model, chosen: Sequence[ResidualBlock]) -> Plan:
    """Run the pass, and hold its result against the dense model in which these branches add zeros."""
    branches = _branches(chosen)
    reference = compilation.opened(silenced(model, branches))
    plan = Plan({})
    DropBlocks(branches).run(model, plan, compilation)
    shorter = compilation.opened(model)
    compilation.rest_on(reference)
    require_same(compilation, shorter, f"the model without {len(chosen)} layers")
    return plan


def require_same(compilation: Compilation, found: Runs, what: str) -> float:
    """The largest relative error of a model against what stands for the dense one.

    InternalError where it is more than rounding explains.
    """
    worst = 0.0
    for feeds, wanted in zip(compilation.feeds, compilation.expected, strict=True):
        error = worst_error(wanted, found.run(feeds))
        if error > tolerance_of(wanted):
            floor = moved_by_rounding(compilation.reference, feeds, wanted)
            if error > AMPLIFIED * floor:
                raise InternalError(f"{what} differs by {error:.2g}")
        worst = max(worst, error)
    return worst


def _branches(blocks: Iterable[ResidualBlock]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(branch.title for block in blocks for branch in block.branches))


def _planned(blocks: Sequence[ResidualBlock], gone: Iterable[str]) -> list[ResidualBlock]:
    """The blocks that a plan leaves out, by their branches. InputError where some are no blocks of the model."""
    left, found = set(gone), []
    for block in sorted(blocks, key=lambda b: -len(b.nodes)):
        branches = set(_branches([block]))
        if branches <= left:
            left -= branches
            found.append(block)
    if left:
        raise InputError(f"--plan leaves out {quoted(min(left))}, which is no layer of this model")
    return found


def _chosen(
    compilation: Compilation,
    analysis: Analysis,
    blocks: Sequence[ResidualBlock],
    planned: Sequence[ResidualBlock],
    budgets: Mapping[str, float],
) -> tuple[list[ResidualBlock], float]:
    """The blocks to leave out, those of a plan first, and by how much the outputs change without them. `budgets` are
    the shares of each metric that go, one budget after the other."""
    options, scratch = compilation.options, compilation.scratch
    spans_layers = options.layer_criterion == "span"
    if planned and spans_layers:
        raise InputError("--layer-criterion span chooses layers anew, --plan has some: leave one of them out")
    if len(budgets) > 1 and spans_layers:
        raise InputError("--layer-criterion span takes one budget: leave --kv-bytes or --ratio out")
    free = [b for b in blocks if b.is_free or b in planned]
    if not free:
        return [], 0.0
    shared = any(kind != "layers" for kind in options.prune)
    board = plugged(analysis.model, _branches(free), scratch.gated, options.threads)
    samples, chosen, change = samples_for(compilation), list(planned), 0.0
    distance = DISTANCES.get(options.layer_criterion)
    greedy = Greedy(free, board, samples, overshoot=not shared, distance=distance, parts=compilation.parts)
    for metric, share in budgets.items():
        model, greedy.weight = _cost_of_blocks(analysis, metric)
        greedy.budget = budget = share * model.total({}) * (SHARE if shared else 1.0)
        if not spans_layers:
            chosen, change = greedy.choose(chosen)
    if not spans_layers:
        return chosen, change
    spans = spans_of(free, budget, greedy.cost, overshoot=not shared)
    settings = {"threads": options.threads, "memory": options.working_memory}
    walk = walked(analysis, spans, samples, scratch.spans, **settings)
    chosen = straightest(analysis, spans, walk)
    return chosen, greedy.change(_branches(chosen))


def _budgets(compilation: Compilation, analysis: Analysis) -> dict[str, float]:
    """The share of each metric that is to go, that of the cache first."""
    options = compilation.options
    asked = {"kv": share_to_go(compilation, analysis)}
    if options.ratio:
        asked[options.metric] = max(options.ratio, asked.get(options.metric, 0.0))
    return {metric: share for metric, share in asked.items() if share}


def _cost_of_blocks(analysis: Analysis, metric: str) -> tuple[CostModel, Callable[[ResidualBlock], float]]:
    """What `--ratio` counts of a whole model and of a block: parameters, bytes of cache, else multiply-accumulates."""
    if metric == "params":
        return params_model(analysis), lambda block: block.params
    if metric == "kv":
        whole = require_caches(cache_model(analysis))
        share = whole.total({}) / max(len(whole.terms), 1)
        held = Counter(cache.node for cache in caches(analysis.model))
        return whole, lambda block: share * sum(held[node] for node in block.nodes)
    return macs_model(analysis), lambda block: block.macs


def has_layers(options: CompileOptions, analysis: Analysis) -> bool:
    """Whether a search may leave layers out: where one is not pinned, or sums are still fused with norms."""
    found = find_blocks(analysis, len(find_groups(analysis)), keep=options.keep, only=options.only)
    return any(b.is_free for b in found) or any(node.op_type in FUSED for node in analysis.model.graph)


def cache_levers(compilation: Compilation, analysis: Analysis) -> list[Mapping[str, Any]]:
    """What a search may take a cache down by: heads, whole layers where samples judge them, and both, as options;
    what `--prune` says where that says it. InputError where `--levers` leaves none."""
    options = compilation.options
    if options.prune != PRUNED or not share_to_go(compilation, analysis):
        return [{"prune": tuple(options.prune)}]
    goes = "layers" in options.levers and options.samples is not None and has_layers(options, analysis)
    kinds: list[tuple[str, ...]] = [PRUNED] if "channels" in options.levers else []
    kinds += [("layers",)] if goes else []
    kinds += [(*PRUNED, "layers")] if len(kinds) > 1 else []
    if not kinds:
        raise InputError("--kv-bytes takes heads or layers: leave --levers out, or name channels there")
    return [{"prune": kind} for kind in kinds]


def samples_for(compilation: Compilation) -> list[Feeds]:
    """The first batches of the calibration samples, or the random inputs that everything is compared on."""
    return list(compilation.feeds) if compilation.calibration is None else compilation.batches(BATCHES)


@dataclass
class Greedy:
    """Leaves out one block after another until the budget is used up; `weight` is what a block costs of it.

    With `overshoot` the last block may take more than is left of the budget; without it none may. `distance` of the
    outputs is what layers are judged by, their loss part by part where it is None.
    """

    free: Sequence[ResidualBlock]
    board: Switchboard
    samples: Sequence[Feeds]
    budget: float = 0.0
    weight: Callable[[ResidualBlock], float] = lambda block: block.macs
    overshoot: bool = True
    distance: Distance | None = None
    earliness: float = EARLINESS
    parts: Sequence[Part] = ()

    def __post_init__(self) -> None:
        self.dense = [self.board.run(feeds, frozenset()) for feeds in self.samples]
        self.reference = Reference(self.dense, self.parts)
        self.nodes = {b.id: set(b.nodes) for b in self.free}

    def choose(self, planned: Sequence[ResidualBlock] = ()) -> tuple[list[ResidualBlock], float]:
        """The blocks in the order in which they went, `planned` ones first, and the relative change of the outputs
        without them."""
        taken = list(planned)
        change, used = self.change(_branches(taken)) if taken else 0.0, self.cost(taken)
        last = {block.id: 0.0 for block in self.free}
        while used < self.budget:
            candidates = self._candidates(taken, self.budget - used)
            if not candidates:
                break
            candidates.sort(key=lambda b: last[b.id])
            some = candidates if not taken else candidates[: max(2, round(AGAIN * len(candidates)))]
            found = {b.id: self.change(_branches([*taken, b])) for b in some}
            last |= {b.id: self._price(b, taken, found[b.id]) for b in some}
            best = min(some, key=lambda b: (last[b.id], -b.position, b.id))
            taken.append(best)
            change, used = found[best.id], self.cost(taken)
        return taken, change

    def _candidates(self, taken: Sequence[ResidualBlock], left: float) -> list[ResidualBlock]:
        """Blocks of which something is still there that costs, and which fit."""
        gone = {node for block in taken for node in self.nodes[block.id]}
        here = [b for b in self.free if self.nodes[b.id] - gone and self.weight(b) > 0]
        if self.overshoot:
            return here
        return [b for b in here if self.cost([*taken, b]) - self.cost(taken) <= left]

    def cost(self, blocks: Sequence[ResidualBlock]) -> float:
        """What these blocks cost together; a block inside another one counts once."""
        outermost = [
            b for b in blocks
            if not any(o is not b and self.nodes[b.id] < self.nodes[o.id] for o in blocks)
        ]  # fmt: skip
        return float(sum(self.weight(b) for b in outermost))

    def _price(self, block: ResidualBlock, taken: Sequence[ResidualBlock], change: float) -> float:
        """The change per unit of work saved so far, a little more for early layers."""
        earliness = 1 + self.earliness * (1 - block.position)
        return change * earliness / max(self.cost([*taken, block]), 1.0)

    def change(self, branches: Iterable[str]) -> float:
        """The loss of the outputs without these branches (`sparsecc/loss/measure.py`), or their mean distance."""
        off = frozenset(branches)
        found = [self.board.run(feeds, off) for feeds in self.samples]
        if self.distance is None:
            return self.reference.loss(found)
        apart = [distances(a, b, self.distance).mean() for a, b in zip(self.dense, found, strict=True)]
        return float(np.mean(apart))
