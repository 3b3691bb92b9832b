"""The runtimes: one folder each, which declares its targets and backends; classes are imported when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, cast

from sparsecc.errors import InputError
from sparsecc.targets import Runtime, installed_runtimes, own_runtimes

if TYPE_CHECKING:
    from sparsecc.backends.base import Backend


def backend_names() -> list[str]:
    """All backends by name, ours and those of installed packages."""
    return sorted({name for runtime in _runtimes() for name in runtime.BACKENDS})


def backend_named(name: str) -> Backend:
    """An instance of the backend of that name. InputError when there is none, or it cannot be imported."""
    for runtime in _runtimes():
        if name in runtime.BACKENDS:
            module, _, class_name = runtime.BACKENDS[name].partition(":")
            try:
                return cast("Backend", getattr(import_module(module), class_name)())
            except (ImportError, AttributeError) as e:
                raise InputError(f"backend '{name}' cannot be imported: {e}: run 'sparsecc doctor'") from e
    raise InputError(f"unknown backend '{name}': backends are {', '.join(backend_names())}")


def _runtimes() -> Iterator[Runtime]:
    yield from own_runtimes()
    yield from installed_runtimes()[0]
