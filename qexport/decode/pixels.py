"""From an image to what a file takes, with NumPy alone: the pixels that the model was calibrated and measured with.

An image is HxWx3 uint8 in RGB; OpenCV reads BGR, of which `image[..., ::-1]` is RGB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qexport.detections.layout import HeadLayout
from qexport.detections.numpy_decode import quantised
from qexport.detections.placement import PADDING, Placement, letterboxed, stretched

Pixels = NDArray[np.uint8]
WEIGHT_BITS = 11
"""Of OpenCV's INTER_LINEAR for bytes, which keeps four bits less between its two passes."""
FILTER_BITS = 22
"""Of a weight of Pillow's filters: 32, less eight for the pixel and two for what overshoots."""


def prepared(image: Pixels, layout: HeadLayout) -> tuple[Pixels, Placement]:
    """Bring an image to the input's size, as the model's task wants it, and say where it lies there.

    Args:
        image: HxWx3 uint8 RGB.

    Returns:
        uint8 (height, width, 3), and what `in_image` takes; of a classifier's crop it is the whole image, stretched.

    Raises:
        ValueError: it is no such image.
    """
    size = _size(image)
    if layout.preprocess == "centre crop":
        return centre_crop(image, layout.imgsz), stretched(size, layout.imgsz)
    if layout.preprocess == "stretch":
        return resized(image, layout.imgsz), stretched(size, layout.imgsz)
    return letterbox(image, layout.imgsz)


def letterbox(image: Pixels, imgsz: tuple[int, int]) -> tuple[Pixels, Placement]:
    """Scale an image into (height, width) without distortion, centred on grey (114), and say where it lies there.

    Returns:
        uint8 of `imgsz` x 3, byte for byte as `LetterBox(imgsz, auto=False)` of Ultralytics makes it with OpenCV.

    Raises:
        ValueError: it is not HxWx3 uint8.
    """
    placement = letterboxed(_size(image), imgsz)
    return padded(resized(image, placement.inner), placement), placement


def padded(scaled: Pixels, placement: Placement) -> Pixels:
    """Grey around an image that something else has scaled to `placement.inner`.

    Raises:
        ValueError: it has another size.
    """
    if _size(scaled) != placement.inner:
        raise ValueError(f"the image has {scaled.shape[:2]} pixels, not {placement.inner}")
    top, bottom, left, right = placement.margins
    return np.pad(scaled, ((top, bottom), (left, right), (0, 0)), constant_values=PADDING)


def resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    """An image in another size (height, width), byte for byte as OpenCV's INTER_LINEAR.

    Filters that smooth where they make smaller, as Pillow's do, make another picture for the network.
    """
    if image.shape[:2] == size:
        return image
    above, below, upper, lower = _neighbours(image.shape[0], size[0])
    left, right, share, other = _neighbours(image.shape[1], size[1])
    bands = []
    for rows, weights in ((above, upper), (below, lower)):
        band = image[rows]
        line = band[:, left].astype(np.int32) * share[:, None] + band[:, right] * other[:, None]
        bands.append(((line >> 4) * weights[:, None, None]) >> 16)
    made: Pixels = ((bands[0] + bands[1] + 2) >> 2).astype(np.uint8)
    return made


def _neighbours(count: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Any, Any]:
    """For each of `size` pixels the two of `count` that it lies between, and their weights of `WEIGHT_BITS`."""
    place = ((np.arange(size) + 0.5) * (count / size) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.intp)
    share = place - first.astype(np.float32)
    one, other = (np.rint(each * 2**WEIGHT_BITS).astype(np.int32) for each in (1 - share, share))
    return np.clip(first, 0, count - 1), np.clip(first + 1, 0, count - 1), one, other


def centre_crop(image: Pixels, imgsz: tuple[int, int]) -> Pixels:
    """What a classifier takes: the shorter side scaled to fit, and the middle cut out, as Ultralytics does it.

    Args:
        imgsz: (height, width); for others than a square both sides are scaled to it.

    Returns:
        uint8 of `imgsz` x 3, byte for byte as Pillow's bilinear filter makes it; within one level where proportions
        change, as Pillow takes the two passes in either order then.
    """
    height, width = _size(image)
    inner = imgsz
    if imgsz[0] == imgsz[1]:
        inner = (imgsz[1] * height // width, imgsz[1]) if width <= height else (imgsz[0], imgsz[0] * width // height)
    top, left = round((inner[0] - imgsz[0]) / 2), round((inner[1] - imgsz[1]) / 2)
    scaled = _smoothed(_smoothed(image, inner[1], 1), inner[0], 0)
    return np.ascontiguousarray(scaled[top : top + imgsz[0], left : left + imgsz[1]])


def _smoothed(image: Pixels, size: int, axis: int) -> Pixels:
    """One pass of Pillow's bilinear filter: a triangle as wide as two pixels of the smaller one of both sides."""
    count = image.shape[axis]
    if count == size:
        return image
    scale = count / size
    reach = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(np.intp), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.intp), count)
    places = first[:, None] + np.arange(int((last - first).max()))
    weights = np.maximum(1 - np.abs((places - centres[:, None] + 0.5) * (1 / reach)), 0)
    weights[places >= last[:, None]] = 0
    integers = np.floor(weights / weights.sum(axis=1, keepdims=True) * 2**FILTER_BITS + 0.5).astype(np.int64)
    lines = np.moveaxis(image, axis, 0)
    total = np.full((size, *lines.shape[1:]), 2 ** (FILTER_BITS - 1), np.int64)
    for place, weight in zip(np.minimum(places, count - 1).T, integers.T, strict=True):
        total += lines[place] * weight[:, None, None]
    return np.moveaxis(np.clip(total >> FILTER_BITS, 0, 255).astype(np.uint8), 0, axis)


def as_input(
    pixels: Pixels,
    dtype: DTypeLike = np.float32,
    quantization: tuple[float, int] = (0.0, 0),
    channels_last: bool | None = None,
) -> NDArray[np.number]:
    """Make of prepared pixels what a file takes.

    Args:
        pixels: (height, width, 3) uint8 RGB, or (n, height, width, 3) of several images.
        dtype: the input's, as a runtime says it.
        quantization: scale and zero point of an input of integers, as LiteRT says them.
        channels_last: as `ModelInfo` says it; where it is not given, integers have their channels last.

    Returns:
        (n, 3, height, width), or (n, height, width, 3): floats in 0..1, or integers.
    """
    images = pixels[None] if pixels.ndim == 3 else pixels
    integers = np.issubdtype(dtype, np.integer)
    last = integers if channels_last is None else channels_last
    values = images.astype(np.float32) / np.float32(255)
    ordered = values if last else values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(quantised(ordered, *quantization, dtype) if integers else ordered.astype(dtype))


def _size(image: Pixels) -> tuple[int, int]:
    """Height and width.

    Raises:
        ValueError: it is no image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"an image is (height, width, 3) uint8, not {image.shape} {image.dtype}")
    return image.shape[0], image.shape[1]
