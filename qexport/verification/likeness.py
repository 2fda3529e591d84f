"""How like FP32 a plan is on calibration images, as plain data: told without evaluation, and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qexport.detections.thresholds import Thresholds


@dataclass(frozen=True)
class Likeness:
    """A plan's simulation beside the float program as it came.

    Attributes:
        images: how many calibration images were compared.
        sqnr: of each raw output in dB, of class logits down to the floor that plans cut them at; of a graph whose
            inside cannot be measured, of each output of unknown meaning. None for an output of zeros.
        agreement: see `qexport.detections.agreement.Agreement.share`; None where nothing is confident or known.
        found_float, found: how many detections have a score of 0.25 and more.
        thresholds: of detectors that find something.
    """

    images: int
    sqnr: Mapping[str, float | None]
    agreement: float | None = None
    found_float: int = 0
    found: int = 0
    thresholds: Thresholds | None = None
