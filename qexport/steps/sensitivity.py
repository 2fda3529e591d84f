"""Find out what each part of a quantised program costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qexport.data.choice import take
from qexport.data.selection import image_files
from qexport.optimisation import sensitivity as optimisation
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import hold_out
from qexport.optimisation.passes import HELD_OUT
from qexport.optimisation.sensitivity_record import Sensitivity
from qexport.progress import Progress, Silent

SILENT = Silent()
COUNT = 16
"""Images that sensitivity is measured on: the program runs over each of them hundreds of times."""


def sensitivity(
    candidate: Candidate,
    images: str | Path | Sequence[Path],
    progress: Progress = SILENT,
    *,
    count: int = COUNT,
    max_settings: int | None = None,
) -> Sensitivity:
    """Measure the distance from the float program with each layer and block quantised alone, and left out alone.

    Args:
        images: image files; or a data set whose train split is taken: a YAML, a folder of images, or a list in a file.
        count: how many of them to measure on, evenly chosen; of those that passes do not see, where there are enough.
        max_settings: how many sets of quantised tensors are tried at most, the worst blocks first; None for all.

    Raises:
        InputError: images are missing, the plan quantises nothing, or errors inside of the program cannot be measured.
    """
    optimisation.check_measurable(candidate)
    given = image_files(images)
    unseen = given[::HELD_OUT] if len(given) >= HELD_OUT * count else given
    chosen = take(unseen, count=count)
    with progress.step("measuring the float program", len(chosen)) as advance:
        held_out = hold_out(candidate.reference, chosen, advance)
    return optimisation.sensitivity(candidate, held_out, progress, max_settings)
