"""Who is faster, on a clock of this test's own."""

from __future__ import annotations

from functools import partial
from itertools import cycle
from math import comb
from random import Random

import numpy as np
import pytest
from planted_time import BATCH, PlantedTime

from qexport.measurement.paired import ROUNDS, Paired, compare_latency, wins_wanted


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> PlantedTime:
    return PlantedTime.installed(monkeypatch)


def test_so_many_wins_are_wanted_that_a_coin_seldom_has_as_many() -> None:
    for rounds in range(1, 40):
        wanted = wins_wanted(rounds)
        chances = [sum(comb(rounds, n) for n in range(k, rounds + 1)) / 2**rounds for k in (wanted, wanted - 1)]
        assert chances[0] <= 0.01 < chances[1]
    assert [wins_wanted(rounds) for rounds in (6, 7, 12, 15)] == [7, 7, 11, 13]


def test_a_runner_that_is_faster_is_and_says_by_how_much(clock: PlantedTime) -> None:
    found = compare_latency(clock.runner(10.0), clock.runner(8.0), BATCH)
    assert found.faster
    assert (found.wins, len(found.rounds)) == (ROUNDS, ROUNDS)
    assert found.speedup == pytest.approx(1.25)
    assert found.first.p50 == pytest.approx(10.0)
    assert found.second.p50 == pytest.approx(8.0)


@pytest.mark.parametrize("milliseconds", [9.95, 10.0, 12.0])
def test_what_is_faster_by_less_than_anybody_sees_is_no_faster(clock: PlantedTime, milliseconds: float) -> None:
    assert not compare_latency(clock.runner(10.0), clock.runner(milliseconds), BATCH).faster


def test_drift_is_not_taken_for_gain(clock: PlantedTime) -> None:
    """A machine that becomes slower and slower: the second run of each round is the slower one."""
    clock.drift = 1.02
    assert not compare_latency(clock.runner(10.0), clock.runner(10.0), BATCH).faster
    clock.drift = 1 / 1.02
    assert not compare_latency(clock.runner(10.0), clock.runner(10.0), BATCH).faster


def test_breaking_off_changes_nothing_in_the_outcome(clock: PlantedTime) -> None:
    random, outcomes = Random(3), list[bool]()
    for _ in range(60):
        ours = [random.choice((8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 12.0)) for _ in range(ROUNDS)]
        # A turn is four runs, and the first round warms up.
        each = cycle([8.0] * 4 + [ms for ms in ours for _ in range(4)])
        found = compare_latency(clock.runner(10.0), clock.runner(partial(next, each)), BATCH)
        whole = Paired(tuple((10.0, ms) for ms in ours), wins_wanted(ROUNDS))
        assert found.faster == whole.faster
        outcomes.append(found.faster)
        assert found.faster or len(found.rounds) <= ROUNDS
    assert 10 < sum(outcomes) < 50
    slower = compare_latency(clock.runner(10.0), clock.runner(20.0), BATCH)
    assert len(slower.rounds) == ROUNDS - wins_wanted(ROUNDS) + 1


def test_nothing_is_faster_where_the_time_is_over(clock: PlantedTime) -> None:
    found = compare_latency(clock.runner(10.0), clock.runner(5.0), BATCH, stop=lambda: True)
    assert not found.faster
    assert (len(found.rounds), found.speedup) == (0, 1.0)
    until = clock.now + 2.0
    found = compare_latency(clock.runner(10.0), clock.runner(5.0), BATCH, stop=lambda: clock.now > until)
    assert not found.faster
    assert 0 < len(found.rounds) < ROUNDS
    assert found.speedup == pytest.approx(2.0)


def test_noise_is_seldom_taken_for_gain(clock: PlantedTime) -> None:
    random, taken = np.random.default_rng(0), 0
    for _ in range(300):
        one, other = (clock.runner(lambda: float(10 * np.exp(0.3 * random.standard_normal()))) for _ in range(2))
        taken += compare_latency(one, other, BATCH).faster
    assert taken <= 6  # 3 are expected at most
