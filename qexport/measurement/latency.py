"""Latency of several runners, interleaved so that a drifting machine slows all of them alike.

A turn is a pause, one run that is not timed, and a few that are. Threads of the session before spin for a while after
its run: on two cores, without the pause, a runner took up to 1.7 times as long, depending on who ran before it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qexport.backends.protocol import Runner

WARM_UP = 1
"""Rounds that are not timed."""
ROUNDS = 12
RUNS = 3
"""Timed runs of one turn."""
PAUSE = 0.05
"""Seconds until other runtimes' threads sleep."""
WIDE_SPREAD = 0.20
"""Of a restless machine."""


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

    @property
    def restless(self) -> bool:
        """Whether the machine was too restless for the median to be trusted."""
        return self.spread > WIDE_SPREAD


def measure_latency(
    runners: Mapping[str, Runner],
    batch: NDArray[np.float32],
    rounds: int = ROUNDS,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Latency]:
    """Time each runner on `batch` in turn, round after round, `RUNS` runs a turn.

    Args:
        runners: by name.
        batch: (n, channels, height, width) float32, a real image.

    Returns:
        By name, without the warm-up runs.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    for taken in in_turns(runners, batch, rounds):
        for name, values in taken.items():
            times[name] += values
        on_round()
    return {name: summarise(values) for name, values in times.items()}


def in_turns(
    runners: Mapping[str, Runner], batch: NDArray[np.float32], rounds: int = ROUNDS
) -> Iterator[dict[str, list[float]]]:
    """Time each runner on `batch` in turn, and yield each round's milliseconds by name; of rounds that warm up none."""
    for round_ in range(WARM_UP + rounds):
        # Forwards and backwards in turn: whoever runs second finds warmer or colder caches.
        order = list(runners.items())[:: -1 if round_ % 2 else 1]
        taken = {name: _turn(runner, batch) for name, runner in order}
        yield taken if round_ >= WARM_UP else {}


def _turn(runner: Runner, batch: NDArray[np.float32]) -> list[float]:
    """Milliseconds of each timed run."""
    time.sleep(PAUSE)
    runner(batch)
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        runner(batch)
        taken.append((time.perf_counter() - started) * 1e3)
    return taken


def summarise(milliseconds: Sequence[float]) -> Latency:
    """Median, 95th percentile (nearest rank) and minimum."""
    ordered = sorted(milliseconds)
    rank = max(0, -(-95 * len(ordered) // 100) - 1)
    return Latency(statistics.median(ordered), ordered[rank], ordered[0], len(ordered))
