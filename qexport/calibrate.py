"""One streaming pass of the program over the calibration images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

LEAST_USABLE = 0.5
"""Share of the images that must be readable: with fewer, something is wrong with the data set, not with a file."""


class _Watched(Interpreter):
    """Run the program and show each value to its observer; values are freed as soon as nothing reads them."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph, garbage_collect_values=True)
        watched = (v.name for v in program.values.values() if v.region == "body" and v.operation not in MOVES_DATA)
        self.observers = {name: Observer() for name in watched}

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


def calibrate(program: Program, images: Sequence[Path], on_image: Callable[[], None]) -> CalibrationTable:
    """Run the program over `images` and return what its values looked like.

    Memory does not grow with the number of images: each is read, run and dropped.

    Args:
        on_image: called after each image, for a progress bar.

    Raises:
        InputError: fewer than half of the images are usable, or a value is not finite.
    """
    skipped: list[tuple[str, str]] = []
    used: list[Path] = []
    watched = _Watched(program)
    with torch.no_grad():
        for path, pixels in stream(images, program.imgsz, lambda path, reason: skipped.append((path.name, reason))):
            # A fixed batch larger than one is filled with the same image, which changes no statistic.
            batch = torch.from_numpy(pixels)[None].expand(program.batch, -1, -1, -1)
            watched.run(batch)
            used.append(path)
            on_image()
    if len(used) < max(1, LEAST_USABLE * len(images)):
        raise InputError(
            f"only {len(used)} of {len(images)} calibration images are usable ({skipped[0][1]})",
            "repair the data set",
        )
    return CalibrationTable(
        program=program.fingerprint,
        preprocess=preprocess_name(program.imgsz),
        images=fingerprint(used),
        image_names=tuple(path.name for path in used),
        skipped=tuple(skipped),
        statistics={name: observer.statistics() for name, observer in watched.observers.items()},
    )
