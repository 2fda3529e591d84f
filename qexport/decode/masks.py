"""Instance masks of integer-only segmenters: `qexport.detections.masks`, under the name that devices import."""

from qexport.detections.masks import instance_masks

__all__ = ["instance_masks"]
