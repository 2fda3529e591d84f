"""What programs on devices import: from an image to what a file takes, and from what it gives to what it found.

NumPy alone, also as a wheel of its own, `qexport-decode`, which is built of these files.
"""

from qexport.decode.model_info import ModelInfo, info_of, read_model_info
from qexport.decode.outputs import found_in, probabilities, prototypes
from qexport.decode.pixels import as_input, centre_crop, letterbox, padded, prepared, resized
from qexport.detections.detections import Detections, corner_points
from qexport.detections.layout import HeadLayout, layout_of
from qexport.detections.numpy_decode import anchor_points, decoded, dequantised, detections, detections_in, quantised
from qexport.detections.placement import Placement, in_image, letterboxed

__all__ = [
    "Detections",
    "HeadLayout",
    "ModelInfo",
    "Placement",
    "anchor_points",
    "as_input",
    "centre_crop",
    "corner_points",
    "decoded",
    "dequantised",
    "detections",
    "detections_in",
    "found_in",
    "in_image",
    "info_of",
    "layout_of",
    "letterbox",
    "letterboxed",
    "padded",
    "prepared",
    "probabilities",
    "prototypes",
    "quantised",
    "read_model_info",
    "resized",
]
