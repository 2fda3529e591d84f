"""A cluster as an executor. Ray decides where a task runs, and runs it again where its worker or machine was lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from qexport.errors import InputError, QexportError, named_reason
from qexport.execution.executor import Inline, Task, WorkerDiedError
from qexport.plugins import check_modules

RETRIES = 3
"""Times that a task is begun again because its worker was lost; one that fails by itself is not."""


class Cluster:
    """An executor of tasks whose functions are importable on every machine of the cluster."""

    def __init__(self, remote: Any) -> None:
        self._remote = remote

    def submit(self, task: Task) -> Future[Any]:
        """Hand a task to Ray; it raises a `QexportError` as it was raised, and `WorkerDiedError` for all else."""
        told: Future[Any] = Future()
        self._remote.remote(task).future().add_done_callback(lambda done: _tell(told, done))
        return told


def _tell(told: Future[Any], done: Future[Any]) -> None:
    error = done.exception()
    if error is None:
        told.set_result(done.result())
        return
    own = getattr(error, "cause", None)  # what a task raises Ray wraps
    what = "it failed" if own else f"its worker was lost, and so were {RETRIES} others"
    died = WorkerDiedError(f"{what} ({named_reason(own or error, 200)})")
    told.set_exception(own if isinstance(own, QexportError) else died)


@contextmanager
def connected(address: str, cpus: int) -> Iterator[Cluster]:
    """Yield the cluster at an address, as `ray.init` takes it; tasks that are not done at the end are given up.

    Args:
        cpus: that a task takes; fewer where no machine has as many.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: there is no cluster.
    """
    check_modules("--executor ray", ("ray",), "qexport[ray]")
    ray = import_module("ray")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # connection errors, timeouts, and versions that do not fit have no class in common
        remedy = "start one ('ray start --head'), or give its --address"
        raise InputError(f"no Ray cluster at {address} ({named_reason(error, 200)})", remedy) from error
    try:
        most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        settings = {"num_cpus": max(1, min(cpus, int(most))), "max_retries": RETRIES}
        yield Cluster(ray.remote(**settings)(_do))
    finally:
        ray.shutdown()


def _do(task: Task) -> Any:
    return Inline().run(task)
