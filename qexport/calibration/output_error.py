"""What an error of a program's raw outputs costs, to second order: the outputs, each weighted by the root of it.

The squared length of a change of these numbers stands for what the change does to the detections. Boxes: the squared
error of their edges as a share of the box's size, mean over anchors weighted by their squared score. Scores: the
squared error of the probabilities, each the largest of its neighbourhood, as a share of all of them; the derivative of
a sigmoid lets logits that say "nothing" weigh nothing. Outputs that nobody has told us the meaning of: their squared
relative error, weighted by the squared scores of the same position where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qexport.programs.program import Program

ONE_OBJECT = 1.0
"""Squared scores that an image is taken to have besides: where nothing is found, next to nothing is at stake."""
NEIGHBOURHOOD = 3
"""Anchors in a row, and rows: which of two neighbours finds an object makes no difference."""
LEAST_SIZE = 0.5
"""Width and height of a box, at least, in cells of its level."""


def weighted_outputs(program: Program, raw: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yield tensors, differentiable in the raw outputs, whose squared changes add up to what a small error costs.

    Args:
        raw: what `program.raw` names, by name: (n, c, …), levels with the same … share their positions.
    """
    names = program.raw
    if program.layout.classifier:
        yield from (raw[name].softmax(dim=1) for name in names.all)
        return
    scores = {name: raw[name].sigmoid() for name in names.scores}
    found, known = _found(scores), not program.guessed and program.layout.head != "queries"
    joint = (_joint(name, scores) for name in scores)
    yield from _shares([_largest(each) for each in joint], NEIGHBOURHOOD**2) if known else _shares(list(joint))
    others = [*names.boxes, *names.extras]
    weights = {name: _of_position(raw[name], found) for name in others}
    if not known:
        for channels in sorted({raw[name].shape[1] for name in names.boxes}):  # levels of one output have as many
            yield from _relative({name: raw[name] for name in names.boxes if raw[name].shape[1] == channels}, weights)
    else:
        total = sum(_power(weights[name]) for name in names.boxes) + ONE_OBJECT
        for name in names.boxes:
            yield _relative_edges(raw[name], program.layout.reg_max) * weights[name] / total**0.5
    yield from _relative({name: raw[name] for name in names.extras}, weights)
    if names.prototypes:
        prototypes = raw[names.prototypes]
        yield from _relative({names.prototypes: prototypes}, {names.prototypes: torch.ones_like(prototypes[:, :1])})


def _found(scores: Mapping[str, Tensor]) -> dict[tuple[int, ...], Tensor]:
    """The best score of each position, (n, 1, …) by shape; where several outputs tell of it, their product."""
    found: dict[tuple[int, ...], Tensor] = {}
    for score in scores.values():
        best, place = score.detach().amax(dim=1, keepdim=True), score.shape[2:]
        found[place] = found[place] * best if place in found else best
    return found


def _of_position(output: Tensor, found: Mapping[tuple[int, ...], Tensor]) -> Tensor:
    """Scores of an output's positions, (n, 1, …); all alike where none belong to it."""
    scores = found.get(output.shape[2:])
    return torch.ones_like(output[:, :1]).detach() if scores is None else scores


def _joint(name: str, scores: Mapping[str, Tensor]) -> Tensor:
    """Scores times what others say of the same position: an object's class counts where there is an object."""
    others = {other: score for other, score in scores.items() if other != name}
    beside = _found(others).get(scores[name].shape[2:])
    return scores[name] if beside is None else scores[name] * beside


def _largest(scores: Tensor) -> Tensor:
    """Of each anchor's neighbourhood, (n, classes, h, w)."""
    return torch.max_pool2d(scores, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2)


def _shares(scores: Sequence[Tensor], times: int = 1) -> Iterator[Tensor]:
    """Scores as shares of all of them, in which each is there so many times."""
    total = sum(map(_power, scores)) + times * ONE_OBJECT
    yield from (score / total**0.5 for score in scores)


def _relative(outputs: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Outputs as shares of their weighted root mean square over all levels."""
    weighted = [output * weights[name] for name, output in outputs.items()]
    total = sum(map(_power, weighted))
    yield from (each / max(total, 1e-12) ** 0.5 for each in weighted)


def _relative_edges(boxes: Tensor, bins: int) -> Tensor:
    """Distances of the four edges from the anchor, as shares of the box's width or height: (n, 4, …).

    Args:
        boxes: (n, 4 · bins, …); with more than one bin a distribution: Li et al., "Generalized Focal Loss", 2020.
    """
    sides = boxes.unflatten(1, (4, bins))
    if bins > 1:
        numbers = torch.arange(bins, dtype=boxes.dtype).reshape(-1, *(1,) * (boxes.dim() - 2))
        distances = (sides.softmax(dim=2) * numbers).sum(dim=2)
    else:
        distances = sides[:, :, 0]
    with torch.no_grad():
        size = (distances[:, :2] + distances[:, 2:]).clamp(min=LEAST_SIZE)
    shares: Tensor = distances / torch.cat((size, size), dim=1)
    return shares


def _power(values: Tensor) -> float:
    return float(values.detach().double().square().sum())
