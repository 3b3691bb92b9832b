"""Where the points of a search are made: threads here that each start a worker, or the machines of a cluster."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sparsecc import worker
from sparsecc.devices.dask_cluster import connect
from sparsecc.errors import InternalError
from sparsecc.search.point import make, make_in
from sparsecc.system.temp_folders import temporary_folder

Request = dict[str, Any]
Row = dict[str, Any]
Runner = Callable[[Sequence[Request]], Iterator[Row]]
"""Makes points and gives their rows as they finish, in any order."""


def local(jobs: int, memory: int | None) -> Runner:
    """So many at once on this machine, each in a worker with this limit of memory. The threads are daemons: an
    interrupted search ends at once, and each worker with the thread that began it."""

    def run(requests: Sequence[Request]) -> Iterator[Row]:
        waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        done: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        for request in requests:
            waiting.put(request)
        with ExitStack() as folders:
            for _ in range(min(jobs, len(requests))):
                folder = folders.enter_context(temporary_folder("search"))
                threading.Thread(target=_serve, args=(waiting, done, folder, memory), daemon=True).start()
            for _ in requests:
                row = done.get()
                if row is None:
                    raise InternalError(
                        "a point of the search ended in a fault of sparsecc: see the traceback"
                    )
                yield row

    return run


def _serve(
    waiting: queue.SimpleQueue[Request], done: queue.SimpleQueue[Row | None], folder: Path, memory: int | None
) -> None:
    """Points one after another, in one worker where their sandboxes are alike."""
    with worker.kept(folder, memory=memory):
        while (request := _next(waiting)) is not None:
            row = None
            try:
                row = make_in(folder, request)
            finally:
                done.put(row)


def _next(waiting: queue.SimpleQueue[Request]) -> Request | None:
    try:
        return waiting.get_nowait()
    except queue.Empty:
        return None


def cluster(address: str) -> Runner:
    """On the workers of a Dask scheduler (`tcp://host:8786`, or the path of its scheduler file).

    The model and the data must lie under the same paths there. UnavailableError without the extra, or where
    the scheduler does not answer.
    """
    connect(address).close()

    def run(requests: Sequence[Request]) -> Iterator[Row]:
        from distributed import as_completed

        client = connect(address)
        futures = [
            client.submit(make, request, key=f"sparsecc-{request['id']}", pure=False) for request in requests
        ]
        try:
            for _, row in as_completed(futures, loop=client.loop, with_results=True):
                yield row
        finally:
            client.cancel(futures)
            client.close()

    return run
