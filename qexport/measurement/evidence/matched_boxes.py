"""How well the boxes of two files coincide where both find an object, by its size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qexport.detections.detections import Detections, Floats
from qexport.detections.matching import class_overlaps, pairs
from qexport.measurement.evidence.fidelity_parts import ALL, LARGE, MEDIUM, SMALL, MatchedBoxes
from qexport.measurement.image_detections import DetectionsByImage

AREAS = {ALL: (0.0, np.inf), SMALL: (0.0, 32.0**2), MEDIUM: (32.0**2, 96.0**2), LARGE: (96.0**2, np.inf)}
"""Least area in square pixels, and that from which a box is of the next size (Lin et al., "Microsoft COCO", 2014)."""
EDGES = 4


def matched_boxes(reference: DetectionsByImage, own: DetectionsByImage, least: float) -> tuple[MatchedBoxes, ...]:
    """Compare boxes that pair up: of all sizes first, then of each that the float file finds.

    Args:
        least: score from which the float file's boxes count; the other file's do whatever their score.

    Returns:
        () of classifiers, and where the float file finds nothing.
    """
    boxed = ((name, found.detections.confident(least)) for name, found in reference.items())
    rows = [_rows(found, own[name].detections) for name, found in boxed if len(found.scores)]
    return tuple(_of_sizes(np.concatenate(rows))) if rows else ()


def _rows(one: Detections, other: Detections) -> NDArray[np.float64]:
    """(n, 6): area of each of one's boxes, IoU and four edge errors of its pair; not a number without one."""
    rows = np.full((len(one.scores), 2 + EDGES), np.nan)
    rows[:, 0] = np.prod(one.boxes[:, 2:] - (0 if one.is_rotated else one.boxes[:, :2]), axis=1)
    if paired := pairs(one, other):
        kept, same = (np.array(side) for side in zip(*paired, strict=True))
        first, second = one.chosen(kept), other.chosen(same)
        rows[kept, 1] = class_overlaps(first, second).diagonal()
        rows[kept, 2:] = edge_errors(first, second)
    return rows


def _of_sizes(rows: NDArray[np.float64]) -> Iterator[MatchedBoxes]:
    for size, (low, high) in AREAS.items():
        of_size = rows[(rows[:, 0] >= low) & (rows[:, 0] < high)]
        found = of_size[~np.isnan(of_size[:, 1])]
        if not len(of_size):
            continue
        errors = found[:, 2:]
        means = (
            (float(found[:, 1].mean()), float(errors.mean()), float(np.percentile(errors, 95)))
            if len(found)
            else (None, None, None)
        )
        yield MatchedBoxes(size, len(of_size), len(found), *means)


def edge_errors(one: Detections, other: Detections) -> Floats:
    """(n, 4) how far each edge of `other` lies from that of the same row in `one`, along the edge's normal.

    Of rotated boxes edges are compared in the direction of `one`; a box that is turned by 90° with its sides exchanged
    is the same box.
    """
    if not one.is_rotated:
        apart: Floats = np.abs(other.boxes - one.boxes)
        return apart
    turns = np.round((other.extras[:, 0] - one.extras[:, 0]) / (np.pi / 2))
    size = np.where(turns[:, None] % 2 == 1, other.boxes[:, 3:1:-1], other.boxes[:, 2:])
    (x, y), cos, sin = (other.boxes[:, :2] - one.boxes[:, :2]).T, np.cos(one.extras[:, 0]), np.sin(one.extras[:, 0])
    moved = np.stack((x * cos + y * sin, y * cos - x * sin), axis=1)
    grown = (size - one.boxes[:, 2:]) / 2
    errors: Floats = np.abs(np.concatenate((moved - grown, moved + grown), axis=1))
    return errors
