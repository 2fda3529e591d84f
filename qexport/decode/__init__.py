"""What devices import of `qexport.detections`: raw outputs of integer-only files as detections, with NumPy alone."""

from qexport.detections.detections import Detections
from qexport.detections.layout import HeadLayout, layout_of
from qexport.detections.numpy_decode import anchor_points, decoded, dequantised, detections, detections_in

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
