"""How like FP32 a plan is on calibration images: what can be said of a file before it is evaluated, or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from qexport.data.choice import take
from qexport.detections.agreement import Findings, compare_all, findings
from qexport.detections.equating import thresholds
from qexport.detections.layout import HeadLayout
from qexport.detections.matching import CONFIDENCE
from qexport.optimisation.candidate import Candidate, batch_count, batches
from qexport.programs.program import every_output
from qexport.progress import Progress, Silent
from qexport.simulation.fused import Fused
from qexport.simulation.meters import metered, raw_floors, sqnr_of
from qexport.simulation.simulate import Run, simulation
from qexport.verification.likeness import Likeness
from qexport.verification.output_fidelity import comparisons

MAX_IMAGES = 24
"""Calibration images that are compared on, evenly chosen."""
WORKERS = 2
"""Batches that are computed at once, each by one thread: see `qexport.calibration.calibrate`."""
SILENT = Silent()
Outputs = list[NDArray[np.float32]]


def likeness(candidate: Candidate, images: Sequence[Path], progress: Progress = SILENT) -> Likeness | None:
    """Run the float program and the plan's simulation on up to `MAX_IMAGES` images; None if none can be read.

    Args:
        images: files of calibration images.
    """
    program, layout = candidate.program, candidate.program.layout
    floors = raw_floors(program)
    plan, reference = candidate.plan, candidate.reference
    whole = program.graph.whole
    meters = metered(program, plan, reference, floors, Fused, both=whole) if candidate.measurable else None
    run = _run(candidate, meters)
    compared = comparisons(program) if layout.head == "unknown" and not meters else []
    real, own, count = list[Findings](), list[Findings](), 0
    chosen = take(images, count=MAX_IMAGES)
    with progress.step("Comparing with FP32", batch_count(program, chosen)) as advance:
        for exact, rounded, read in _outputs(candidate, run, chosen, advance):
            count += read
            for each, one, other in zip(compared, exact, rounded, strict=False):
                each.add(one, other, read)
            if layout.head != "unknown":
                real += [findings(image, layout) for image in exact[0][:read]]
                own += [findings(image, layout) for image in rounded[0][:read]]
    if not count:
        return None
    sqnr = sqnr_of(meters) if meters else {each.name: each.fidelity.sqnr_db for each in compared}
    return _summary(real, own, sqnr, layout, count)


def _run(candidate: Candidate, meters: GraphModule | None) -> Run:
    """What gives the float program's outputs and the quantised one's, and feeds the meters, if there are any."""
    if meters is not None and candidate.program.graph.whole:
        return meters
    whole = simulation(candidate.program, candidate.plan)

    def both(batch: Tensor) -> Any:
        if meters is not None:  # they end where the body does
            meters(batch)
        return candidate.reference.graph(batch), whole(batch)

    return both


def _outputs(
    candidate: Candidate, run: Run, images: Sequence[Path], advance: Callable[[], None]
) -> Iterator[tuple[Outputs, Outputs, int]]:
    """Outputs of the float program and of the simulation for each batch, and how many images it is of."""
    size = candidate.program.input.batch

    def computed(start: int) -> list[tuple[Outputs, Outputs, int]]:
        torch.set_num_threads(1)
        paths, found = images[start : start + size], []
        with torch.no_grad():
            for batch in batches(candidate.program, paths):
                exact, rounded = ([output.numpy() for output in every_output(each)] for each in run(batch))
                found.append((exact, rounded, len(paths)))
        return found

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(WORKERS if candidate.measurable else 1) as pool:
            for found in pool.map(computed, range(0, len(images), size)):  # in order, whoever is first
                yield from found
                advance()
    finally:
        torch.set_num_threads(threads)


def _summary(
    real: Sequence[Findings],
    own: Sequence[Findings],
    noise: Mapping[str, float | None],
    layout: HeadLayout,
    images: int,
) -> Likeness:
    sqnr = {name: None if each is None else round(each, 2) for name, each in noise.items()}
    if not real:
        return Likeness(images, sqnr)
    share = compare_all(real, own, layout).share
    share = None if share is None else round(share, 4)
    if layout.classifier:
        return Likeness(images, sqnr, share)
    one, other = ([each.detections for each in side] for side in (real, own))
    sure, found = (sum(int((each.scores >= CONFIDENCE).sum()) for each in side) for side in (one, other))
    return Likeness(images, sqnr, share, sure, found, thresholds(one, other, None))
