"""How far a quantised program's raw outputs are from the float program's: one number an image, with little noise.

Detections are what users count, and they jump: a score that passes a threshold, a neighbour that wins over its twin.
What they are made from does not. Each anchor counts as much as the float program believes that an object is there, so
that the background, nearly all of the anchors, says next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from qexport.errors import InputError
from qexport.optimisation.candidate import Candidate, batches
from qexport.optimisation.confidences import NEIGHBOURS, confidence_shift, has_levels, log_scores, score_levels
from qexport.programs.captured_graph import on_device, shared_copy
from qexport.programs.graph_module import end_at, nodes_by_name
from qexport.programs.program import Program
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert, seen_by_readers

SMALLEST = 1e-9
"""Keeps what is divided by from zero."""
ONE_OBJECT = 1.0
"""An image that shows nothing counts as if one anchor were certain of an object: shares of nothing are noise."""
LEAST_SIDE = 0.25
"""In cells of a level: boxes are taken to be as large as that at least."""

Raw = Sequence[Tensor]
"""Raw outputs in the order of `RawNames.all`."""


@dataclass(frozen=True)
class Distance:
    """Of a number of images.

    Attributes:
        scores: (images,) root of the error power of class probabilities by their power. Each is the largest of its
            anchor's neighbourhood: which of two neighbours wins says nothing of what is found.
        boxes: (images,) root of the mean of 1 - IoU of the boxes of anchors, weighted by the float program's scores; 0
            where nobody has told us which outputs are boxes.
        extras: (images,) root of the error power of all other raw outputs by their power.
        confidences: (images, 2) of `confidence_shift`, which is no part of the distance.
    """

    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    extras: NDArray[np.float64]
    confidences: NDArray[np.float64] = field(default_factory=lambda: np.zeros((1, 2)))

    @property
    def total(self) -> NDArray[np.float64]:
        """(images,) the sum of all."""
        return self.scores + self.boxes + self.extras

    @property
    def mean(self) -> float:
        """Over the images."""
        return float(self.total.mean())

    @property
    def shift(self) -> float | None:
        """What the score of a confident object has become more, on average; None where there are no such objects."""
        total, count = self.confidences.sum(axis=0)
        return float(total / count) if count else None


def margin(before: Distance, after: Distance) -> tuple[float, float]:
    """Mean of what was gained image by image, and its standard error: both are of the same images."""
    gained = before.total - after.total
    error = float(gained.std(ddof=1) / np.sqrt(len(gained))) if len(gained) > 1 else float("inf")
    return float(gained.mean()), error


def log_margin(before: Distance, after: Distance) -> tuple[float, float]:
    """Mean logarithm of the ratio of the two, image by image, and its standard error.

    All images have an equal say, whatever their distance: the few largest do not decide for all.
    """
    gained = np.log(before.total + SMALLEST) - np.log(after.total + SMALLEST)
    error = float(gained.std(ddof=1) / np.sqrt(len(gained))) if len(gained) > 1 else float("inf")
    return float(gained.mean()), error


def shift_margin(before: Distance, after: Distance) -> tuple[float, float]:
    """By how much the mean shift of confidences has come nearer to 0, and the standard error of that mean.

    The ratio of two sums over images (Cochran, "Sampling Techniques", 1977, chapter 6); (0, inf) where there are no
    objects, or in one image only.
    """
    first, second = before.shift, after.shift
    if first is None or second is None or len(before.confidences) < 2:
        return 0.0, float("inf")
    sums, counts = before.confidences.T
    error = float(np.sqrt(len(sums)) * (sums - first * counts).std(ddof=1) / counts.sum())
    return abs(first) - abs(second), error


@dataclass(frozen=True)
class HeldOut:
    """What candidates are judged by: images in the program's own form, and what the float program makes of them.

    Attributes:
        reference: the float program.
        inputs: each (batch, channels, height, width) float32.
        raw: for each input the raw outputs in the order of `RawNames.all`.
    """

    reference: Program
    inputs: tuple[Tensor, ...]
    raw: tuple[tuple[Tensor, ...], ...]


def hold_out(reference: Program, images: Sequence[Path], advance: Callable[[], None] = lambda: None) -> HeldOut:
    """Run the float program once over the images that candidates are going to be judged by.

    Raises:
        InputError: none of them can be read.
    """
    graph, inputs, raw = raw_outputs(reference), [], []
    with torch.no_grad():
        for batch in batches(reference, images):
            inputs.append(batch)
            raw.append(tuple(graph(batch)))
            advance()
    if not inputs:
        raise InputError("none of the held-out images can be measured on", "repair the data set")
    return HeldOut(reference, tuple(inputs), tuple(raw))


def distance(
    candidate: Candidate, held_out: HeldOut, advance: Callable[[], None] = lambda: None, device: str = "cpu"
) -> Distance:
    """Run the quantised program over held-out images and say how far it is from the float one.

    Args:
        device: of PyTorch, that the program runs on.
    """
    program = candidate.program
    inserted = insert(program, candidate.plan, Fused, on_device(program, device))
    graph = raw_outputs(program, inserted).to(device)
    return distance_of(program, lambda batch: [each.cpu() for each in graph(batch.to(device))], held_out, advance)


def distance_of(
    program: Program,
    graph: Callable[[Tensor], Raw],
    held_out: HeldOut,
    advance: Callable[[], None] = lambda: None,
) -> Distance:
    """The same of a graph that gives raw outputs."""
    found: list[list[Tensor]] = [[], [], [], []]
    with torch.no_grad():
        for batch, real in zip(held_out.inputs, held_out.raw, strict=True):
            raw = graph(batch)
            each = *parts(program, real, raw), confidence_shift(program, real, raw)
            for part, of_batch in zip(found, each, strict=True):
                part.append(of_batch)
            advance()
    return Distance(*(torch.cat(part).to(torch.float64).numpy() for part in found))


def raw_outputs(program: Program, graph: GraphModule | None = None) -> GraphModule:
    """Return a graph that ends at the raw outputs, a tuple in the order of `RawNames.all`.

    Args:
        graph: the program's with something inserted, which is changed; a copy of the program's own by default. Of a
            value that is quantised, what readers of its integers see is given.
    """
    return giving(graph or shared_copy(program), program.raw.all)


def giving(graph: GraphModule, names: Sequence[str]) -> GraphModule:
    """Let a graph end at some of its values, and return it; what readers of integers see, of what is quantised."""
    found = {**nodes_by_name(graph), **seen_by_readers(graph)}
    return end_at(graph, [found[name] for name in names])


def parts(program: Program, real: Raw, approximate: Raw) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `Distance` has of each image: three tensors (n,), differentiable in `approximate`."""
    layout, names = program.layout, program.raw
    one, other = dict(zip(names.all, real, strict=True)), dict(zip(names.all, approximate, strict=True))
    none = torch.zeros(len(real[0]), device=real[0].device)
    levels = score_levels(program)
    if not levels:
        return none, none, _relative([one[name] for name in names.all], [other[name] for name in names.all])
    scores = [tuple(log_scores([each[name] for name in level]).exp() for each in (one, other)) for level in levels]
    weights = [each.amax(dim=1).square() for each, _ in scores]
    if not has_levels(program):
        others = [(one[name], other[name]) for name in names.all if name not in names.scores]
        return _of_scores(scores), none, _where_objects_are(others, weights)
    total = sum((each.flatten(1).sum(dim=1) for each in weights), none) + ONE_OBJECT
    lost = none
    for name, weight in zip(names.boxes, weights, strict=True):
        shares = 1 - _overlaps(_sides(one[name], layout.reg_max), _sides(other[name], layout.reg_max))
        lost = lost + (shares * weight).flatten(1).sum(dim=1)
    further = none
    for name, weight in zip(names.extras, weights, strict=False):
        further = further + _weighted(one[name], other[name], weight) / len(names.extras)
    if names.prototypes:
        further = further + _relative([one[names.prototypes]], [other[names.prototypes]]).square()
    return _of_scores(scores), _root(lost / total), _root(further)


