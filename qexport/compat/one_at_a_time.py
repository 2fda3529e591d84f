"""One thread at a time where libraries keep what they are doing in their modules.

torch.export, torch.fx and converters put functions of their own in place of their classes' while they trace: a second
thread finds those, and traces nonsense or fails. And torch.fx keeps the source of every graph that it ever made, for
tracebacks: some megabytes an export, which are forgotten where the lock is given back.
"""

from __future__ import annotations

import linecache
import sys
from threading import RLock


class _Tracing:
    """A lock that the thread which has it can take again."""

    def __init__(self) -> None:
        self._lock, self._depth = RLock(), 0
        self._before = frozenset[str]()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1:
            self._before = frozenset(_sources())

    def __exit__(self, *_: object) -> None:
        if self._depth == 1:
            kept = _sources()
            for name in kept.keys() - self._before:
                kept.pop(name, None)
                linecache.cache.pop(name, None)
        self._depth -= 1
        self._lock.release()


def _sources() -> dict[str, str]:
    """torch.fx's own: name of a graph's code → its source; nothing before torch is imported."""
    loader = getattr(sys.modules.get("torch.fx.graph_module"), "_loader", None)
    sources: dict[str, str] = getattr(loader, "eval_cache", {})
    return sources


TRACING = _Tracing()
"""Held while a model is captured or a file is written, and by a whole run."""
