"""Time that passes by what runners are said to take, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qexport.backends.protocol import Runner
from qexport.measurement import latency

BATCH = np.zeros((1, 3, 2, 2), dtype=np.float32)


@dataclass
class PlantedTime:
    """What `qexport.measurement.latency` takes for the module `time`.

    Attributes:
        now: seconds.
        drift: factor by which every run takes longer than the one before.
    """

    now: float = 0.0
    drift: float = 1.0
    pace: float = 1.0

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch) -> PlantedTime:
        clock = cls()
        monkeypatch.setattr(latency, "time", clock)
        return clock

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def runner(self, milliseconds: float | Callable[[], float]) -> Runner:
        def run(batch: NDArray[np.float32]) -> tuple[Any, ...]:
            taken = milliseconds() if callable(milliseconds) else milliseconds
            self.now += taken * self.pace / 1e3
            self.pace *= self.drift
            return ()

        return run
