"""One model timed on several devices at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from sparsecc import api
from sparsecc.errors import InputError, SparseccError

AT_ONCE = 16
"""Devices that are waited for together; the work is theirs, not this machine's."""


def profile_fleet(
    model: api.Model,
    devices: Sequence[str],
    *,
    on_event: Callable[[Mapping[str, Any]], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What `profile` finds on each of `devices`, measured in parallel, in the order given.

    A device that fails does not stop the others: its entry holds "error" and "exit_code". `local` and a device
    reached over the loopback share this machine, and disturb each other. InputError where one is named twice.
    """
    if len(set(devices)) != len(devices) or not devices:
        raise InputError(f"{', '.join(devices) or 'no device'}: name each device once")
    shares, lock = dict.fromkeys(devices, 0.0), Lock()

    def heard(device: str) -> Callable[[Mapping[str, Any]], None]:
        def forward(event: Mapping[str, Any]) -> None:
            with lock:
                shares[device] = float(event.get("share", 0.0))
                share = sum(shares.values()) / len(shares)
            if on_event is not None:
                on_event({**event, "share": share, "note": device})

        return forward

    def measured(device: str) -> dict[str, Any]:
        try:
            found = api.profile(model, device=device, on_event=heard(device), **options)
        except SparseccError as e:
            return {"device": {"name": device}, "error": str(e), "exit_code": e.exit_code}
        return {**found, "device": {"name": device, **found["device"]}}

    with ThreadPoolExecutor(min(AT_ONCE, len(devices))) as pool:
        return {"schema": "sparsecc.fleet/1", "results": list(pool.map(measured, devices))}
