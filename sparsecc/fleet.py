"""One model timed on several devices at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Lock
from typing import TYPE_CHECKING, Any

from sparsecc import api
from sparsecc.devices.dask_cluster import connect, machines
from sparsecc.errors import InputError, SparseccError

if TYPE_CHECKING:
    from sparsecc.tasks.calls import Model

AT_ONCE = 16
"""Devices that are waited for together; the work is theirs, not this machine's."""

Row = dict[str, Any]
Event = Callable[[Mapping[str, Any]], None]


def profile_fleet(
    model: Model,
    devices: Sequence[str] = (),
    *,
    cluster: str | None = None,
    on_event: Event | None = None,
    **options: Any,
) -> Row:
    """What `profile` finds on each of `devices`, measured in parallel, in the order given.

    A device that fails does not stop the others: its entry holds "error" and "exit_code". `local` and a device
    reached over the loopback share this machine, and disturb each other. With `cluster`, a Dask scheduler, its
    workers reach out to the devices, or, where none are named, are the devices themselves, one worker of each
    machine; the model has the same path there. InputError where a device is named twice.
    """
    if len(set(devices)) != len(devices) or not (devices or cluster):
        raise InputError(f"{', '.join(devices) or 'no device'}: name each device once")
    if cluster is not None:
        return _fleet(_on_cluster(cluster, model, devices, on_event, options))
    shares, lock = dict.fromkeys(devices, 0.0), Lock()

    def heard(device: str) -> Event:
        def forward(event: Mapping[str, Any]) -> None:
            with lock:
                shares[device] = float(event.get("share", 0.0))
                share = sum(shares.values()) / len(shares)
            if on_event is not None:
                on_event({**event, "share": share, "note": device})

        return forward

    with ThreadPoolExecutor(min(AT_ONCE, len(devices))) as pool:
        work = [
            pool.submit(measured, model, device, device, on_event=heard(device), **options)
            for device in devices
        ]
        return _fleet([one.result() for one in work])


def measured(model: Model, device: str, name: str, **options: Any) -> Row:
    """The profile on one device under its name in the fleet, or the error in one line."""
    try:
        found = api.profile(model, device=device, **options)
    except SparseccError as e:
        return {"device": {"name": name}, "error": str(e), "exit_code": e.exit_code}
    return {**found, "device": {**found["device"], "name": name}}


def _fleet(results: list[Row]) -> Row:
    return {"schema": "sparsecc.fleet/1", "results": results}


def _on_cluster(
    address: str, model: Model, devices: Sequence[str], on_event: Event | None, options: Mapping[str, Any]
) -> list[Row]:
    """Rows in the order of the devices, or of the machines' names."""
    if not isinstance(model, str | os.PathLike):
        raise InputError("a cluster reads the model where all its machines find it: give a path")
    client = connect(address)
    from distributed import as_completed

    with closing(client):
        own = [("local", host, worker) for host, worker in sorted(machines(client).items())]
        places = [(device, device, None) for device in devices] or own
        path = os.path.abspath(model)
        work = {
            client.submit(measured, path, device, name, workers=worker, pure=False, **options): name
            for device, name, worker in places
        }
        rows: dict[str, Row] = {}
        for one, row in as_completed(list(work), loop=client.loop, with_results=True):
            rows[work[one]] = row
            if on_event is not None:
                on_event({"stage": "profile", "share": len(rows) / len(work), "note": work[one]})
    return [rows[name] for _, name, _ in places]
