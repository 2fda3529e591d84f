"""Find out what each part of a quantised program costs, and all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qexport.compat.one_at_a_time import sources_forgotten
from qexport.data.choice import take
from qexport.data.selection import image_files
from qexport.optimisation import sensitivity as optimisation
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import Distance, HeldOut, hold_out
from qexport.optimisation.distance import distance as measured_distance
from qexport.optimisation.passes import HELD_OUT
from qexport.optimisation.sensitivity_record import Sensitivity
from qexport.progress import Progress, Silent

SILENT = Silent()
COUNT = 16
"""Images that sensitivity is measured on: the program runs over each of them hundreds of times."""


@sources_forgotten()
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
    return optimisation.sensitivity(candidate, _held_out(candidate, images, count, progress), progress, max_settings)


@sources_forgotten()
def distance(
    candidate: Candidate, images: str | Path | Sequence[Path], progress: Progress = SILENT, *, count: int = COUNT
) -> Distance:
    """Measure how far a quantised program is from the float one, by its raw outputs: less is better, 0 is the same.

    It is what passes and training are judged by, and `whole` of `sensitivity` where images and count are the same.

    Args:
        images: image files; or a data set whose train split is taken: a YAML, a folder of images, or a list in a file.
        count: how many of them to measure on, evenly chosen; of those that passes do not see, where there are enough.

    Raises:
        InputError: images are missing, or errors inside of the program cannot be measured.
    """
    held_out = _held_out(candidate, images, count, progress)
    with progress.step("measuring the distance", len(held_out.inputs)) as advance:
        return measured_distance(candidate, held_out, advance)


def _held_out(candidate: Candidate, images: str | Path | Sequence[Path], count: int, progress: Progress) -> HeldOut:
    """Images to measure on, with what the float program says of them."""
    optimisation.check_measurable(candidate)
    given = image_files(images)
    unseen = given[::HELD_OUT] if len(given) >= HELD_OUT * count else given
    chosen = take(unseen, count=count)
    with progress.step("measuring the float program", len(chosen)) as advance:
        return hold_out(candidate.reference, chosen, advance)
