"""One streaming pass of the program over the calibration images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from qexport.calibration_table import CalibrationTable
from qexport.dataset import fingerprint
from qexport.errors import InputError
from qexport.images import stream
from qexport.observer import Observer
from qexport.program import MOVES_DATA, Program
from qexport.statistics import Statistics, merge

LEAST_USABLE = 0.5
"""Share of the images that must be readable: with fewer, something is wrong with the data set, not with a file."""


class _Watched(Interpreter):
    """Run the program and show each value to its observer; values are freed as soon as nothing reads them."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph, garbage_collect_values=True)
        watched = (v.name for v in program.values.values() if v.region == "body" and v.operation not in MOVES_DATA)
        self.observers = {name: Observer() for name in watched}
        self.runs = 0

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program once."""
        self.runs += 1
        return super().run(*args, **kwargs)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        observer = self.observers.get(n.name)
        if observer is not None and isinstance(result, Tensor):
            self._observe(n.name, observer, result)
        return result

    def _observe(self, name: str, observer: Observer, tensor: Tensor) -> None:
        try:
            observer.update(tensor)
        except ValueError as error:
            raise InputError(
                f"{name} is {error} for a calibration image", "the checkpoint may be damaged: try it in float"
            ) from error


def preprocess_name(imgsz: tuple[int, int]) -> str:
    """How images become inputs, as recorded in tables and reports."""
    return f"letterbox {imgsz[0]}x{imgsz[1]}, RGB, 0..1"


def calibrate(
    program: Program, images: Sequence[Path], on_image: Callable[[], None], workers: int = 2
) -> CalibrationTable:
    """Run the program over `images` and return what its values looked like.

    Memory does not grow with the number of images: each is read, run and dropped. Images are spread over threads
    that each compute alone: operations of this size gain little from more cores, and lose a lot on a busy machine.
    Merging the threads' statistics is exact, so the result does not depend on who did which image.

    Args:
        on_image: called after each image, for a progress bar.
        workers: images in flight.

    Raises:
        InputError: fewer than half of the images are usable, or a value is not finite.
    """
    own = threading.local()
    everyone: list[_Watched] = []

    def start() -> None:
        torch.set_num_threads(1)
        own.watched = _Watched(program)
        everyone.append(own.watched)

    def run(path: Path) -> str:
        reasons: list[str] = []
        with torch.no_grad():
            for _, pixels in stream([path], program.imgsz, lambda _, reason: reasons.append(reason)):
                # A fixed batch larger than one is filled with the same image, which changes no statistic.
                own.watched.run(torch.from_numpy(pixels)[None].expand(program.batch, -1, -1, -1))
        on_image()
        return "".join(reasons)

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=start) as pool:
            reasons = list(pool.map(run, images))
    finally:
        torch.set_num_threads(threads)
    skipped = tuple((path.name, reason) for path, reason in zip(images, reasons, strict=True) if reason)
    _check_usable(len(images), skipped)
    return CalibrationTable(
        program=program.fingerprint,
        preprocess=preprocess_name(program.imgsz),
        images=fingerprint(images),
        image_names=tuple(path.name for path, reason in zip(images, reasons, strict=True) if not reason),
        skipped=skipped,
        statistics=_merged(everyone),
    )


def _merged(everyone: Sequence[_Watched]) -> dict[str, Statistics]:
    """Statistics of every value over the threads that saw an image."""
    active = [watched for watched in everyone if watched.runs]
    return {name: merge(w.observers[name].statistics() for w in active) for name in active[0].observers}


def _check_usable(total: int, skipped: Sequence[tuple[str, str]]) -> None:
    usable = total - len(skipped)
    if not total:
        raise InputError("no calibration images", "add --data with images in its train split")
    if usable < max(1, LEAST_USABLE * total):
        name, reason = skipped[0]
        raise InputError(
            f"only {usable} of {total} calibration images are usable, the first that is not is {name} ({reason})",
            "repair the data set",
        )
