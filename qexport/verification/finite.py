"""Does an artifact give numbers at all? NaN and infinity are what a lost range looks like from outside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qexport.backends.protocol import Runner
from qexport.errors import InputError, QexportError, VerificationError
from qexport.planning.half_range import MAX_HALF
from qexport.programs.program import Program, Value, every_output

LEAVE_OUT = "leave the image out, or repair the model"


class NotFiniteError(VerificationError):
    """Outputs are NaN or infinite.

    Attributes:
        batch: what was given, (n, channels, height, width) float32.
        place: the first image of the batch that it happened for.
        own: the model's are, too.
    """

    def __init__(self, what: str, remedy: str, batch: NDArray[np.float32], place: int, own: bool = False) -> None:
        super().__init__(what, remedy)
        self.batch, self.place, self.own = batch, place, own

    def named(self, image: str) -> QexportError:
        """The same with the image's name; where the model is to blame, as an error of the input."""
        return (InputError if self.own else VerificationError)(f"{self.what} (image {image})", self.remedy)


class _FoundError(Exception):
    """Ends a run where what was looked for is found."""


@dataclass(frozen=True)
class FiniteRunner:
    """A `Runner` that refuses outputs which are not finite, but for infinities that are the program's own.

    Attributes:
        runtime: what the refusal names.
        half: activations are computed in FP16.
    """

    runner: Runner
    program: Program
    runtime: str
    half: bool = False

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch and return every output.

        Raises:
            NotFiniteError: some numbers are NaN or infinite; it says where that begins, if that can be known.
        """
        found = self.runner(batch)
        wrong = not_finite(found)
        if wrong:
            self._explain(batch, found, wrong)
        return found

    def _explain(self, batch: NDArray[np.float32], found: Sequence[NDArray[np.float32]], wrong: int) -> None:
        with torch.no_grad():
            own = [output.numpy() for output in every_output(self.program.graph(torch.from_numpy(batch)))]
        if any(np.isnan(output).any() for output in own):
            first = first_beyond(self.program, batch)
            begins = f", first in {first[0].described}" if first else ""
            what = f"the model itself computes NaN{begins}"
            raise NotFiniteError(what, LEAVE_OUT, batch, _first_image(own, len(batch)), own=True)
        if wrong <= not_finite(own):
            return
        total, remedy = sum(output.size for output in found), "use another --precision"
        first = first_beyond(self.program, batch, MAX_HALF) if self.half else None
        begins = "a value leaves the range of this precision"
        if first:
            begins = f"{first[0].described} reaches {first[1]:.3g}, and FP16 ends at {MAX_HALF:.0f}"
            remedy = f"--keep-float {first[0].name}, or another --precision"
        raise NotFiniteError(
            f"{self.runtime}: {wrong} of {total} numbers in the outputs are NaN or infinite, the model's are not",
            f"{begins}: {remedy}",
            batch,
            _first_image(found, len(batch)),
        )


def not_finite(outputs: Sequence[NDArray[np.generic]]) -> int:
    """How many numbers are NaN or infinite."""
    return sum(output.size - int(np.isfinite(output).sum()) for output in outputs)


def _first_image(outputs: Sequence[NDArray[np.generic]], count: int) -> int:
    """The first of a batch's images whose outputs are not all finite; 0 where outputs are not of single images."""
    lost = (
        place for place in range(count) if any(len(each) == count and not_finite([each[place]]) for each in outputs)
    )
    return next(lost, 0)


def first_beyond(
    program: Program, batch: NDArray[np.float32], bound: float = float("inf")
) -> tuple[Value, float] | None:
    """The first value of a program that is NaN, infinite or beyond ±`bound` for a batch, and its largest magnitude."""
    found: list[tuple[Value, float]] = []

    def see(name: str, tensor: object) -> None:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not tensor.numel():
            return
        peak = float(tensor.abs().max())  # NaN where any is
        if not peak <= bound or peak == float("inf"):
            found.append((program.values[name], peak))
            raise _FoundError

    with torch.no_grad(), suppress(_FoundError):
        program.graph.watched(list(program.values), see)(torch.from_numpy(batch))
    return found[0] if found else None


def generated_input(program: Program) -> NDArray[np.float32]:
    """A batch of smooth pictures in the program's form, where nobody gave an image to try it on."""
    coarse = torch.rand(program.input.batch, program.input.channels, 4, 4, generator=torch.Generator().manual_seed(0))
    pictures = nn.functional.interpolate(coarse, program.input.imgsz, mode="bilinear").numpy()
    return np.stack([program.input.form.applied(picture) for picture in pictures])
