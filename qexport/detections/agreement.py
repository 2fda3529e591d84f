"""How alike what two programs find in the same images is, by what rounding leaves alone.

Scores drift, so no threshold is put to both sides: a confident detection of one side counts as kept where the other has
the object with any score from `MIN_SCORE`, and the other way round. How far boxes, scores and what else is said of the
pairs are apart is a second question, and outputs with a column for each anchor answer a third one, anchor by anchor,
which needs no detection at all. Where nothing is found with confidence, only that one, or the best scores, are left.
`qexport.detections.faults` says what of it is too much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qexport.detections.detections import NOTHING, Detections, corners_of
from qexport.detections.layout import CENTRE, ROTATED, HeadLayout
from qexport.detections.matching import CONFIDENCE, SAME_OBJECT, best_overlaps, class_overlaps
from qexport.detections.numpy_decode import as_columns, detected_format, detections_in

MIN_SCORE = 0.1
"""Score from which the other side has found it."""
FAINT = 1e-3
"""Scores below it are alike: validators leave them out."""
BEST = 100
"""Scores, and rows, that are looked at where none is confident."""
CLEAR, FEW = 4.0, 20
"""Where none is confident: an image's best `FEW` with at least `CLEAR` times the least score that the other tells."""
ANCHORS = 30
"""Anchors of a level that are compared one by one."""

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Findings:
    """What was found in one image.

    Attributes:
        detections: from `MIN_SCORE`, best first, or from `FAINT` where none is confident; none of a classifier.
        scores: the best ones of all, best first, `BEST` at most; of a classifier the probability of every class.
    """

    detections: Detections
    scores: Array


