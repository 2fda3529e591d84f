"""A backend whose files take longer where the first convolution is in integers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from planted_time import PlantedTime

from qexport.backends.protocol import Runner
from qexport.planning.runtime_profiles import RuntimeProfile
from qexport.system.machine import ANY
from qexport.testing import FakeBackend
from qexport.testing.fake import PROFILE

SLOW, FAST = 8.0, 3.0
"""Milliseconds that a run takes."""
PLANTED: RuntimeProfile = replace(PROFILE, name="planted")


class PlantedBackend(FakeBackend):
    """What it writes is the fake backend's.

    Attributes:
        clock: by which its runs take time.
        loaded: how many files were loaded.
    """

    info = replace(FakeBackend.info, name="planted", profiles={"int8": {ANY: PLANTED}})
    clock: ClassVar[PlantedTime] = PlantedTime()
    loaded: ClassVar[int] = 0

    def runner(self, path: Path, threads: int) -> Runner:
        """Load the archive."""
        type(self).loaded += 1
        run, stored = super().runner(path, threads), self.read(path).tensors
        passes, known = self.clock.runner(SLOW if "model.0.conv.weight" in stored else FAST), dict[bytes, Any]()

        def slowed(batch: NDArray[np.float32]) -> Any:
            passes(batch)
            content = batch.tobytes()
            if content not in known:  # what is timed is one image again and again
                known[content] = run(batch)
            return known[content]

        return slowed
