"""What a pass over weights is, and how one is accepted: on images that it did not see, or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from qexport.data.choice import take
from qexport.data.views import ENOUGH, with_views
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import Distance, HeldOut, distance, hold_out, log_margin, margin
from qexport.optimisation.pass_record import PassRecord, gained_text, not_run
from qexport.optimisation.sparsity import filled
from qexport.planning.plan import QuantPlan
from qexport.progress import Progress

HELD_OUT = 2
"""One of so many images is kept from passes, to judge them by."""
MAX_JUDGED = 40
"""Images that are judged by at most: they and their raw outputs are kept in memory, 8 MB each at 640 pixels."""
MIN_GAIN = 1.0
"""A pass is kept for a gain of so many standard errors of it."""
MAX_COST = 0.05
"""Share of the distance that a pass which is for something else may cost."""


class WeightPass(Protocol):
    """Changes weights, biases or scales so that a quantised program loses less.

    Attributes:
        name: as in reports.
    """

    name: str

    def requires(self, candidate: Candidate, /) -> str:
        """Say why the pass can do nothing for a candidate, "" where it can."""
        ...

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress, /) -> Candidate:
        """Return a better candidate; the one that is given stays as it is."""
        ...

    def ensures(self, before: Candidate, after: Candidate, /) -> str:
        """Say which promise of its own the pass has broken, "" for none; `broken` holds what all promise."""
        ...


@runtime_checkable
class Aimed(Protocol):
    """A pass that is for something else than the distance, of which it may cost a little."""

    def gained(self, before: Distance, after: Distance, /) -> tuple[float, float]:
        """Return what it has gained of that on the held-out images, and the standard error."""
        ...


@dataclass(frozen=True)
class CrossFit:
    """A candidate fitted to all images, and what images say that a fit was left without.

    Attributes:
        before, after: (images, 2) of `confidence_shift`, of the same images; `after` of each image as fitted to all
            folds but its own.
    """

    candidate: Candidate
    before: NDArray[np.float64]
    after: NDArray[np.float64]


@runtime_checkable
class CrossFitted(Aimed, Protocol):
    """A pass whose gain is hardly more than chance moves it by, so that it needs all images to be fitted to.

    It is judged by them, too: each by what was fitted to all folds but its own (Stone, "Cross-Validatory Choice and
    Assessment of Statistical Predictions", 1974). `gained` is given distances with the confidences of those.
    """

    def cross_fitted(
        self, candidate: Candidate, folds: Sequence[Sequence[Path]], progress: Progress, /
    ) -> CrossFit | None:
        """Fit to all folds, and to all but each; None where fewer than two of them say anything."""
        ...


@runtime_checkable
class Replanning(Protocol):
    """A pass that plans anew, so that what is quantised changes; it has to be given what makes plans."""

    def planned_by(self, replan: Callable[[Mapping[str, str]], QuantPlan], /) -> WeightPass:
        """Return the pass with what plans the candidate's program with values in float: name → why."""
        ...


def optimise(
    candidate: Candidate,
    passes: Sequence[WeightPass],
    images: Sequence[Path],
    progress: Progress,
    views: bool = False,
) -> tuple[Candidate, tuple[PassRecord, ...]]:
    """Run passes one after the other; keep those that bring the held-out images nearer, else go on without them.

    What gains less than noise is tried on: it is kept together with the next pass if both gain more than noise.

    Args:
        images: files of calibration images in any order; every `HELD_OUT`th by name is kept from the passes.
        views: see few images in other pictures, too: passes those of their own, and judging those of the others.
    """
    images = sorted(images, key=lambda image: (image.name, str(image)))
    judged = take(images[::HELD_OUT], count=MAX_JUDGED)
    seen = [image for index, image in enumerate(images) if index % HELD_OUT]
    reason = _unmeasurable(candidate, seen)
    if reason:
        return candidate, not_run((each.name for each in passes), reason)
    if not views or len(images) >= ENOUGH:
        given = _Pictures(judged, seen, _folds(judged, seen, candidate.program.input.batch))
        return _one_after_the_other(candidate, passes, given, progress)
    wanted = candidate.program.input
    with with_views(judged, wanted) as more_judged, with_views(seen, wanted) as more_seen:
        made, records = _one_after_the_other(candidate, passes, _Pictures(more_judged, more_seen), progress)
    return made, tuple(replace(each, images=len(judged)) for each in records)


@dataclass(frozen=True)
class _Pictures:
    """What passes are judged on, what they see, and both in parts that say something of each other.

    Attributes:
        folds: none of views: those of one image are too much alike.
    """

    judged: Sequence[Path]
    seen: Sequence[Path]
    folds: Sequence[Sequence[Path]] = ()


def _folds(judged: Sequence[Path], seen: Sequence[Path], size: int) -> list[Sequence[Path]]:
    """Batch by batch, of those that are judged on and of as many as those may be of the others."""
    halves = judged, take(seen, count=MAX_JUDGED)
    return [half[start : start + size] for half in halves for start in range(0, len(half), size)]


def _one_after_the_other(
    candidate: Candidate, passes: Sequence[WeightPass], given: _Pictures, progress: Progress
) -> tuple[Candidate, tuple[PassRecord, ...]]:
    """Run passes on pictures that are seen, and judge them on others."""
    judged = given.judged
    with progress.step("measuring held-out images", 2 * len(judged)) as advance:
        held_out = hold_out(candidate.reference, judged, advance)
        start = _Measured(candidate, distance(candidate, held_out, advance))
    kept, tried_on, records, open_records = start, start, list[PassRecord](), list[int]()
    for each in passes:
        started = time.perf_counter()
        if isinstance(each, Aimed):  # it is judged by something else, which says nothing of what is open
            tried_on, open_records = kept, []
        reason, made = _tried(tried_on, each, given, held_out, progress)
        record = PassRecord(each.name, False, images=len(judged), reason=reason)
        if made:
            record, before = _judged(record, tried_on.distance, made), tried_on.distance
            if _gained(each, kept.distance, made):
                for index in open_records:
                    records[index] = _kept_with(records[index], each.name)
                kept, tried_on, open_records, record = made, made, [], replace(record, kept=True)
            else:
                record = replace(record, reason=f"reverted: {record.reason}")
                if not isinstance(each, Aimed) and log_margin(before, made.distance)[0] > 0:
                    tried_on, open_records = made, [*open_records, len(records)]
        records.append(replace(record, seconds=round(time.perf_counter() - started, 2)))
    return kept.candidate, tuple(records)


@dataclass(frozen=True)
class _Measured:
    """A candidate and its distance on the held-out images; of one that saw those, too, what others say of it."""

    candidate: Candidate
    distance: Distance
    fit: CrossFit | None = None

    def beside(self, before: Distance) -> tuple[Distance, Distance]:
        """What it is judged by: a distance before it and its own, with confidences that it did not see."""
        if not self.fit:
            return before, self.distance
        return replace(before, confidences=self.fit.before), replace(self.distance, confidences=self.fit.after)


def _tried(
    tried_on: _Measured, each: WeightPass, given: _Pictures, held_out: HeldOut, progress: Progress
) -> tuple[str, _Measured | None]:
    """Run one pass and measure what it made; or say why there is nothing."""
    old = tried_on.candidate
    reason = each.requires(old)
    if reason:
        return f"not run: {reason}", None
    fit = each.cross_fitted(old, given.folds, progress) if given.folds and isinstance(each, CrossFitted) else None
    changed = fit.candidate if fit else each(old, given.seen, progress)
    reason = broken(old, changed, isinstance(each, Replanning)) or each.ensures(old, changed)
    if reason:
        return f"refused: {reason}", None
    with progress.step(f"judging {each.name}", len(held_out.inputs)) as advance:
        return "", _Measured(changed, distance(changed, held_out, advance), fit)


def _judged(record: PassRecord, given: Distance, made: _Measured) -> PassRecord:
    """The record with the figures that a pass is judged by."""
    before, after = made.beside(given)
    noise = margin(before, after)[1]
    of_images = "held-out images" if made.fit else "images that it did not see"
    figures = f"the distance on {of_images} is {after.mean:.3g}, it was {before.mean:.3g} (noise {noise:.2g})"
    gain, its_noise = log_margin(before, after)
    figures += f"; image by image it is {gained_text(gain, its_noise)}"
    if after.shift is not None:
        whose = f" of {len(after.confidences)} images, each left out of the fit in its turn," if made.fit else ""
        figures += f"; confidences{whose} have shifted by {after.shift:+.3f}, before by {before.shift or 0:+.3f}"
    return replace(record, before=before.mean, after=after.mean, noise=noise, reason=figures)


def _kept_with(record: PassRecord, other: str) -> PassRecord:
    """The record of a pass that was tried on, and kept with a later one."""
    reason = record.reason.removeprefix("reverted: ")
    return replace(record, kept=True, reason=f"{reason}; within noise alone, kept with {other}")


def _gained(each: WeightPass, given: Distance, made: _Measured) -> bool:
    """Whether more than noise is gained."""
    before, after = made.beside(given)
    gain, noise = log_margin(before, after)
    if not isinstance(each, Aimed):
        return gain > MIN_GAIN * noise
    own, own_noise = each.gained(before, after)
    return own > MIN_GAIN * own_noise and gain >= -MAX_COST


def _unmeasurable(candidate: Candidate, seen: Sequence[Path]) -> str:
    if not candidate.measurable:
        return f"errors inside of the graph cannot be measured: {candidate.program.graph.obstacle or 'no raw outputs'}"
    return "" if seen else "two images are needed at least, one of them to judge by"


def broken(before: Candidate, after: Candidate, replanning: bool = False) -> str:
    """Say which promise of every pass is broken, "" for none.

    The values stay, what is quantised and how wide stays, groups stay and share one scale, fixed scales are not
    touched, weights are finite, pruned ones keep their zeros, and the reference is the same.

    Args:
        replanning: the plan is a new one, which makes its own types, groups and scales.
    """
    old, new = before.plan, after.plan
    if after.reference is not before.reference:
        return "what errors are measured against has changed"
    if after.program.values != before.program.values:
        return "the program's values have changed"
    reason = "" if replanning else _plan_broken(old, new)
    if reason:
        return reason
    paths = (path for value in after.program.values.values() for path in (value.weight, value.bias) if path)
    endless = (path for path in paths if not torch.isfinite(after.program.graph.parameter(path)).all())
    path = next(endless, "")
    if path:
        return f"{path} is not finite"
    path = filled(before, after)
    return f"zeros of {path}, which is pruned, are gone" if path else ""


def _plan_broken(old: QuantPlan, new: QuantPlan) -> str:
    if _types(old) != _types(new) or old.integer != new.integer:
        return "what is quantised has changed"
    if _groups(old) != _groups(new):
        return "groups of shared scales have changed"
    for name, tensor in new.tensors.items():
        known = old.tensors[name]
        numbers = (tensor.scale, tensor.zero_point)
        if known.rule == "fixed" and (tensor.rule, *numbers) != (known.rule, known.scale, known.zero_point):
            return f"the fixed scale of {name} has changed"
        if tensor.group and not tensor.is_float and numbers != _first(new, tensor.group):
            return f"{name} no longer shares the scale of its group"
    return ""


def _types(plan: QuantPlan) -> Mapping[str, tuple[str, int | None]]:
    return {name: (tensor.dtype, tensor.axis) for name, tensor in plan.tensors.items()}


def _groups(plan: QuantPlan) -> Mapping[str, str]:
    return {name: tensor.group for name, tensor in plan.tensors.items() if tensor.group}


def _first(plan: QuantPlan, group: str) -> tuple[tuple[float, ...], tuple[int, ...]]:
    return next(
        (tensor.scale, tensor.zero_point)
        for tensor in plan.tensors.values()
        if tensor.group == group and not tensor.is_float
    )
