"""The pixels that a network expects, if not RGB in 0..1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qexport.errors import UsageError
from qexport.vocabulary import guess

Triple = tuple[float, float, float]

IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's pixels in 0..1, as torchvision's classifiers want them taken out."""
PIXELS: dict[str, tuple[Triple, Triple]] = {
    "0..1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "0..255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
    "imagenet": IMAGENET,
}


@dataclass(frozen=True)
class InputForm:
    """How an image of the network's size becomes its input.

    Attributes:
        pixels: entry of `PIXELS`, or six numbers as they were given.
        mean, deviation: taken from and divided by, for each channel in 0..1, in the network's order of channels.
        bgr: blue comes first.
        channels_last: (height, width, channels).
        crop: images are scaled and cut to size as for a classifier, not letterboxed.
    """

    pixels: str = "0..1"
    mean: Triple = (0.0, 0.0, 0.0)
    deviation: Triple = (1.0, 1.0, 1.0)
    bgr: bool = False
    channels_last: bool = False
    crop: bool = False

    @property
    def description(self) -> str:
        """As recorded in calibration tables and reports."""
        order = "BGR" if self.bgr else "RGB"
        return f"{order}, {self.pixels}{', channels last' if self.channels_last else ''}"

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value of a pixel after normalisation."""
        ends = [(edge - m) / d for edge in (0.0, 1.0) for m, d in zip(self.mean, self.deviation, strict=True)]
        return min(ends), max(ends)

    def applied(self, planes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Make the input of 3xHxW float32 RGB in 0..1."""
        if self == UNIT:
            return planes
        ordered = planes[::-1] if self.bgr else planes
        mean, deviation = (np.array(each, dtype=np.float32)[:, None, None] for each in (self.mean, self.deviation))
        made = (ordered - mean) / deviation
        return np.ascontiguousarray(made.transpose(1, 2, 0) if self.channels_last else made)


UNIT = InputForm()


@dataclass(frozen=True)
class InputSpec:
    """What a network takes.

    Attributes:
        imgsz: (height, width) in pixels.
        batch: images in one run; 1 where `dynamic`.
        channels: of an image.
        dynamic: any number of images can be run at once.
        preprocess: how images are brought to size, an entry of `qexport.data.images.PREPROCESS`.
        form: what the network wants its pixels to be.
    """

    imgsz: tuple[int, int]
    batch: int = 1
    channels: int = 3
    dynamic: bool = False
    preprocess: str = "letterbox"
    form: InputForm = UNIT

    @property
    def image_form(self) -> tuple[str, int]:
        """What is to be made of an image: how it is brought to size, and how many channels it has."""
        return self.preprocess, self.channels


def pixel_form(pixels: str) -> tuple[Triple, Triple]:
    """Mean and deviation that `--pixels` asks for.

    Raises:
        UsageError: neither an entry of `PIXELS` nor six numbers.
    """
    if pixels in PIXELS:
        return PIXELS[pixels]
    try:
        numbers = [float(part) for part in pixels.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 6 or not all(np.isfinite(numbers)) or min(numbers[3:]) <= 0:
        raise UsageError(
            f"--pixels {pixels} is not known",
            f"give {', '.join(PIXELS)}, or three means and three deviations of channels in 0..1, comma-separated"
            f"{guess(pixels, tuple(PIXELS))}",
        )
    (a, b, c), (d, e, f) = numbers[:3], numbers[3:]
    return (a, b, c), (d, e, f)
