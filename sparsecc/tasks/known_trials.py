"""Trials of earlier searches, by all that decides what a trial finds: for the next goal on the same model, data and
machine, and for a search that was ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from sparsecc.calibrate.statistics_cache import digest_of
from sparsecc.compilation import Compilation
from sparsecc.data.samples import Samples
from sparsecc.decide.goals import Trial
from sparsecc.errors import SystemFailureError
from sparsecc.options import CompileOptions, rows_of
from sparsecc.system.cache import Cache, cache_folder
from sparsecc.system.machine import device

KEPT = 64 << 20
"""Bytes of all trials; one takes about a kilobyte."""
CHOSEN = ("quantize", "quantize_options")
"""What passes choose by measuring: of what a cache holds no other option is taken."""


class KnownTrials:
    """What trials found, here and in the user's cache. One that cannot be written costs time later, not the search.

    `about` is what besides options, model and samples decides what is found: where the data comes from, what is
    measured, the score of the dense model.
    """

    def __init__(self, compilation: Compilation, *about: object) -> None:
        options, calibration = compilation.options, compilation.calibration
        samples = Samples((), real=False) if calibration is None else calibration.samples
        where = options.device, options.target, sorted(device().items())
        self._base = digest_of(
            compilation.dense.model, samples, "sparsecc.tasks.compile_to_goal", where, about
        )
        self._held: dict[str, str] = {}
        self._cache: Cache | None = None
        with suppress(SystemFailureError):
            self._cache = Cache(cache_folder() / "trials", KEPT)

    def find(self, options: CompileOptions) -> tuple[Trial, dict[str, Any]] | None:
        """The trial that these options made and what it chose by measuring; None where there was none."""
        key = self._key(options)
        stored = self._held.get(key) or (None if self._cache is None else self._cache.get(key))
        if stored is None:
            return None
        found = json.loads(stored)
        return trial_of(found["trial"]), {
            name: found["chosen"][name] for name in CHOSEN if name in found["chosen"]
        }

    def keep(self, options: CompileOptions, trial: Trial, chosen: Mapping[str, Any]) -> None:
        """Store a trial and what its passes chose by measuring."""
        key, found = self._key(options), json.dumps({"trial": trial.to_json(), "chosen": dict(chosen)})
        self._held[key] = found
        if self._cache is not None:
            with suppress(SystemFailureError):
                self._cache.put(key, found.encode())

    def _key(self, options: CompileOptions) -> str:
        """Limits forbid results and make none; files that options name are in the base."""
        rows = rows_of(CompileOptions)
        named = {name: value for name, value in options.to_recipe().items() if not rows[name].is_limit}
        return json.dumps(
            [self._base, {n: v for n, v in named.items() if not rows[n].names_code}], sort_keys=True
        )


def trial_of(found: Mapping[str, Any]) -> Trial:
    """A trial from plain data."""
    given = {one.name: found[one.name] for one in fields(Trial) if one.name in found}
    if "ci95" in given:
        given["ci95"] = tuple(given["ci95"])
    if "levels" in given:
        given["levels"] = tuple((float(loss), float(share)) for loss, share in given["levels"])
    return Trial(**given)
