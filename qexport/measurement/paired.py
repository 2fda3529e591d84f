"""Whether one runner is faster than another beyond the noise of their own repetitions: a sign test of rounds in turns.

Both take their turn in each round, so that whatever slows the machine slows both. How much one round says is of no
weight: a runner that is no faster wins a round in one case of two at most, whatever the noise looks like (Conover,
"Practical Nonparametric Statistics", 1999, chapter 3).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from qexport.backends.protocol import Runner
from qexport.measurement.latency import Latency, in_turns, summarise

ROUNDS = 15
MOST_CHANCE = 0.01
"""Greatest chance with which a runner that is no faster is taken for faster."""
LEAST_GAIN = 1.01
"""What is faster by less is no faster: nobody would see it."""
FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class Paired:
    """What two runners took in the same rounds.

    Attributes:
        rounds: milliseconds of the first and of the second, each the median of a turn's runs.
        wanted: how many rounds the second has to win; 0 where rounds broke off before that was settled.
    """

    rounds: tuple[tuple[float, float], ...]
    wanted: int

    @property
    def speedup(self) -> float:
        """Factor by which the second is faster: the median of the rounds' own; 1 without rounds."""
        return statistics.median(one / other for one, other in self.rounds) if self.rounds else 1.0

    @property
    def wins(self) -> int:
        """Rounds that the second was faster in."""
        return sum(other < one for one, other in self.rounds)

    @property
    def faster(self) -> bool:
        """Whether the second is faster beyond noise."""
        return 0 < self.wanted <= self.wins and self.speedup >= LEAST_GAIN

    @property
    def first(self) -> Latency:
        """Of the first runner's turns."""
        return summarise([one for one, _ in self.rounds])

    @property
    def second(self) -> Latency:
        """Of the second runner's turns."""
        return summarise([other for _, other in self.rounds])


def compare_latency(
    first: Runner,
    second: Runner,
    batch: NDArray[np.float32],
    rounds: int = ROUNDS,
    stop: Callable[[], bool] = lambda: False,
) -> Paired:
    """Time two runners in turns, until all rounds are run or the second can win too few of them.

    Breaking off where it can win too few changes nothing in the outcome.

    Args:
        batch: (n, channels, height, width) float32, a real image.
        stop: whether to break off; nothing is faster, then.
    """
    wanted, taken = wins_wanted(rounds), list[tuple[float, float]]()
    for each in in_turns({FIRST: first, SECOND: second}, batch, rounds):
        if each:
            taken.append((statistics.median(each[FIRST]), statistics.median(each[SECOND])))
        lost = sum(other >= one for one, other in taken)
        if lost > rounds - wanted:
            break
        if stop() and len(taken) < rounds:
            return Paired(tuple(taken), 0)
    return Paired(tuple(taken), wanted)


def wins_wanted(rounds: int) -> int:
    """The least number of rounds that a coin wins with a chance of `MOST_CHANCE` at most; one more where none is."""
    chance = 0.0
    for wins in range(rounds, -1, -1):
        chance += comb(rounds, wins) / 2**rounds
        if chance > MOST_CHANCE:
            return wins + 1
    return rounds + 1
