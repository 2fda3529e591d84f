"""Which of a run's images can be used: found out before anything slow, so that all steps see the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from qexport.data.images import read_image
from qexport.data.selection import LeftOut, RunImages
from qexport.errors import InputError

MIN_USABLE = 0.5
"""Share of the images that must be readable: with fewer, something is wrong with the data set, not with a file."""
MAX_IN_LINE = 3
"""Images that a line names; the report has all."""
WORKERS = 2
"""Images that are read at once."""


def usable(
    images: RunImages, channels: int, on_image: Callable[[], object] = lambda: None, least: int = 1
) -> RunImages:
    """Read every image once, and leave out those that no step could use.

    Args:
        channels: how many the network takes.
        on_image: called after each image.
        least: calibration images that a run needs; 0 where none are.

    Raises:
        InputError: too few are left to calibrate with, or none to evaluate on.
    """
    every = tuple(dict.fromkeys((*images.calibration, *images.evaluation)))

    def reason(path: Path) -> str:
        try:
            read_image(path, channels)
        except InputError as error:
            return error.what
        finally:
            on_image()
        return ""

    with ThreadPoolExecutor(WORKERS) as pool:
        wrong = {path: why for path, why in zip(every, pool.map(reason, every), strict=True) if why}
    calibration, left_out = _sorted_out(images.calibration, wrong)
    evaluation, unscored = _sorted_out(images.evaluation, wrong)
    if images.calibration and least:
        check_enough(len(images.calibration), left_out, least)
    if unscored and not evaluation:
        raise InputError(f"none of {len(unscored)} evaluation images can be used: {named(unscored)}", "give others")
    return replace(
        images,
        calibration=calibration,
        evaluation=evaluation,
        overlap=tuple(path for path in images.overlap if path not in wrong),
        left_out=left_out,
        unscored=unscored,
    )


def _sorted_out(paths: Sequence[Path], wrong: dict[Path, str]) -> tuple[tuple[Path, ...], tuple[LeftOut, ...]]:
    left_out = tuple(LeftOut(path, wrong[path]) for path in paths if path in wrong)
    return tuple(path for path in paths if path not in wrong), left_out


def check_enough(total: int, left_out: Sequence[LeftOut], least: int = 1) -> None:
    """Refuse to calibrate with too few images.

    Args:
        total: how many there are, with those that are left out.
        least: how many must be usable; half of them must in any case.

    Raises:
        InputError: says how many are usable, and which is the first that is not.
    """
    if not total:
        raise InputError("no calibration images", "add --data with images in its train split")
    count = total - len(left_out)
    if count < max(1, MIN_USABLE * total):
        first = left_out[0]
        raise InputError(
            f"only {count} of {total} calibration images are usable, the first that is not is {first.path.name} "
            f"({first.reason})",
            "repair the data set",
        )
    if count < least:
        lost = f" ({len(left_out)} are not: {named(left_out)})" if left_out else ""
        raise InputError(
            f"{count} calibration images are usable{lost}, and --min-images asks for {least}",
            "give more images, or a smaller --min-images",
        )


def named(left_out: Sequence[LeftOut]) -> str:
    """The first few images with their reasons, and how many more there are."""
    more = f" and {len(left_out) - MAX_IN_LINE} more" if len(left_out) > MAX_IN_LINE else ""
    return ", ".join(f"{each.path.name} ({each.reason})" for each in left_out[:MAX_IN_LINE]) + more