def _of_scores(scores: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Relative error (n,) of probabilities (n, classes, h, w) of each level, of the float and of the other program."""
    reach = 2 * NEIGHBOURS + 1
    noise = power = torch.zeros(len(scores[0][0]), device=scores[0][0].device)
    for pair in scores:
        real, approximate = (torch.max_pool2d(each, reach, 1, NEIGHBOURS) for each in pair)
        noise = noise + (real - approximate).square().flatten(1).sum(dim=1)
        power = power + real.square().flatten(1).sum(dim=1)
    return _root(noise / (power + reach**2 * ONE_OBJECT))


def _where_objects_are(pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[Tensor]) -> Tensor:
    """Root of the error power by power (n,) of outputs that nobody has told us, weighted by the scores of their cells.

    Those with as many channels are levels of one thing.
    """
    of_cells = {weight.shape[1:]: weight for weight in weights}
    sums: dict[int, Tensor] = {}
    for real, approximate in pairs:
        weight = of_cells.get(real.shape[2:])
        weight = torch.ones_like(real[:, 0]) if weight is None else weight
        noise, power = (each.square().sum(dim=1) for each in (real - approximate, real))
        # One object more that is as large as others: where nothing is found, next to nothing is at stake.
        each = torch.stack(((noise * weight).flatten(1).sum(dim=1), (power * weight).flatten(1).sum(dim=1)))
        each[1] = each[1] + ONE_OBJECT * power.flatten(1).mean(dim=1)
        sums[real.shape[1]] = sums.get(real.shape[1], torch.zeros_like(each)) + each
    shares = [noise / (power + SMALLEST) for noise, power in sums.values()]
    return _root(torch.stack(shares).mean(dim=0))


def _root(power: Tensor) -> Tensor:
    """Square root whose gradient is finite where two programs are equal."""
    return (power + SMALLEST).sqrt()


def _sides(raw: Tensor, bins: int) -> Tensor:
    """Distances (n, 4, h, w) to left, top, right and bottom in cells."""
    if bins == 1:
        return raw
    count, _, height, width = raw.shape
    steps = torch.arange(bins, dtype=raw.dtype, device=raw.device)[None, None, :, None, None]
    return (raw.view(count, 4, bins, height, width).softmax(dim=2) * steps).sum(dim=2)


def _overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union (n, h, w) of boxes around the same points."""
    one, other = (torch.clamp(each, min=0) for each in (one, other))
    first, second = ((each[:, :2] + each[:, 2:]).clamp(min=LEAST_SIDE) for each in (one, other))
    shared = torch.minimum(one[:, :2], other[:, :2]) + torch.minimum(one[:, 2:], other[:, 2:])
    area = shared.clamp(min=LEAST_SIDE).prod(dim=1)
    return area / (first.prod(dim=1) + second.prod(dim=1) - area).clamp(min=SMALLEST)


def _weighted(real: Tensor, approximate: Tensor, weight: Tensor) -> Tensor:
    """Error power by power (n,) of values (n, c, h, w), each place weighted by (n, h, w)."""
    noise, power = ((each.square().sum(dim=1) * weight).flatten(1).sum(dim=1) for each in (real - approximate, real))
    return noise / (power + SMALLEST)


def _relative(real: Raw, approximate: Raw) -> Tensor:
    """Root of the mean over outputs of error power by power, (n,)."""
    shares = [
        (a - b).square().flatten(1).sum(dim=1) / (a.square().flatten(1).sum(dim=1) + SMALLEST)
        for a, b in zip(real, approximate, strict=True)
    ]
    return _root(torch.stack(shares).mean(dim=0))
