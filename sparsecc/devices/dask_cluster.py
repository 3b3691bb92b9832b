"""The machines of a Dask cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsecc.errors import MissingPackageError, UnavailableError
from sparsecc.escaping import one_line

if TYPE_CHECKING:
    from distributed import Client


def connect(address: str) -> Client:
    """A connection to a scheduler (`tcp://host:8786`, or the path of its scheduler file).

    UnavailableError without the extra, or where the scheduler does not answer.
    """
    try:
        from distributed import Client
    except ImportError as e:
        raise MissingPackageError("--cluster needs Dask: run pip install 'sparsecc[cluster]'") from e
    try:
        return Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as e:
        shown = one_line(address, 80)
        raise UnavailableError(
            f"no Dask scheduler answers at {shown}: start one, or leave out --cluster"
        ) from e


def machines(client: Client) -> dict[str, str]:
    """One worker of each machine: host -> the worker's address. UnavailableError where there are none."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise UnavailableError("the cluster has no workers: start `dask worker` on each machine")
    return {worker["host"]: address for address, worker in sorted(workers.items(), reverse=True)}
