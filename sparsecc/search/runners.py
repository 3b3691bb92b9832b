"""Where the points of a search are made: threads here that each start a worker, or the machines of a cluster."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from sparsecc import worker
from sparsecc.devices.dask_cluster import connect
from sparsecc.errors import InternalError
from sparsecc.search.point import Request, Row, make, make_in
from sparsecc.system.temp_folders import temporary_folder

Runner = Callable[[Request], Iterator[Row]]
"""Makes the points of a request and gives their rows as they finish, in any order."""


def local(jobs: int, memory: int | None) -> Runner:
    """So many at once on this machine, each in a worker with this limit of memory, which opens the model once for its
    share of the points. The threads are daemons: an interrupted search ends at once, and each worker with the thread
    that began it."""

    def run(request: Request) -> Iterator[Row]:
        points, done = request["points"], queue.SimpleQueue[Row | None]()
        with ExitStack() as folders:
            for number in range(min(jobs, len(points))):
                folder = folders.enter_context(temporary_folder("search"))
                share = {**request, "points": points[number::jobs]}
                threading.Thread(target=_serve, args=(share, done, folder, memory), daemon=True).start()
            for _ in points:
                row = done.get()
                if row is None:
                    raise InternalError(
                        "a point of the search ended in a fault of sparsecc: see the traceback"
                    )
                yield row

    return run


def _serve(request: Request, done: queue.SimpleQueue[Row | None], folder: Path, memory: int | None) -> None:
    """Points one after another in one worker; None after what is no error of a point."""
    is_whole = False
    try:
        with worker.kept(folder, memory=memory):
            make_in(folder, request, done.put)
        is_whole = True
    finally:
        if not is_whole:
            done.put(None)


def cluster(address: str) -> Runner:
    """On the workers of a Dask scheduler (`tcp://host:8786`, or the path of its scheduler file).

    The model and the data must lie under the same paths there. UnavailableError without the extra, or where
    the scheduler does not answer.
    """
    connect(address).close()

    def run(request: Request) -> Iterator[Row]:
        from distributed import as_completed

        client = connect(address)
        futures = [
            client.submit(make, {**request, "points": [point]}, key=f"sparsecc-{point['id']}", pure=False)
            for point in request["points"]
        ]
        try:
            for _, rows in as_completed(futures, loop=client.loop, with_results=True):
                yield from rows
        finally:
            client.cancel(futures)
            client.close()

    return run
