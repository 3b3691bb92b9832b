"""Scores of the experts of mixtures, from what their routers did on the samples.

Groups that are not experts, and mixtures whose router is not found, are scored as `auto` does with samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparsecc.axes.algebra import Atom, atoms_of
from sparsecc.axes.owners import owners_of, slot_sums
from sparsecc.calibrate.routers import Micro, Router, routers_of, supers
from sparsecc.criteria.evidence import Evidence
from sparsecc.criteria.obs import obs
from sparsecc.graph.groups import Group

OF_LARGEST = 0.9
"""How much of CAMERA's score is the largest square, the rest being their sum."""


def expert_frequency(group: Group, evidence: Evidence) -> np.ndarray:
    """The share of tokens that choose an expert."""
    return _by_router(group, evidence, lambda router: router.times)


def expert_gate(group: Group, evidence: Evidence) -> np.ndarray:
    """The gate weight that an expert gets, summed over tokens: times chosen times mean weight (DERN, 2025)."""
    return _by_router(group, evidence, lambda router: router.gates)


def reap(group: Group, evidence: Evidence) -> np.ndarray:
    """Mean over the tokens routed to an expert of its gate weight times the L2 norm of its output (REAP, Lasby et
    al., 2025). An expert that no token is routed to scores zero.
    """
    return _by_router(
        group, evidence, lambda router: router.norms * router.tokens / np.maximum(router.times, 1)
    )


def tcess(group: Group, evidence: Evidence) -> np.ndarray:
    """The router's score of an expert where it is chosen, averaged over all tokens (PreMoe, 2025).

    As published it takes scores before they are probabilities: an expert often chosen with negative scores is
    worth less than one that never is. Where one is below zero, all are moved up so that none is.
    """
    found = _by_router(group, evidence, lambda router: router.scores)
    return np.asarray(found - min(float(found.min()), 0.0))


def camera(group: Group, evidence: Evidence) -> np.ndarray:
    """What the slots between the experts' layers add to the output, ‖w_i‖² · (0.1 Σ z_i² + 0.9 max z_i²), with z_i
    the activation times the gate weight (CAMERA, 2025). A slot is one in all experts: theirs are added. An expert
    is the sum of its slots.
    """
    total = np.zeros(group.size)
    for router in evidence.stats.routers if evidence.stats is not None else ():
        for inner, sums in zip(router.mixture.inner, router.micro, strict=True):
            scores = micro_scores(sums, inner.energy())
            if group.atom in atoms_of(inner.axis):
                total += slot_sums(inner.axis, group.atom, scores.sum(axis=0))
            elif group.atom in atoms_of(router.mixture.experts):
                total += slot_sums(router.mixture.experts, group.atom, scores.sum(axis=1))
    return total if total.any() else obs(group, evidence)


def micro_scores(found: Micro, energy: np.ndarray, of_largest: float = OF_LARGEST) -> np.ndarray:
    """CAMERA's score of every slot of every expert: (experts, slots)."""
    return np.asarray(energy * ((1 - of_largest) * found.sums + of_largest * found.largest))


def spared(group: Group, evidence: Evidence, scores: np.ndarray) -> tuple[np.ndarray, int]:
    """Scores in which Super Experts come before all others of the group, and how many of them there are."""
    found = np.zeros(group.size, dtype=bool)
    routers = evidence.stats.routers if evidence.stats is not None else ()
    for router, mask in zip(routers, supers(routers), strict=True):
        found |= _slots(router, group.atom, mask)
    return np.where(found, np.nextafter(scores.max(), np.inf), scores), int(found.sum())


def _slots(router: Router, atom: Atom, mask: np.ndarray) -> np.ndarray:
    """The slots of an atom that experts of a mask belong to."""
    found = np.zeros(atom.size, dtype=bool)
    owners = owners_of(router.mixture.experts, atom)[mask]
    found[owners[owners >= 0]] = True
    return found


def _by_router(group: Group, evidence: Evidence, value: Callable[[Router], np.ndarray]) -> np.ndarray:
    """A value per expert over the tokens seen, added over the routers that choose among them."""
    routers = routers_of(evidence.stats.routers, group.atom) if evidence.stats is not None else []
    if not routers:
        return obs(group, evidence)
    parts = [slot_sums(r.mixture.experts, group.atom, value(r) / max(r.tokens, 1)) for r in routers]
    return np.asarray(sum(parts))
