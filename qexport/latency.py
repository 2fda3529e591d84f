"""Latency of several runners, interleaved so that a drifting machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qexport.backends import Runner

WARM_UP = 5
ROUNDS = 40


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one batch: median, 95th percentile, minimum, and how many runs they are of."""

    p50: float
    p95: float
    min: float
    runs: int

    @property
    def spread(self) -> float:
        """How far the 95th percentile lies above the median, as a share of it."""
        return self.p95 / self.p50 - 1


def measure_latency(
    runners: Mapping[str, Runner],
    batch: NDArray[np.float32],
    rounds: int = ROUNDS,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Latency]:
    """Time each runner on `batch` in turn, round after round.

    Args:
        runners: by name.
        batch: (n, channels, height, width) float32, a real image.

    Returns:
        By name, without the warm-up runs.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    for round_ in range(WARM_UP + rounds):
        # Forwards and backwards in turn: whoever runs second finds warmer or colder caches.
        for name, runner in list(runners.items())[:: -1 if round_ % 2 else 1]:
            started = time.perf_counter()
            runner.run(batch)
            elapsed = (time.perf_counter() - started) * 1e3
            if round_ >= WARM_UP:
                times[name].append(elapsed)
        on_round()
    return {name: summarise(values) for name, values in times.items()}


def summarise(milliseconds: Sequence[float]) -> Latency:
    """Median, 95th percentile (nearest rank) and minimum."""
    ordered = sorted(milliseconds)
    rank = max(0, -(-95 * len(ordered) // 100) - 1)
    return Latency(statistics.median(ordered), ordered[rank], ordered[0], len(ordered))