@dataclass(frozen=True)
class Agreement:
    """How alike two sides are over some images; `+` joins two of them.

    Attributes:
        total: confident detections of both sides.
        kept: those of them that the other side has, too.
        lost: scores of those that it has not.
        overlaps, errors: of each pair the boxes' overlap, and how far keypoints or coefficients are apart.
        shifts: of pairs that are confident on average the score's difference, the second side's minus the first's.
        probabilities: of a classifier, for each image the share of probability that both give to the same classes.
        logits: for each image the mean difference of the best scores' logits.
        anchors: (n, 2) of each image and level the mean overlap of boxes and difference of logits, anchor by anchor.
        faint, faint_kept: where an image has no confident detection, those that clearly are among the best of one
            side, and how many of them the other has with any score.
        finite: the second side has numbers only.
    """

    total: int = 0
    kept: int = 0
    lost: tuple[float, ...] = ()
    overlaps: tuple[float, ...] = ()
    shifts: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    logits: tuple[float, ...] = ()
    anchors: dict[int, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    faint: int = 0
    faint_kept: int = 0
    finite: bool = True

    def __add__(self, other: Agreement) -> Agreement:
        joined = {key: value + getattr(other, key) for key, value in vars(self).items() if key not in SPECIAL}
        levels = self.anchors.keys() | other.anchors.keys()
        anchors = {level: self.anchors.get(level, ()) + other.anchors.get(level, ()) for level in sorted(levels)}
        return Agreement(**joined, anchors=anchors, finite=self.finite and other.finite)

    @property
    def share(self) -> float | None:
        """Share of the detections that both have, or of probability, 0..1; None where nothing is confident."""
        if self.probabilities:
            return float(np.mean(self.probabilities))
        return self.kept / self.total if self.total else None

    @property
    def evidence(self) -> int:
        """Confident detections of both sides, or images of a classifier: how much the other figures are of."""
        return self.total or len(self.probabilities)

    @property
    def shift(self) -> float | None:
        """Mean difference of the scores of pairs."""
        return float(np.mean(self.shifts)) if self.shifts else None

    @property
    def overlap(self) -> float | None:
        """Mean overlap of the boxes of pairs."""
        return float(np.mean(self.overlaps)) if self.overlaps else None

    @property
    def levels(self) -> dict[int, tuple[float, float]]:
        """Level → overlap of boxes and difference of logits, anchor by anchor, on average over the images."""
        means = {level: np.mean(rows, axis=0) for level, rows in self.anchors.items()}
        return {level: (float(area), float(logits)) for level, (area, logits) in means.items()}


SPECIAL = ("anchors", "finite")


def findings(image: Array, layout: HeadLayout) -> Findings:
    """Read one image of a decoded output."""
    if layout.classifier:
        return Findings(NOTHING, image.astype(np.float32))
    image = as_columns(image, layout)
    best = image[:, 4] if layout.end2end else image[4 : _end(image, layout)].max(axis=0)
    least = MIN_SCORE if (best >= CONFIDENCE).any() else FAINT
    return Findings(detections_in(image, layout, least), np.sort(best)[::-1][:BEST].astype(np.float32))


def _end(image: Array, layout: HeadLayout) -> int:
    """The row behind the last class of columns of anchors."""
    return 4 + (layout.classes or len(image) - 4)


def compare_decoded(one: Array, other: Array, layout: HeadLayout) -> Agreement:
    """Compare one image of two decoded outputs: what was found, and where there are anchors those, too."""
    return compare(findings(one, layout), findings(other, layout), layout) + compare_anchors(one, other, layout)


def compare_all(one: Sequence[Findings], other: Sequence[Findings], layout: HeadLayout) -> Agreement:
    """Compare what two sides found in the same images."""
    return sum((compare(*pair, layout) for pair in zip(one, other, strict=True)), Agreement())


def compare(one: Findings, other: Findings, layout: HeadLayout) -> Agreement:
    """Compare what two sides found in one image."""
    if layout.classifier:
        # Which of two like answers is the first says nothing; how much is said of each class does.
        both = float(np.minimum(one.scores, other.scores).sum())
        return Agreement(probabilities=(both,), finite=bool(np.isfinite(other.scores).all()))
    there, back = _kept(one.detections, other.detections, layout), _kept(other.detections, one.detections, layout)
    if not there.total and not back.total:
        there, back = _faint(one.detections, other.detections, layout), _faint(other.detections, one.detections, layout)
    back = replace(back, shifts=tuple(-shift for shift in back.shifts))
    count = min(len(one.scores), len(other.scores))
    apart = np.abs(_logits(one.scores[:count]) - _logits(other.scores[:count]))
    difference = float(apart.mean()) if count else 0.0
    finite = np.isfinite(other.scores).all() and np.isfinite(other.detections.boxes).all()
    return there + back + Agreement(logits=(difference,), finite=bool(finite))


def _kept(one: Detections, other: Detections, layout: HeadLayout) -> Agreement:
    """Which confident detections of one side the other has."""
    sure = np.flatnonzero(one.scores >= CONFIDENCE)
    best, area = best_overlaps(one.chosen(sure), other)
    found = area >= SAME_OBJECT
    pairs = sure[found], best[found]
    return Agreement(
        total=len(sure),
        kept=int(found.sum()),
        lost=tuple(one.scores[sure[~found]].tolist()),
        overlaps=tuple(area[found].tolist()),
        shifts=tuple(_shifts(one.scores[pairs[0]], other.scores[pairs[1]])),
        errors=tuple(_extras_errors(one, other, pairs, layout)),
    )


def _shifts(one: Array, other: Array) -> list[float]:
    """Differences of the scores of pairs that are confident on average: who is there for a lucky score has shifted."""
    shifts: list[float] = (other - one)[(one + other) / 2 >= CONFIDENCE].tolist()
    return shifts


def _faint(one: Detections, other: Detections, layout: HeadLayout) -> Agreement:
    """Which of one side's best the other has: those that score far above the least that the other tells of.

    What lies lower is a matter of which of many like anchors come first: a head tells of so many rows and no more.
    """
    full = len(other.scores) >= layout.max_detections
    least = float(other.scores.min()) if full else FAINT
    clear = np.flatnonzero(one.scores >= CLEAR * least)[:FEW]
    _, area = best_overlaps(one.chosen(clear), other)
    return Agreement(faint=len(clear), faint_kept=int((area >= SAME_OBJECT).sum()))


def _extras_errors(
    one: Detections, other: Detections, pairs: tuple[NDArray[np.intp], NDArray[np.intp]], layout: HeadLayout
) -> Iterator[float]:
    first, second = one.extras[pairs[0]], other.extras[pairs[1]]
    if layout.extras == "coefficients":
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        yield from (1 - (first * second).sum(axis=1) / np.maximum(norms, 1e-9)).tolist()
    if layout.extras == "keypoints":
        # What cannot be seen in the picture is guessed by both, so points count as much as they are visible.
        points, others = (each.reshape(len(each), *layout.shape) for each in (first, second))
        seen = points[..., 2] if layout.shape[1] == 3 else np.ones(points.shape[:2])
        sides = np.sqrt(np.maximum(np.prod(np.diff(one.boxes[pairs[0]].reshape(-1, 2, 2), axis=1)[:, 0], axis=1), 1))
        apart = (np.linalg.norm(points[..., :2] - others[..., :2], axis=-1) * seen).sum(axis=1)
        yield from (apart / np.maximum(seen.sum(axis=1), 1e-6) / sides).tolist()


def _logits(scores: Array) -> Array:
    bounded = np.clip(scores.astype(np.float64), FAINT, 1 - FAINT)
    return np.log(bounded / (1 - bounded))


def compare_anchors(one: Array, other: Array, layout: HeadLayout) -> Agreement:
    """Compare two outputs (4 + classes + k, anchors) of an image anchor by anchor, on each level its best ones.

    Rows that a network has sorted cannot be compared so: nothing comes of them.
    """
    if layout.box_format not in (CENTRE, ROTATED) or layout.end2end or one.shape != other.shape:
        return Agreement(finite=bool(np.isfinite(other).all()))
    image, found = as_columns(one, layout), as_columns(other, layout)
    levels: dict[int, tuple[tuple[float, float], ...]] = {}
    for level, part in enumerate(_levels(layout, image.shape[1])):
        levels[level] = (_anchor_likeness(image[:, part], found[:, part], layout),)
    return Agreement(anchors=levels, finite=bool(np.isfinite(other).all()))


def _levels(layout: HeadLayout, anchors: int) -> list[slice]:
    """Columns of each level; all in one where strides are not known."""
    sizes = [(layout.imgsz[0] // stride) * (layout.imgsz[1] // stride) for stride in layout.strides]
    if sum(sizes) != anchors:
        return [slice(0, anchors)]
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _anchor_likeness(one: NDArray[np.float32], other: NDArray[np.float32], layout: HeadLayout) -> tuple[float, float]:
    """Mean overlap of boxes and mean difference of logits of the anchors that the first side likes best."""
    end = _end(one, layout)
    chosen = np.argsort(-one[4:end].max(axis=0), kind="stable")[:ANCHORS]
    classes = one[4:end, chosen].argmax(axis=0)
    area = np.diag(class_overlaps(*(_at(each[:, chosen], end, layout) for each in (one, other))))
    scores = one[4 + classes, chosen], other[4 + classes, chosen]
    seen = np.maximum(*scores) >= FAINT
    apart = np.abs(_logits(scores[0]) - _logits(scores[1]))[seen]
    return float(area.mean()), float(apart.mean()) if len(apart) else 0.0


def _at(image: NDArray[np.float32], end: int, layout: HeadLayout) -> Detections:
    """The boxes of anchors, as if all were of one class."""
    count, boxes = image.shape[1], image[:4].T
    if layout.box_format != ROTATED:
        boxes = corners_of(boxes)
    return Detections(
        boxes, np.ones(count, np.float32), np.zeros(count, np.int64), image[end:].T, detected_format(layout)
    )
