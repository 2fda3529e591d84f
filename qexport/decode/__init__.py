"""The public name of `qexport.detections.decode`: raw outputs of integer-only files as detections, with NumPy alone."""

from qexport.detections.decode import (
    Detections,
    HeadLayout,
    anchor_points,
    decoded,
    dequantised,
    detections,
    detections_in,
    layout_of,
)

__all__ = [
    "Detections",
    "HeadLayout",
    "anchor_points",
    "decoded",
    "dequantised",
    "detections",
    "detections_in",
    "layout_of",
]
