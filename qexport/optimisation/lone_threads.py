"""Threads that each compute alone: how many share the work of one operation shows in its last bits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

WORKERS = 2
"""Never more or fewer: nothing may depend on the machine."""


@contextmanager
def lone_threads(workers: int = WORKERS) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads whose operations have one thread each."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)
