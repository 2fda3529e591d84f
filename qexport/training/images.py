"""What is trained on: batches whose content depends on the seed and the epoch's number alone, whatever ran before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qexport.data.augmentation import DEFAULT, Augmentation, Pixels, augment
from qexport.data.images import read_image, to_tensor
from qexport.data.input_form import InputSpec
from qexport.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

OF_OBJECTS = ("batch_idx", "cls", "bboxes", "keypoints")
"""Labels of which a batch has a row for each object; of others it has one for each image."""
AHEAD = 2
"""Batches that are made while others are trained on."""
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")
Skip = Callable[[Path, str], object]
"""Takes an image that cannot be used and the reason, whenever it is wanted; called where the epoch is iterated."""


@dataclass(frozen=True)
class Batch:
    """Images that a step is made of.

    Attributes:
        pixels: (n, channels, height, width) float32 in the program's own form: RGB in 0..1 unless a file wants others.
        targets: labels as the losses of Ultralytics take them (`batch_idx`, `cls`, `bboxes`, …); None without labels.
    """

    pixels: Tensor
    targets: Mapping[str, Tensor] | None = None


class Images(Protocol):
    """What the loop trains on."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        ...

    def epoch(self, number: int) -> Iterator[Batch]:
        """An epoch's batches, on the CPU: the same for the same number, all of one size."""
        ...


@dataclass(frozen=True)
class Order:
    """Which images make up the batches of an epoch.

    A last batch that would be short is filled up with the images that the epoch began with. Several processes share an
    epoch as `torch.utils.data.DistributedSampler` shares it: each takes every so manieth image.

    Attributes:
        count: images in all.
        batch: of one process.
        seed: 0 or more.
        rank, world: which of how many processes this is.
    """

    count: int
    batch: int
    seed: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return -(-self.count // (self.batch * self.world))

    def shuffled(self, number: int) -> NDArray[np.int64]:
        """The numbers of all images in an epoch's order."""
        return np.random.default_rng((self.seed, number)).permutation(self.count)

    def places(self) -> NDArray[np.int64]:
        """(batches, batch): places in the epoch's order, which begins anew behind its end."""
        return np.arange(len(self) * self.batch * self.world)[self.rank :: self.world].reshape(-1, self.batch)


@dataclass(frozen=True)
class Augmented:
    """`Images` without labels.

    Attributes:
        paths: sorted, each once.
        wanted: what the program takes.
        workers: threads that make batches; what they make does not depend on how many there are.
    """

    paths: tuple[Path, ...]
    wanted: InputSpec
    order: Order
    strength: Augmentation
    workers: int
    on_skip: Skip

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, number: int) -> Iterator[Batch]:
        """See `Images`. Images are read as they are wanted; one that cannot be gives its place to the next.

        Raises:
            InputError: none can be read.
        """
        make = partial(self._batch, number, self.order.shuffled(number))
        for batch, skipped in ahead(make, self.order.places(), self.workers):
            for path, reason in skipped:
                self.on_skip(path, reason)
            yield batch

    def _batch(
        self, number: int, shuffled: NDArray[np.int64], places: NDArray[np.int64]
    ) -> tuple[Batch, list[tuple[Path, str]]]:
        import torch

        skipped: list[tuple[Path, str]] = []
        read = partial(self._read, shuffled, skipped)
        pixels = [self._pixels(read, int(place), (self.order.seed, number, int(place))) for place in places]
        return Batch(torch.from_numpy(np.stack(pixels))), skipped

    def _pixels(self, read: Callable[[int], Pixels], place: int, seed: tuple[int, int, int]) -> NDArray[np.float32]:
        rng, count = np.random.default_rng(seed), self.order.count

        def others() -> list[Pixels]:
            further = rng.choice(max(count - 1, 1), 3, replace=count <= 3)
            return [read(place + 1 + int(step)) for step in further]

        return self.wanted.form.applied(to_tensor(augment(read(place), others, self.wanted, self.strength, rng)))

    def _read(self, shuffled: NDArray[np.int64], skipped: list[tuple[Path, str]], place: int) -> Pixels:
        for step in range(self.order.count):
            path = self.paths[shuffled[(place + step) % self.order.count]]
            try:
                return read_image(path, self.wanted.channels)
            except InputError as error:
                skipped.append((path, error.what))
        path, reason = skipped[0]
        raise InputError(f"none of {self.order.count} images can be read, not even {path} ({reason})", "give others")


def augmented(
    images: Sequence[Path],
    program_input: InputSpec,
    batch: int,
    seed: int,
    *,
    strength: Augmentation = DEFAULT,
    shard: tuple[int, int] = (0, 1),
    workers: int = 1,
    on_skip: Skip = lambda *_: None,
) -> Images:
    """Images to train on without labels, augmented, in batches of `batch`.

    Args:
        images: in any order.
        shard: rank of this process, and how many there are.
        workers: threads that make batches.
        on_skip: takes images that cannot be used; `skipped.setdefault` of a dictionary notes each once.

    Raises:
        InputError: there are no images.
    """
    paths = tuple(sorted(set(images)))
    if not paths:
        raise InputError("no images to train on", "add --data with images in its train split")
    return Augmented(paths, program_input, Order(len(paths), batch, seed, *shard), strength, workers, on_skip)


def ahead(make: Callable[[_Item], _Made], items: Iterable[_Item], workers: int) -> Iterator[_Made]:
    """What `make` gives for each item, in order, with the next few made in threads meanwhile."""
    waiting: deque[Future[_Made]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > max(AHEAD, workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """Parts of a batch, of `size` images each; labels go with their images."""
    for start in range(0, len(batch.pixels), size):
        yield Batch(batch.pixels[start : start + size], _labels_of(batch.targets, start, size))


def _labels_of(targets: Mapping[str, Tensor] | None, start: int, size: int) -> Mapping[str, Tensor] | None:
    """Labels of some of a batch's images, numbered from the first of those."""
    if targets is None:
        return None
    images = slice(start, start + size)
    if "batch_idx" not in targets:
        return {name: each[images] for name, each in targets.items()}
    of = targets["batch_idx"].flatten()
    chosen = (of >= start) & (of < start + size)
    rows = {name: each[chosen if name in OF_OBJECTS else images] for name, each in targets.items()}
    return rows | {"batch_idx": targets["batch_idx"][chosen] - start}
