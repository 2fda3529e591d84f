"""One thread at a time where libraries keep what they are doing in their modules.

torch.export, torch.fx and converters put functions of their own in place of their classes' while they trace: a second
thread finds those, and traces nonsense or fails. And torch.fx keeps the source of every graph that it ever made, for
tracebacks: some megabytes an export, which are forgotten where the lock is given back, and behind every step that makes
graphs without it.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock


@contextmanager
def sources_forgotten() -> Iterator[None]:
    """Forget behind the block, on every way out, the sources of graphs that were made within it, by whichever thread.

    It is a decorator, too. Of those graphs tracebacks have no lines afterwards; all else stays.
    """
    before = frozenset(_sources())
    try:
        yield
    finally:
        kept = _sources()
        for name in kept.keys() - before:
            kept.pop(name, None)
            linecache.cache.pop(name, None)


class _Tracing:
    """A lock that the thread which has it can take again."""

    def __init__(self) -> None:
        self._lock, self._depth = RLock(), 0
        self._forgetting = ExitStack()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1:
            self._forgetting.enter_context(sources_forgotten())

    def __exit__(self, *_: object) -> None:
        if self._depth == 1:
            self._forgetting.close()
        self._depth -= 1
        self._lock.release()


def _sources() -> dict[str, str]:
    """torch.fx's own: name of a graph's code → its source; nothing before torch is imported."""
    loader = getattr(sys.modules.get("torch.fx.graph_module"), "_loader", None)
    sources: dict[str, str] = getattr(loader, "eval_cache", {})
    return sources


TRACING = _Tracing()
"""Held while a model is captured or a file is written, and by a whole run."""
