"""Statistics of numbers that are at hand, for tests of range estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from qexport.calibration.statistics import Statistics


def statistics_of(values: ArrayLike) -> Statistics:
    """What calibration would keep of a value that had these elements in one image; of more than 65536 every so manyth.

    Raises:
        ValueError: an element is not finite.
    """
    import torch  # it takes time to import, and so do observers

    from qexport.calibration.observer import Observer

    observer = Observer()
    observer.update(torch.from_numpy(np.asarray(values, np.float32)))
    return observer.statistics()
