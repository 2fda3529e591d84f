"""From what a file gives to what it found, whatever its form: rows or columns, raw or decoded, pixels or shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qexport.decode.model_info import ModelInfo
from qexport.detections.detections import Detections, Floats
from qexport.detections.numpy_decode import as_columns, decoded, detections_in, scale_to_pixels


def found_in(outputs: Sequence[NDArray[np.floating]], info: ModelInfo, iou: float = 0.7) -> list[Detections]:
    """What was found in each image of a run, best first, from the file's own thresholds on.

    Args:
        outputs: of the file, in its order; those of integers as `dequantised` makes floats of them.
        iou: overlap from which of two boxes of a class the worse one goes, where the file does not suppress them.

    Returns:
        Boxes in pixels of the input, which `in_image` brings into the image.

    Raises:
        ValueError: a classifier finds no boxes: see `probabilities`.
    """
    if info.layout.classifier:
        raise ValueError("a classifier finds no boxes: take probabilities(outputs, info)")
    least = info.least_scores
    found = []
    for image in _decoded(outputs, info):
        rows = detections_in(as_columns(image, info.layout), info.layout, float(least.min()), iou)
        found.append(rows.chosen(rows.scores >= least[rows.classes]))
    return found


def probabilities(outputs: Sequence[NDArray[np.floating]], info: ModelInfo) -> Floats:
    """(n, classes) of a classifier's outputs, which are as for `found_in`."""
    return _decoded(outputs, info)


def prototypes(outputs: Sequence[NDArray[np.floating]], info: ModelInfo) -> Floats:
    """(n, height, width, k) prototypes of masks, in the form that `instance_masks` takes them."""
    planes = np.asarray(outputs[-1] if info.integers else _by_axes(outputs)[-1], np.float32)
    return planes if info.channels_last else np.moveaxis(planes, 1, -1)


def _decoded(outputs: Sequence[NDArray[np.floating]], info: ModelInfo) -> Floats:
    """The first output as a file without integers and with coordinates in pixels gives it."""
    if info.integers:
        return decoded([np.asarray(each, np.float32) for each in outputs], info.layout)
    output = _by_axes(outputs)[0].astype(np.float32)
    if info.normalised:
        scale_to_pixels(output, info.layout)
    return output


def _by_axes(outputs: Sequence[NDArray[np.floating]]) -> list[NDArray[np.floating]]:
    """What was found has fewer axes than prototypes of masks; LiteRT does not promise an order."""
    return sorted(outputs, key=lambda output: output.ndim)
