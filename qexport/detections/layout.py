"""What a model's outputs mean: one noun for devices, for verification, and for files that are looked at again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qexport.system.json_form import from_plain
from qexport.system.whole import whole
from qexport.tasks import extras_of

CORNERS, CENTRE, UNIT_CENTRE, ROTATED = "corners", "centre", "unit centre", "rotated"
"""x1 y1 x2 y2 in pixels; centre, width and height in pixels; the same in 0..1; the same in pixels with an angle."""

MAX_DETECTIONS = 300
"""In one image, where the head does not say otherwise."""


@dataclass(frozen=True)
class HeadLayout:
    """What has to be known of a head to read what it found from its outputs, raw or decoded.

    Attributes:
        strides: pixels in a cell of each level; a classifier has none.
        imgsz: (height, width) of the input in pixels.
        classes: how many there are; 0 for all columns behind the box.
        reg_max: bins of each box side's distribution; 1 where the side is a plain number.
        end2end: the output's rows are detections; otherwise overlaps have to be suppressed.
        extras: what is said of each object besides: "coefficients" of masks, "keypoints", "angles", "" for nothing.
        shape: (how many, values of each): keypoints have x, y and perhaps their visibility.
        direct: the way of YOLO26, whose angles and keypoint offsets need no further arithmetic.
        max_detections: how many are found in one image at most.
        head: "end2end", "one2many", "classifier", "queries" of RT-DETR, "unknown"; "" for one of the first two.
    """

    strides: tuple[int, ...]
    imgsz: tuple[int, int]
    classes: int
    reg_max: int = 1
    end2end: bool = False
    extras: str = ""
    shape: tuple[int, int] = (0, 0)
    direct: bool = False
    head: str = ""
    max_detections: int = MAX_DETECTIONS

    @property
    def classifier(self) -> bool:
        """Whether the output is a probability for each class."""
        return self.head == "classifier"

    @property
    def box_format(self) -> str:
        """How the decoded output writes a box; "" where it has none or nobody knows."""
        if self.head in ("classifier", "unknown"):
            return ""
        if self.head == "queries":
            return UNIT_CENTRE
        if self.extras == "angles":
            return ROTATED
        return CORNERS if self.end2end else CENTRE

    @property
    def preprocess(self) -> str:
        """How images become inputs: an entry of `qexport.data.images.PREPROCESS`."""
        return {"classifier": "centre crop", "queries": "stretch"}.get(self.head, "letterbox")


def layout_of(metadata: Mapping[str, Any]) -> HeadLayout:
    """Read the layout from an artifact's metadata (`metadata.json` in the zip behind a `.tflite` file).

    Strides and bins are known of integer-only files alone, which end at their raw outputs.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: they are not as qexport writes them.
    """
    raw = metadata.get("raw_outputs", {})
    height, width = metadata["imgsz"]
    keypoints = tuple(metadata.get("kpt_shape") or (0, 0))
    strides = tuple(whole(each) for each in raw.get("strides", ()))
    extras = raw.get("further", extras_of(metadata.get("task", "")))
    if extras not in EXTRAS or min(strides, default=1) < 1:
        raise ValueError(f"outputs of {extras!r} in cells of {strides} pixels")
    return HeadLayout(
        strides=strides,
        imgsz=(whole(height), whole(width)),
        classes=len(metadata["names"]),
        reg_max=whole(raw.get("reg_max", 1)),
        end2end=bool(metadata.get("end2end", False)),
        extras=extras,
        shape=_pair(raw.get("shape", keypoints)),
        direct=bool(raw.get("newer", False)),
        head=_head(metadata),
        max_detections=whole(raw.get("max_detections", MAX_DETECTIONS)),
    )


EXTRAS = ("", "coefficients", "keypoints", "angles")
NAMES = {"extras": "further", "direct": "newer"}
"""Field → what files call it."""


def _head(metadata: Mapping[str, Any]) -> str:
    if metadata.get("head") == "RTDETRDecoder":
        return "queries"
    return "classifier" if metadata.get("task") == "classify" else ""


def _pair(numbers: Any) -> tuple[int, int]:
    first, second = numbers
    return whole(first), whole(second)


RAW = ("strides", "reg_max", "further", "shape", "newer", "max_detections")
"""What files call that which has to be known of raw outputs."""


def raw_outputs_of(layout: HeadLayout) -> dict[str, Any]:
    """The entry "raw_outputs" in the metadata of a file that ends there, which `layout_of` reads."""
    content = to_json(layout)
    return {key: list(value) if isinstance(value := content[key], tuple) else value for key in RAW}


def to_json(layout: HeadLayout) -> dict[str, Any]:
    """The layout as JSON holds it."""
    return {NAMES.get(key, key): value for key, value in asdict(layout).items()}


def from_json(content: Mapping[str, Any]) -> HeadLayout:
    """Read what `to_json` gave; fields of later versions are refused.

    Raises:
        ValueError: it is no layout.
    """
    own = {key: name for name, key in NAMES.items()}
    values = {own.get(key, key): value for key, value in content.items()}
    unknown = values.keys() - {field.name for field in fields(HeadLayout)}
    if unknown:
        raise ValueError(f"a layout has no {min(unknown)}")
    return from_plain(HeadLayout, values)
