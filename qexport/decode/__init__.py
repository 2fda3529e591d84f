"""What devices import of `qexport.detections`: raw outputs of integer-only files as detections, with NumPy alone."""

from qexport.detections.decode import anchor_points, decoded, dequantised, detections, detections_in
from qexport.detections.detections import Detections
from qexport.detections.layout import HeadLayout, layout_of

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
