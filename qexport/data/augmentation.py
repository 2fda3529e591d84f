"""Other pictures of the same images, none of which needs labels: mosaics, other scales, cuts, mirrored, other colours.

Strengths are those that Ultralytics trains with; the arithmetic is OpenCV's. Mosaics: Bochkovskiy et al., "YOLOv4"
(2020). Every choice is drawn from the generator that is handed in, so that no other thread moves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qexport.data.images import COLOURS, PREPROCESS, centre_crop, stretch
from qexport.data.input_form import InputSpec
from qexport.detections.placement import PADDING

Pixels = NDArray[np.uint8]
"""HxWxC, colours in BGR order."""
CROSSING = (0.3, 0.7)
"""Where the four parts of a mosaic may meet, in shares of its height and width."""
HUES = 180
"""Of OpenCV: a degree in two."""


@dataclass(frozen=True)
class Augmentation:
    """How much of what is done to images.

    Attributes:
        plain: share of the images that are prepared as for calibration and nothing else.
        mosaic: share of the others that are joined with three more; a classifier's never are.
        flip: share of the others that are mirrored left to right.
        scale: smallest and largest size in shares of what fits the network's input; a classifier's images have none
            below 1, as they leave nothing uncovered.
        hue, saturation, value: largest change of colours, in shares.
    """

    plain: float = 0.25
    mosaic: float = 0.5
    flip: float = 0.5
    scale: tuple[float, float] = (0.5, 1.5)
    hue: float = 0.015
    saturation: float = 0.7
    value: float = 0.4


DEFAULT = Augmentation()


def augment(
    first: Pixels,
    others: Callable[[], Sequence[Pixels]],
    wanted: InputSpec,
    strength: Augmentation,
    rng: np.random.Generator,
) -> Pixels:
    """Make a picture of the network's size.

    Args:
        first: the image, of any size.
        others: gives the three more of a mosaic, and is called for one alone.
        wanted: size, and how images are prepared where nothing is done to them.
    """
    if rng.random() < strength.plain:
        return PREPROCESS[wanted.preprocess](first, wanted.imgsz)
    if wanted.preprocess == "centre crop":
        made = _cut(first, wanted.imgsz, strength, rng)
    elif rng.random() < strength.mosaic:
        made = mosaic([first, *others()], wanted, strength, rng)
    else:
        made = placed(first, wanted.imgsz, _scale(first, wanted, strength, rng), rng)
    if rng.random() < strength.flip:
        made = made[:, ::-1]
    return recoloured(made, strength, rng)


def mosaic(four: Sequence[Pixels], wanted: InputSpec, strength: Augmentation, rng: np.random.Generator) -> Pixels:
    """Four images around a point: above left, above right, below left, below right."""
    canvas = np.full((*wanted.imgsz, wanted.channels), PADDING, np.uint8)
    row, column = (round(side * rng.uniform(*CROSSING)) for side in wanted.imgsz)
    parts = (part for rows in np.split(canvas, [row]) for part in np.split(rows, [column], axis=1))
    for part, image in zip(parts, four, strict=True):
        part[:] = placed(image, part.shape[:2], _scale(image, wanted, strength, rng), rng)
    return canvas


def placed(image: Pixels, size: tuple[int, ...], scale: tuple[float, float], rng: np.random.Generator) -> Pixels:
    """Scale an image and lay it somewhere on grey of `size`; what reaches beyond is cut off.

    Args:
        size: height and width of the result.
        scale: of its height and of its width.
    """
    height, width = (max(round(side * each), 1) for side, each in zip(image.shape, scale, strict=False))
    scaled = stretch(image, (height, width))
    canvas = np.full((*size, image.shape[2]), PADDING, np.uint8)
    down, across = (_shared(room, side, rng.random()) for room, side in zip(size, scaled.shape, strict=False))
    canvas[down[0], across[0]] = scaled[down[1], across[1]]
    return canvas


def recoloured(image: Pixels, strength: Augmentation, rng: np.random.Generator) -> Pixels:
    """Change hue, saturation and brightness, each by a random share; of other than colours brightness alone."""
    import cv2

    if not (strength.hue or strength.saturation or strength.value):
        return image  # the way to other colours and back would round
    turn, saturate, lighten = rng.uniform(-1, 1, 3) * (strength.hue, strength.saturation, strength.value)
    levels = np.arange(256)
    lighter = np.clip(levels * (1 + lighten), 0, 255)
    if image.shape[2] != COLOURS:
        return np.asarray(lighter.astype(np.uint8)[image])
    changed = (levels + turn * HUES) % HUES, np.clip(levels * (1 + saturate), 0, 255), lighter
    table = np.stack(changed, axis=-1).astype(np.uint8)[None]
    colours = cv2.LUT(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2HSV), table)
    return np.asarray(cv2.cvtColor(colours, cv2.COLOR_HSV2BGR), np.uint8)


def _scale(image: Pixels, wanted: InputSpec, strength: Augmentation, rng: np.random.Generator) -> tuple[float, float]:
    """A random scale of height and width: one for both, unless the network's images are stretched."""
    change = rng.uniform(*strength.scale)
    height, width = (side / own for side, own in zip(wanted.imgsz, image.shape, strict=False))
    if wanted.preprocess != "stretch":
        height = width = min(height, width)
    return height * change, width * change


def _cut(image: Pixels, size: tuple[int, int], strength: Augmentation, rng: np.random.Generator) -> Pixels:
    """A part of an image in the proportions of `size`, prepared as all of it would be."""
    enlarged = rng.uniform(1, max(strength.scale[1], 1))
    share = min(own / side for own, side in zip(image.shape, size, strict=False)) / enlarged
    rooms = (max(round(side * share), 1) for side in size)
    rows, columns = (_shared(room, own, rng.random())[1] for room, own in zip(rooms, image.shape, strict=False))
    return centre_crop(image[rows, columns], size)


def _shared(room: int, side: int, place: float) -> tuple[slice, slice]:
    """Where something of a length lies in a room, and which part of it does.

    Args:
        place: from 0, at the beginnings of both, to 1, at their ends.
    """
    start, length = round((room - side) * place), min(room, side)
    there, here = max(start, 0), max(-start, 0)
    return slice(there, there + length), slice(here, here + length)
