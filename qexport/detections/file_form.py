"""How a file takes images, and what its boxes are measured in: what has to be known to run one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qexport.detections.layout import UNIT_CENTRE, HeadLayout

NCHW, NHWC = "nchw", "nhwc"
LAYOUTS = (NCHW, NHWC)
LAYOUT, NORMALISED = "layout", "normalised_boxes"
"""What metadata, and options of a format, call the two."""


@dataclass(frozen=True)
class FileForm:
    """How a file takes images and gives what it found.

    Attributes:
        channels_last: images are (n, height, width, channels), prototypes of masks (n, height, width, k).
        normalised: coordinates of boxes and keypoints are shares of the input's width and height, not pixels. What
            `HeadLayout.box_format` says of RT-DETR is true of its files in every form, and not said here.
    """

    channels_last: bool = False
    normalised: bool = False


def tflite_form(layout: HeadLayout, integers: bool) -> FileForm:
    """What a `.tflite` file has where nobody asks for another form.

    Consumers of one-to-many heads multiply coordinates by the size of the input.

    Args:
        integers: it ends at its raw outputs.
    """
    return FileForm(integers, not (integers or layout.end2end or layout.classifier))


def form_of(metadata: Mapping[str, Any], layout: HeadLayout, tflite: bool) -> FileForm:
    """Read a file's form from its metadata; where they do not say it, from what kind of file it is.

    Raises:
        ValueError: they say something else than qexport writes.
    """
    usual = tflite_form(layout, "raw_outputs" in metadata) if tflite else FileForm()
    order = metadata.get(LAYOUT, NHWC if usual.channels_last else NCHW)
    normalised = metadata.get(NORMALISED, usual.normalised)
    if order not in LAYOUTS or not isinstance(normalised, bool):
        raise ValueError(f"its layout is {order!r}, its boxes are normalised: {normalised!r}")
    return FileForm(order == NHWC, normalised and layout.box_format != UNIT_CENTRE)


def as_metadata(form: FileForm, layout: HeadLayout) -> dict[str, Any]:
    """The two entries in a file's metadata, which `form_of` reads."""
    return {
        LAYOUT: NHWC if form.channels_last else NCHW,
        NORMALISED: form.normalised or layout.box_format == UNIT_CENTRE,
    }
