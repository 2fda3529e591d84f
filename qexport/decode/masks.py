"""Masks of segmenters: those of `qexport.detections.masks`, under the name that devices import."""

from qexport.detections.masks import image_masks, instance_masks

__all__ = ["image_masks", "instance_masks"]
