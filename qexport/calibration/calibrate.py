"""One streaming pass of the program over the calibration images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from qexport.calibration.calibration_table import CalibrationTable, load_table
from qexport.calibration.importance import importance
from qexport.calibration.observer import Observer, samples_each
from qexport.calibration.statistics import Statistics, merge, unit_interval
from qexport.data.choice import MAX_LEARNED, learned_from
from qexport.data.dataset import fingerprint
from qexport.data.images import stream
from qexport.data.selection import LeftOut
from qexport.data.usable import check_enough
from qexport.data.views import view_count, with_views
from qexport.errors import InputError
from qexport.programs.program import Program, Region, Value, observed_sources
from qexport.system.machine import environment
from qexport.version import __version__

UNIT_INTERVAL = frozenset({"sigmoid"})
"""Operations that are not watched, a quarter of all: their results lie in 0..1 whatever the images show."""
REMEDY = "leave the image out, or repair the model"


class _Watched:
    """Observers of one thread, and the program's graph that feeds them."""

    def __init__(self, program: Program, samples: int) -> None:
        names = [value.name for value in described(program) if value.operation not in UNIT_INTERVAL]
        self.observers = {name: Observer(samples) for name in names}
        self.runs = 0
        self._program, self._path = program, Path()
        self._run = program.graph.watched(names, self._see)

    def run(self, images: Tensor, path: Path) -> None:
        """Run the program once on an image file, in the form that it wants its input in."""
        self.runs += 1
        self._path = path
        self._run(images)

    def _see(self, name: str, tensor: Tensor) -> None:
        try:
            self.observers[name].update(tensor)
        except ValueError as error:
            where = self._program.values[name].described
            raise InputError(f"{where} is {error} for calibration image {self._path}", REMEDY) from error


def described(program: Program) -> Iterator[Value]:
    """Values that a table has an entry for."""
    body = [value for value in program.values.values() if value.region is Region.BODY]
    read = {source for value in body for name in value.inputs for source in observed_sources(program, name)}
    own = {value.name for value in body if observed_sources(program, value.name) == (value.name,)}
    return (value for value in program.values.values() if value.name in read | own)


def preprocess_name(program: Program) -> str:
    """How images become inputs, as recorded in tables and reports."""
    wanted = program.input
    colours = {1: "grey", 3: ""}.get(wanted.channels, f"{wanted.channels} channels")
    form = f"{colours}, {wanted.form.pixels}" if colours else wanted.form.description
    return f"{wanted.preprocess} {wanted.imgsz[0]}x{wanted.imgsz[1]}, {form}"


def passes_for(program: Program, images: int, weighted: bool = False, views: bool = False) -> int:
    """How often `calibrate` calls its `on_image`, where every image can be read."""
    images += view_count(images, program.input) if views else 0
    return images + (min(images, MAX_LEARNED) if weighted and program.graph.instrumentable else 0)


def calibrate(
    program: Program,
    images: Sequence[Path],
    on_image: Callable[[], None],
    workers: int = 2,
    weighted: bool = False,
    views: bool = False,
) -> CalibrationTable:
    """Run the program over `images` and return what its values looked like.

    Memory does not grow with the number of images: each is read, run and dropped. Images are spread over threads
    that each compute alone: operations of this size gain little from more cores, and lose a lot on a busy machine.
    Merging the threads' statistics is exact, so the result does not depend on who did which image.

    Args:
        on_image: called after each image, for a progress bar.
        workers: images in flight.
        weighted: measure importance, too, on some of the images and where the graph can be differentiated.
        views: see few images in other pictures, too: `qexport.data.views`.

    Raises:
        InputError: fewer than half of the images are usable, or a value is not finite.
    """
    threads = torch.get_num_threads()
    try:
        with with_views(images, program.input) if views else nullcontext(tuple(images)) as seen:
            statistics, reasons = _watched(program, seen, on_image, workers)
            usable = [path for path, reason in zip(seen, reasons, strict=True) if not reason]
            if weighted and program.graph.instrumentable:
                statistics = _with_importance(program, statistics, usable, on_image, workers)
    finally:
        torch.set_num_threads(threads)
    return CalibrationTable(
        program=program.fingerprint,
        preprocess=preprocess_name(program),
        images=fingerprint(images),
        image_names=tuple(path.name for path, reason in zip(images, reasons, strict=False) if not reason),
        skipped=tuple((path.name, reason) for path, reason in zip(images, reasons, strict=False) if reason),
        statistics=statistics,
        made_by=_packages(),
        views=len(seen) - len(images),
    )


def kept_table(
    path: Path, program: Program, images: Sequence[Path], weighted: bool, views: bool = False
) -> CalibrationTable | None:
    """The table that an earlier run has left; None unless `calibrate` would make the same one now.

    Another model, preprocessing, choice of images or version makes another one, and so do other bytes of an image.
    """
    try:
        table = load_table(path)
    except InputError:  # there is none, or nothing that can be read
        return None
    more = view_count(len(images), program.input) if views else 0
    wanted = program.fingerprint, preprocess_name(program), fingerprint(images), more, _packages()
    found = table.program, table.preprocess, table.images, table.views, table.made_by
    return table if found == wanted and table.weighted == (weighted and program.graph.instrumentable) else None


def _packages() -> str:
    """What decides on a table besides the program and the images."""
    versions = {"qexport": __version__, **environment(()).packages}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _watched(
    program: Program, images: Sequence[Path], on_image: Callable[[], None], workers: int
) -> tuple[dict[str, Statistics], list[str]]:
    """Statistics of every value, and for each image why it could not be used, "" where it was."""
    own, wanted = threading.local(), program.input
    everyone: list[_Watched] = []

    def start() -> None:
        torch.set_num_threads(1)
        own.watched = _Watched(program, samples_each(len(images)))
        everyone.append(own.watched)

    def run(path: Path) -> str:
        reasons: list[str] = []
        with torch.no_grad():
            for _, pixels in stream([path], wanted.imgsz, lambda _, why: reasons.append(why), *wanted.image_form):
                # A fixed batch larger than one is filled with the same image, which changes no statistic.
                given = torch.from_numpy(wanted.form.applied(pixels))
                own.watched.run(given[None].expand(wanted.batch, -1, -1, -1), path)
        on_image()
        return "".join(reasons)

    with ThreadPoolExecutor(workers, initializer=start) as pool:
        reasons = list(pool.map(run, images))
    check_enough(len(images), [LeftOut(path, why) for path, why in zip(images, reasons, strict=True) if why])
    return _merged(program, everyone), reasons


def _merged(program: Program, everyone: Sequence[_Watched]) -> dict[str, Statistics]:
    """Statistics of every value over the threads that saw an image."""
    active = [watched.observers for watched in everyone if watched.runs]

    def of(value: Value) -> Statistics:
        if value.operation in UNIT_INTERVAL:
            return unit_interval()
        return merge(observers[value.name].statistics() for observers in active)

    return {value.name: of(value) for value in described(program)}


def _with_importance(
    program: Program,
    statistics: Mapping[str, Statistics],
    images: Sequence[Path],
    on_image: Callable[[], None],
    workers: int,
) -> dict[str, Statistics]:
    """The same statistics with importance for every value that is watched and that the outputs depend on."""
    limits = {
        name: each.limit for name, each in statistics.items() if program.values[name].operation not in UNIT_INTERVAL
    }
    found = importance(program, learned_from(images), limits, on_image, workers)
    return {name: replace(each, importance=found.get(name)) for name, each in statistics.items()}
