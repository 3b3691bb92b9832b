"""Scores from gradients, through torch: how much a loss would change without what a slot owns."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np

from sparsecc.axes.algebra import Atom
from sparsecc.criteria.evidence import Evidence
from sparsecc.data.samples import Samples
from sparsecc.errors import MissingPackageError, UnavailableError
from sparsecc.graph.analysis import Analysis
from sparsecc.graph.groups import Group

NAMES = ("taylor", "taylor2", "fisher", "snip", "grasp", "ntk", "lrp", "lrp_alpha", "lrp_epsilon", "nirvana")
"""Those of `sparsecc.torch.scores.gradients` that are offered for ONNX files."""

OF_TWO_SETS = ("dai", "dai_literal")
"""Those of `sparsecc.torch.scores.domains`: they compare samples of a domain with general ones."""

_SCORES = "sparsecc.torch.onnx_ops.gradients"
"""Named, not imported: nothing on the ONNX path loads torch unless such a criterion is asked for."""


class Gradients:
    """Scores of all groups of a model by name of the criterion, each taken when it is first asked for."""

    def __init__(
        self, analysis: Analysis, samples: Samples, seed: int, general: Samples | None = None
    ) -> None:
        self._analysis, self._samples, self._seed, self._general = analysis, samples, seed, general
        self._known: dict[str, dict[Atom, np.ndarray]] = {}

    def of(self, criterion: str) -> dict[Atom, np.ndarray]:
        """Atom -> scores. UnavailableError without torch."""
        if criterion not in self._known:
            try:
                scores_of = import_module(_SCORES).scores_of
            except UnavailableError as e:
                raise MissingPackageError(
                    f"criterion {criterion} needs gradients: run pip install 'sparsecc[torch]', or use obs"
                ) from e
            self._known[criterion] = scores_of(
                self._analysis, criterion, self._samples, seed=self._seed, general=self._general
            )
        return self._known[criterion]


def by_gradients(criterion: str) -> Callable[[Group, Evidence], np.ndarray]:
    """The criterion of that name."""

    def score(group: Group, evidence: Evidence) -> np.ndarray:
        assert evidence.gradients is not None
        return evidence.gradients(criterion)[group.atom]

    return score
