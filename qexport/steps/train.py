"""Train a quantised network so that it loses less: images are held out from training, and what they say decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qexport.compat.one_at_a_time import sources_forgotten
from qexport.data.choice import take
from qexport.data.input_form import InputSpec
from qexport.data.selection import image_files
from qexport.errors import InputError
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import hold_out
from qexport.optimisation.passes import HELD_OUT
from qexport.progress import Progress, Silent
from qexport.system.launch import ALONE, Launch
from qexport.training import loop
from qexport.training.images import Batch, Images, Skip, augmented
from qexport.training.judge import Judge
from qexport.training.labelled_loss import labelled_loss
from qexport.training.loop import Trained
from qexport.training.processes import OfFirst, anyone
from qexport.training.recipe import Recipe
from qexport.training.state import Store

SILENT = Silent()
RECIPE = Recipe()
EVERY = 8
"""One of so many images is kept from training, to judge each epoch by."""
MIN_JUDGED, MAX_JUDGED = 8, 40
Labelling = Callable[[Sequence[Path], bool], Images]
"""Image files, and whether they are to train on → batches of them, of which each process then has its share.

Some of those have to have labels."""


@dataclass(frozen=True)
class Split:
    """Image files that are trained on, and those that are held out, each sorted by name."""

    train: tuple[Path, ...]
    held_out: tuple[Path, ...]


def split(images: Sequence[Path]) -> Split:
    """Hold out one of `EVERY` images, 8 at least and 40 at most, of those that passes do not see.

    The same images in another order give the same split. Of fewer than 16 images half is held out.

    Raises:
        InputError: there are fewer than two.
    """
    every = sorted(images, key=lambda image: (image.name, str(image)))
    if len(every) < 2:
        raise InputError("training needs two images at least, one of them to judge by", "give more images")
    unseen = every[::HELD_OUT]
    count = min(MAX_JUDGED, max(MIN_JUDGED, len(every) // EVERY), len(every) // 2)
    held_out = take(unseen, count=count)
    kept = set(held_out)
    return Split(tuple(image for image in every if image not in kept), held_out)


@sources_forgotten()
def train(
    candidate: Candidate,
    images: str | Path | Sequence[Path],
    progress: Progress = SILENT,
    *,
    recipe: Recipe = RECIPE,
    store: Store | None = None,
    labelled: Labelling | None = None,
    stopped: Callable[[], bool] = lambda: False,
    on_skip: Skip = lambda *_: None,
    fraction: float = 1.0,
    count: int | None = None,
    launch: Launch = ALONE,
) -> Trained:
    """Train a candidate's weights, biases and scales; return the best of its epochs, or what came in.

    That is judged by the simulated network on images that are held out from training: by its distance from the float
    one, and by its loss where there are labels.

    Args:
        images: image files; or a data set whose train split is taken: a YAML, a folder of images, or a list in a file.
        recipe: how long, how fast, and by what.
        store: keeps the state after each epoch, and has that of an earlier run to go on from.
        labelled: makes batches with labels; None for augmented images and no labels.
        stopped: asked after each batch; where it says so, training ends as by an interrupt.
        on_skip: takes images that cannot be read, and why.
        fraction: share of a data set's images, evenly chosen.
        count: the greatest number of them; None for 512, 0 for all.
        launch: the processes that share each step, see `qexport.training.processes`.

    Raises:
        InputError: images are missing, or fewer than processes, or errors inside of the program cannot be measured.
    """
    if not candidate.measurable:
        obstacle = candidate.program.graph.obstacle or "no raw outputs"
        raise InputError(f"this program cannot be trained: {obstacle}", "export it without training")
    parts = split(image_files(images, fraction, count))
    recipe = _fitting(recipe, wanted := candidate.program.input, len(parts.train), launch)
    if labelled:
        made = labelled(parts.train, True)
    else:
        share = launch.share(recipe.batch)
        made = augmented(parts.train, wanted, share, recipe.seed, shard=launch.shard, on_skip=on_skip)
    judged = tuple(labelled(parts.held_out, False).epoch(1)) if labelled and recipe.labels else ()
    with progress.step("Measuring held-out images", len(parts.held_out)) as advance:
        held_out = hold_out(candidate.reference, parts.held_out, advance)
    judge, kept = Judge(held_out, judged, labelled_loss), OfFirst(store, launch) if store else None
    shared = Stoppable(made, lambda: anyone(launch, stopped()))
    trained = loop.train(candidate, shared, judge, recipe, kept, progress, launch)
    return replace(trained, record=replace(trained.record, images=len(parts.train)))


def _fitting(recipe: Recipe, wanted: InputSpec, count: int, launch: Launch) -> Recipe:
    """The recipe with no more images in a step than there are, and as many as can be shared equally."""
    batch = recipe.batch
    if wanted.dynamic or wanted.batch == 1:  # to see an image twice in a step gains nothing
        batch = min(batch, count)
    if batch < launch.world:
        what = f"{launch.world} processes cannot share a step of {batch} image{'s'[: batch != 1]}"
        raise InputError(what, "start fewer, or give more images")
    return replace(recipe, batch=launch.share(batch) * launch.world, device=launch.device(recipe.device))


@dataclass(frozen=True)
class Stoppable:
    """Images that end with an interrupt, at a batch's end, once somebody asks for it."""

    images: Images
    stopped: Callable[[], bool]

    def __len__(self) -> int:
        return len(self.images)

    def epoch(self, number: int) -> Iterator[Batch]:
        """See `Images`."""
        for batch in self.images.epoch(number):
            if self.stopped():
                raise KeyboardInterrupt
            yield batch
