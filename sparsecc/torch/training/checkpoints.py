"""The state of a training under way, kept in the user's cache so that a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsecc.errors import SystemFailureError
from sparsecc.system.cache import Cache

EVERY = 20.0
"""Seconds between two saves: training since the last is lost when the process is killed."""


class Checkpoints:
    """Saves under one key. Where the cache cannot be used the training goes on without; `failure` says why."""

    def __init__(self, key: str, device: torch.device) -> None:
        self.key, self.device, self.failure = key, device, ""
        self.saved = time.monotonic()
        self.cache: Cache | None = None
        try:
            self.cache = Cache()
        except SystemFailureError as e:
            self.failure = str(e)

    def load(self) -> dict[str, Any] | None:
        """The last state saved under the key; None where there is none, or where it holds more than tensors."""
        data = self.cache.get(self.key) if self.cache else None
        if data is None:
            return None
        try:
            found: dict[str, Any] = torch.load(io.BytesIO(data), map_location=self.device, weights_only=True)
        except pickle.UnpicklingError:
            return None
        return found

    def is_due(self) -> bool:
        """Whether the last save is EVERY seconds ago."""
        return self.cache is not None and time.monotonic() - self.saved >= EVERY

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace what is saved; a reader sees the old or the new state whole."""
        if self.cache is None:
            return
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        try:
            self.cache.put(self.key, buffer.getvalue())
        except SystemFailureError as e:
            self.cache, self.failure = None, str(e)
        self.saved = time.monotonic()

    def drop(self) -> None:
        """Forget the state of a training that is done."""
        if self.cache is not None:
            self.cache.drop(self.key)


def key_of(
    files: Iterable[Path], feeds: Iterable[Mapping[str, np.ndarray]], recipe: Mapping[str, Any]
) -> str:
    """One text for all that goes into a training: models, inputs and options."""
    digest = hashlib.sha256(repr(sorted(recipe.items())).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for feed in feeds:
        for name, array in sorted(feed.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return f"distillation {digest.hexdigest()} torch {torch.__version__}"
