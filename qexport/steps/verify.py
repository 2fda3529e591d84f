"""Read a file back and run it: is it what was planned, and does its runtime compute it?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qexport.backends.protocol import Backend
from qexport.backends.registry import find_backend
from qexport.compat.one_at_a_time import sources_forgotten
from qexport.data.selection import image_files
from qexport.lowering.request import Target
from qexport.planning.plan import QuantPlan
from qexport.programs.program import Program
from qexport.programs.sample_inputs import named_inputs
from qexport.simulation.meters import metered, show, sqnr_of
from qexport.steps.plan import computes_in_integers
from qexport.verification.constants import check_weights
from qexport.verification.finite import FiniteRunner, NotFiniteError, generated_input
from qexport.verification.outcome import Verification
from qexport.verification.output_check import check_outputs
from qexport.verification.result import Summary, summary_of
from qexport.verification.verify import verify as verified


@dataclass(frozen=True)
class Verified:
    """What is known of a file that was read back and run.

    Attributes:
        verification: what was compared with the plan; None where activations are float.
        stored: what the file says of itself.
        sqnr: signal to quantisation-noise ratio in dB of the plan's values; None where they are float.
    """

    verification: Verification | None
    stored: Summary
    sqnr: Mapping[str, float | None] | None = None


@sources_forgotten()
def verify(
    path: str | Path,
    program: Program,
    target: Target,
    plan: QuantPlan | None = None,
    images: str | Path | Sequence[Path] = (),
    threads: int = 2,
    reference: Program | None = None,
) -> Verified:
    """Read a file back, run it, and compare it with its plan and with the program.

    Args:
        images: files to run it on, of which a few are taken, or a data set; without any a float file is run on a
            generated picture.
        threads: CPU threads of its runtime.
        reference: the float program that noise is measured against, where passes have changed `program`'s weights.

    Raises:
        VerificationError: a tensor differs from the plan, or the runtime computes something else.
    """
    path, backend, files = Path(path), find_backend(target.format), image_files(images)
    named = named_inputs(files, program)
    inputs, further = [given for _, given in named], _further(files, program, named)
    half = target.precision == "fp16"
    runner = FiniteRunner(backend.runner(path, threads), program, backend.info.name, half)
    try:
        return _verified(path, backend, runner, program, target, plan, inputs, reference, further)
    except NotFiniteError as error:
        names = (str(paths[error.place]) for paths, given in named if np.array_equal(given, error.batch))
        raise error.named(next(names, "that was generated")) from error


def _verified(
    path: Path,
    backend: Backend,
    runner: FiniteRunner,
    program: Program,
    target: Target,
    plan: QuantPlan | None,
    inputs: Sequence[NDArray[np.float32]],
    reference: Program | None,
    further: Iterable[NDArray[np.float32]],
) -> Verified:
    """The same with what is run, on batches of images."""
    if plan is not None and computes_in_integers(target):
        meters = metered(program, plan, reference) if program.graph.instrumentable else None
        stored = backend.read(path)
        same = verified(program, plan, stored, runner, inputs, meters if program.graph.whole else None, further)
        if meters is not None and not program.graph.whole:
            show(meters, inputs)
        return Verified(same, summary_of(stored), sqnr_of(meters) if meters else None)
    if inputs:
        check_outputs(program.graph, program, runner, inputs, backend.info.name, further)
    else:
        runner(generated_input(program))
    stored = backend.read(path)
    if plan is not None:
        check_weights(program, plan, stored)
    return Verified(None, summary_of(stored))


def _further(
    files: Sequence[Path], program: Program, named: list[tuple[tuple[Path, ...], NDArray[np.float32]]]
) -> Iterator[NDArray[np.float32]]:
    """Batches of the files behind those that are named, one at a time; `named` has the one that was yielded last."""
    start = 1 + max((files.index(path) for paths, _ in named for path in paths), default=len(files))
    for place in range(start, len(files), program.input.batch):
        for pair in named_inputs(files[place : place + program.input.batch], program, count=1):
            named[:] = [pair]
            yield pair[1]
