"""Change weights so that a quantised program loses less."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qexport.compat.one_at_a_time import sources_forgotten
from qexport.data.selection import image_files
from qexport.optimisation import passes as optimisation
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.mixed_precision import Replan
from qexport.optimisation.pass_record import PassRecord
from qexport.optimisation.passes import Replanning, WeightPass
from qexport.optimisation.registry import weight_pass
from qexport.progress import Progress, Silent

SILENT = Silent()


@sources_forgotten()
def optimise(
    candidate: Candidate,
    passes: Sequence[str | WeightPass],
    images: str | Path | Sequence[Path],
    progress: Progress = SILENT,
    *,
    fraction: float = 1.0,
    count: int | None = None,
    replan: Replan | None = None,
    views: bool = False,
) -> tuple[Candidate, tuple[PassRecord, ...]]:
    """Run passes over a candidate's weights one after the other, and keep those after which it loses less.

    That is judged on every second image, which passes do not see, or by a fit that is left without each image in its
    turn, and has to exceed noise: three images are needed at least.

    Args:
        passes: names, such as "bias-correction", or passes of your own.
        images: image files; or a data set whose train split is taken: a YAML, a folder of images, or a list in a file.
        fraction: share of a data set's images, evenly chosen.
        count: the greatest number of them; None for 512, 0 for all.
        replan: plans the candidate's program once more with values in float, name → why; without it passes that would
            change what is quantised are not run.
        views: see fewer than 32 images in other pictures, too, on either side: `qexport.calibrate` says which.

    Raises:
        UsageError: there is no pass of that name.
        InputError: images are missing, or none of those that are judged on can be read.
    """
    made = [weight_pass(each) if isinstance(each, str) else each for each in passes]
    if replan:
        made = [each.planned_by(replan) if isinstance(each, Replanning) else each for each in made]
    return optimisation.optimise(candidate, made, image_files(images, fraction, count), progress, views)
