"""Does an artifact give numbers at all? NaN and infinity are what a lost range looks like from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qexport.backends.protocol import Runner
from qexport.errors import VerificationError
from qexport.programs.program import Program, every_output


@dataclass(frozen=True)
class FiniteRunner:
    """A `Runner` that refuses outputs which are not finite where the program's are.

    Attributes:
        runtime: what the refusal names.
    """

    runner: Runner
    program: Program
    runtime: str

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch and return every output.

        Raises:
            VerificationError: some numbers are NaN or infinite.
        """
        found = self.runner(batch)
        wrong = not_finite(found)
        if wrong and wrong > not_finite(self._expected(batch)):
            total = sum(output.size for output in found)
            raise VerificationError(
                f"{self.runtime}: {wrong} of {total} numbers in the outputs are NaN or infinite, the model's are not",
                "a value leaves the range of this precision: use another --precision",
            )
        return found

    def _expected(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with torch.no_grad():
            return [output.numpy() for output in every_output(self.program.graph(torch.from_numpy(batch)))]


def not_finite(outputs: Sequence[NDArray[np.generic]]) -> int:
    """How many numbers are NaN or infinite."""
    return sum(output.size - int(np.isfinite(output).sum()) for output in outputs)


def generated_input(program: Program) -> NDArray[np.float32]:
    """A batch of smooth pictures in the program's form, where nobody gave an image to try it on."""
    coarse = torch.rand(program.input.batch, program.input.channels, 4, 4, generator=torch.Generator().manual_seed(0))
    pictures = nn.functional.interpolate(coarse, program.input.imgsz, mode="bilinear").numpy()
    return np.stack([program.input.form.applied(picture) for picture in pictures])
