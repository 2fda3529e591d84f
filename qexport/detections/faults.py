"""What shows that of two programs one computes something else: the bounds of `Agreement`.

The bounds lie between two groups of figures, seen with YOLO26n, YOLO11n, YOLOv8n, YOLO11n-seg, YOLO26n-pose and the
demo model at 96 to 320 pixels, on four to six images (2026-11-25):

- INT8 noise, the simulation against the float program, which is more than any runtime may add: 96 % of the detections
  and more; boxes of pairs overlap by 0.90 and more, anchors' on each level by 0.88; scores 0.10 off at most, on
  average; keypoints 0.024 of the box's size; coefficients' cosine 0.98; prototypes' 0.99.
- ONNX Runtime, LiteRT and OpenVINO against the simulation: every detection (of untrained YOLO26n and YOLO26n-obb, with
  300 confident ones an image, 97 %); boxes 0.94, anchors' 0.94; scores 0.03; logits of anchors' scores 0.21; keypoints
  0.012; coefficients' cosine 0.985; prototypes' 0.996.
- Planted faults (coordinates swapped, another class, a level without boxes or scores, stale, saturated or halved
  scores, weights turned round, another scale): most lose half of the detections and more. Width and height swapped
  leaves 0.73 of anchors' boxes; a level of zeros 0 of its boxes, or logits 3 off; scores of three quarters are 0.13
  off; keypoints in another order 0.28; coefficients in another order a cosine of 0.16, prototypes 0.22.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from qexport.detections.agreement import Agreement
from qexport.detections.layout import HeadLayout
from qexport.detections.matching import CONFIDENCE

MIN_AGREEMENT = 0.8
"""Share of the confident detections of either side that the other has, too."""
NEAR_SCORE, MIN_NEAR = 0.4, 0.5
"""A share down to `MIN_NEAR` passes where all that was lost had scores below `NEAR_SCORE` and nothing else differs."""
MIN_OVERLAP = 0.8
"""Mean overlap of the boxes of pairs."""
MAX_SHIFT = 0.08
"""Mean difference of the scores of many pairs; of few ones `_allowance` times as much: of YOLO26n-pose, calibrated by
default, single uncertain pairs are up to 0.25 off where the runtime rounds the other way."""
MAX_SCATTER = 0.15
"""Mean of that difference without its sign, likewise."""
MAX_EXTRAS_ERROR = {"keypoints": 0.06, "coefficients": 0.1}
"""Mean distance of keypoints in sides of the box (the root of its area); one minus the cosine of coefficients."""
MIN_LEVEL_OVERLAP = 0.8
"""Mean overlap of the boxes of one level's best anchors."""
MAX_LOGIT_ERROR = 1.0
"""Mean difference of scores' logits: of one level's best anchors, or of the best scores of an image."""
MIN_FAINT, MIN_FAINT_COUNT = 0.7, 10
"""Share of those that the other side has; of so many at least. Noise kept 0.99, faults 0.57 and less."""


def faults(found: Agreement, layout: HeadLayout, whose: str = "the program's") -> list[str]:
    """What shows that the second side computes something else than the first; nothing where both are alike.

    Args:
        whose: the first side, as messages call it.
    """
    if not found.finite:
        return ["outputs are not finite numbers"]
    others = [
        *_pair_faults(found, whose),
        *_extras_faults(found, layout, whose),
        *_level_faults(found, whose),
    ]
    share = found.share
    if share is None:
        return [*others, *_faint_faults(found, whose)]
    if share >= MIN_AGREEMENT or (not others and is_near(found)):
        return others
    what = "probabilities" if layout.classifier else "detections"
    return [f"only {share:.0%} of the {what} agree with {whose}, {MIN_AGREEMENT:.0%} is the least", *others]


def is_near(found: Agreement) -> bool:
    """Whether all that was lost was close to the threshold, and more was kept than lost."""
    kept = found.share is not None and found.share >= MIN_NEAR and not found.probabilities
    return kept and all(score < NEAR_SCORE for score in found.lost)


def remark(found: Agreement) -> str:
    """What has to be said of an agreement that passes; "" for nothing."""
    share = found.share
    if share is None:
        return f"nothing is found with a score of {CONFIDENCE}: the best scores were compared"
    if share < MIN_AGREEMENT:
        return f"what differs has scores below {NEAR_SCORE}, close to the threshold of {CONFIDENCE}"
    return ""


def _pair_faults(found: Agreement, whose: str) -> Iterator[str]:
    if found.overlap is not None and found.overlap < MIN_OVERLAP:
        yield f"boxes overlap {whose} by {found.overlap:.2f} on average, {MIN_OVERLAP} is the least"
    if found.shift is None:
        return
    scatter, few = float(np.abs(found.shifts).mean()), _allowance(len(found.shifts))
    if abs(found.shift) > MAX_SHIFT * few:
        yield f"scores are {found.shift:+.2f} off {whose} on average, {MAX_SHIFT * few:.2f} is the most"
    elif scatter > MAX_SCATTER * few:
        yield f"scores are {scatter:.2f} above or below {whose} on average, {MAX_SCATTER * few:.2f} is the most"


def _allowance(pairs: int) -> float:
    """By what the bounds of many pairs grow for so many: one or two tell next to nothing."""
    return 1 + 1 / math.sqrt(pairs) + 2 / pairs


def _extras_faults(found: Agreement, layout: HeadLayout, whose: str) -> Iterator[str]:
    error, most = float(np.mean(found.errors or (0.0,))), MAX_EXTRAS_ERROR.get(layout.extras, 0.0)
    if error > most:
        what = "mask coefficients" if layout.extras == "coefficients" else layout.extras
        yield f"{what} are {error:.2f} off {whose} on average, {most} is the most"


def _level_faults(found: Agreement, whose: str) -> Iterator[str]:
    for level, (area, logits) in found.levels.items():
        where = f"anchors of level {level}" if len(found.levels) > 1 else "anchors"
        if area < MIN_LEVEL_OVERLAP:
            yield f"boxes at the {where} overlap {whose} by {area:.2f}, {MIN_LEVEL_OVERLAP} is the least"
        if logits > MAX_LOGIT_ERROR:
            yield f"scores at the {where} are {logits:.1f} off {whose} (logits), {MAX_LOGIT_ERROR} is the most"


def _faint_faults(found: Agreement, whose: str) -> Iterator[str]:
    apart = float(np.mean(found.logits or (0.0,)))
    if apart > MAX_LOGIT_ERROR:
        yield f"the best scores are {apart:.1f} off {whose} (logits), {MAX_LOGIT_ERROR} is the most"
    if found.faint >= MIN_FAINT_COUNT and found.faint_kept < MIN_FAINT * found.faint:
        yield f"only {found.faint_kept} of the {found.faint} best of many faint detections agree with {whose}"
