"""Latency: the order of runs, proven with runners that write down when they were called, and figures by hand."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from numpy.typing import NDArray

from qexport.measurement import latency
from qexport.measurement.latency import PAUSE, RUNS, WARM_UP, Latency, measure_latency, summarise

Batch = NDArray[np.float32]


class Clockwork:
    """A clock that only runners move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def perf_counter(self) -> float:
        return self.now


class Runner:
    def __init__(self, name: str, clock: Clockwork, calls: list[str], milliseconds: list[float]) -> None:
        self.name, self.clock, self.calls, self.milliseconds = name, clock, calls, milliseconds
        self.batches: list[Batch] = []

    def __call__(self, batch: Batch) -> tuple[Batch, ...]:
        self.batches.append(batch)
        self.clock.now += self.milliseconds[len(self.batches) - 1] / 1e3
        self.calls.append(self.name)
        return (batch,)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    clockwork = Clockwork()
    monkeypatch.setattr(latency, "time", clockwork)
    return clockwork


def test_runners_take_turns_and_what_warms_up_is_left_out(clock: Clockwork) -> None:
    calls: list[str] = []
    rounds: list[int] = []
    each = 1 + RUNS
    cold = [999.0] * each * WARM_UP
    slow = Runner("float", clock, calls, [*cold, 99.0, 10.0, 30.0, 20.0, 99.0, 21.0, 22.0, 11.0])
    fast = Runner("int8", clock, calls, [*cold, 77.0, 4.0, 5.0, 9.0, 77.0, 5.0, 5.0, 6.0])
    batch = np.zeros((1, 3, 4, 4), dtype=np.float32)
    found = measure_latency({"float": slow, "int8": fast}, batch, rounds=2, on_round=lambda: rounds.append(len(calls)))
    # Every round has both, and who goes first changes from round to round.
    turns = ["float", "int8", "int8", "float", "float", "int8"][: 2 * (WARM_UP + 2)]
    assert calls == [name for name in turns for _ in range(each)]
    assert rounds == [2 * each * (i + 1) for i in range(WARM_UP + 2)]
    assert astuple(found["float"]) == pytest.approx((20.5, 30.0, 10.0, 6))
    assert astuple(found["int8"]) == pytest.approx((5.0, 9.0, 4.0, 6))
    assert all(given is batch for given in slow.batches)
    assert clock.slept == [PAUSE] * 2 * (WARM_UP + 2)  # before each turn


def test_percentiles_by_hand() -> None:
    assert summarise([float(i) for i in range(100, 0, -1)]) == Latency(50.5, 95.0, 1.0, 100)
    assert summarise([3.0, 1.0, 2.0]) == Latency(2.0, 3.0, 1.0, 3)
    assert summarise([7.0]) == Latency(7.0, 7.0, 7.0, 1)
    assert summarise([1.0] * 19 + [50.0]) == Latency(1.0, 1.0, 1.0, 20)  # 19 of 20 are 95 %
    assert summarise([1.0] * 18 + [50.0] * 2) == Latency(1.0, 50.0, 1.0, 20)


@pytest.mark.parametrize("count", [1, 2, 7, 40, 41])
def test_the_95th_percentile_is_numpys_nearest_rank(count: int) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    assert summarise(list(values)).p95 == np.percentile(values, 95, method="inverted_cdf")


def test_spread_is_how_far_the_slow_runs_lie_above_the_median() -> None:
    assert Latency(10.0, 13.0, 9.0, 40).spread == pytest.approx(0.3)
