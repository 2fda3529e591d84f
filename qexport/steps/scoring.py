"""Score an artifact in several processes of this machine: the same shards, and so the same figures as in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from qexport.errors import QexportError
from qexport.execution.executor import Executor, Task, WorkerDiedError
from qexport.execution.workers import in_order, worker_processes
from qexport.measurement.measure import Elsewheres
from qexport.measurement.shards import ShardRequest, ShardScores, load_runner, score_shard

AHEAD = 2
"""Shards for each process that are handed out before they are wanted."""


@contextmanager
def scoring_processes(jobs: int) -> Iterator[Elsewheres | None]:
    """Yield what scores in so many processes, which start when there is something to score; None for this process."""
    if jobs == 1:
        yield None
        return
    with worker_processes(jobs) as executor:
        yield lambda asked: partial(scored_by, executor, Task(load_runner, (asked,)), AHEAD * jobs)


def scored_by(
    executor: Executor, loading: Task, ahead: int, shards: Iterator[ShardRequest]
) -> Iterator[tuple[ShardRequest, ShardScores | None]]:
    """Yield every shard with what it comes to, None where its process is gone or failed: it is scored here, then.

    So a failure is told as in one process, and outputs that are not finite are judged where the model is.

    Args:
        loading: gives the runner.
        ahead: see `in_order`.
    """
    for task, future in in_order(executor, (Task(score_shard, (each,), loading) for each in shards), ahead):
        try:
            found: ShardScores | None = future.result()
        except (QexportError, WorkerDiedError, OSError):
            found = None
        yield task.arguments[0], found
