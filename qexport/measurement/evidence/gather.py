"""What stands behind an artifact's figures: intervals, classes, scores, images, and the noise of every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qexport.calibration.calibration_table import CalibrationTable
from qexport.clock import Clock
from qexport.detections.matching import CONFIDENCE
from qexport.detections.thresholds import Thresholds
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.attempt import Unmeasured, attempt
from qexport.measurement.average_precision import (
    FloatArray,
    Scores,
    at_first_threshold,
    by_class,
    class_precisions,
    figure_once,
    mean_average_precision,
)
from qexport.measurement.evidence.bootstrap import Intervals, corrected_interval, intervals, resample_weights
from qexport.measurement.evidence.confidence import confidence_shift, evaluated_thresholds
from qexport.measurement.evidence.fidelity_parts import FidelityParts
from qexport.measurement.evidence.gallery import gallery
from qexport.measurement.evidence.histograms import worst_histograms
from qexport.measurement.evidence.layers import layers
from qexport.measurement.evidence.matched_boxes import matched_boxes
from qexport.measurement.evidence.parts import ConfidenceShift, Histogram, Layer, Picture
from qexport.measurement.kept import keep, kept
from qexport.measurement.measure import NO_CACHE, Figures
from qexport.measurement.top1 import class_shares, top1
from qexport.planning.plan import load_plan
from qexport.programs.program import Program
from qexport.system.cache import Cache
from qexport.tasks import SCORING
from qexport.verification.result import ArtifactResult, float_counterparts


@dataclass(frozen=True)
class ClassFigure:
    """One class of the labels.

    Attributes:
        labels: how many the evaluation images have.
        map, map_float: the artifact's and the float file's figure of the class; None without a float file.
    """

    number: int
    labels: int
    map: float
    map_float: float | None


@dataclass(frozen=True)
class Evidence:
    """Of one artifact; None or empty where it was not measured or makes no sense."""

    intervals: Intervals | None = None
    per_class: tuple[ClassFigure, ...] = ()
    confidence: ConfidenceShift | None = None
    gallery: tuple[Picture, ...] | None = None
    layers: tuple[Layer, ...] | None = None
    histograms: tuple[Histogram, ...] | None = None
    fidelity: FidelityParts | None = None
    thresholds: Thresholds | None = None


def gather(
    program: Program,
    task: str,
    table: CalibrationTable | None,
    written: Sequence[ArtifactResult],
    figures: Mapping[Path, Figures],
    clock: Clock,
    missing: list[Unmeasured] | None = None,
    cache: Cache = NO_CACHE,
) -> dict[Path, Evidence]:
    """Evidence of every artifact, by path.

    Args:
        missing: gains what could not be made; what else can be is.
        cache: what earlier runs made of the same accuracies.
    """
    lost = [] if missing is None else missing
    others, before = float_counterparts(written), len(lost)
    accuracies = {path: each.accuracy for path, each in figures.items() if each.accuracy and each.accuracy.found}
    keys = {path: _key(cache, figures[path], figures.get(others.get(path, path))) for path in accuracies}
    found = {path: earlier[0] for path, key in keys.items() if (earlier := kept(cache, key, Evidence))}
    anew = {each: accuracies.get(each) for path in keys if path not in found for each in (path, others.get(path, path))}
    resamples = _resamples(task, {path: each for path, each in anew.items() if each and each.scores}, clock, lost)
    with clock.step("compare", "Comparing detections", len(written)) as advance:
        for item in written:
            path, other = item.artifact.path, others.get(item.artifact.path)
            if path in accuracies and path not in found:
                found[path] = _intervals(path, other, resamples, lost)
                pair = accuracies[path], accuracies.get(other) if other else None
                found[path] = _of_accuracy(task, *pair, found[path], path, lost)
                if len(lost) == before:
                    keep(cache, keys[path], found[path])
            with attempt(lost, "noise of layers", path):
                noise = _noise(program, table, item)
                found[path] = replace(found.get(path, Evidence()), layers=noise[0], histograms=noise[1])
            found.setdefault(path, Evidence())
            advance()
    return found


def _key(cache: Cache, own: Figures, reference: Figures | None) -> str:
    """Key of what an accuracy shows beside the float file's; "" where nobody knows either of them again."""
    if not own.key or (reference and not reference.key):
        return ""
    return cache.key("evidence", {"own": own.key, "reference": reference.key if reference else ""})


def _intervals(
    path: Path, other: Path | None, resamples: Mapping[Path, FloatArray], missing: list[Unmeasured]
) -> Evidence:
    """Evidence of nothing but intervals; of nothing where there are no resamples."""
    if path in resamples:
        with attempt(missing, "intervals of accuracy", path):
            return Evidence(intervals=intervals(resamples[path], resamples.get(other) if other else None))
    return Evidence()


def _resamples(
    task: str, accuracies: Mapping[Path, Accuracy], clock: Clock, missing: list[Unmeasured]
) -> dict[Path, FloatArray]:
    found: dict[Path, FloatArray] = {}
    if not accuracies:
        return found
    with clock.step("bootstrap", "Resampling", len(accuracies)) as advance:
        for path, accuracy in accuracies.items():
            with attempt(missing, "intervals of accuracy", path):
                found[path] = resampled(task, accuracy.scores)
            advance()
    return found


def resampled(task: str, scores: Scores) -> FloatArray:
    """The task's own figure on each resample of the images, (resamples,)."""
    images = sorted(scores)  # resamples of different artifacts draw the same images
    if not SCORING[task].correct:
        return top1(scores, images, resample_weights(len(images)))
    return mean_average_precision(by_class(scores, images), resample_weights(len(images)))


def _of_accuracy(
    task: str, own: Accuracy, reference: Accuracy | None, made: Evidence, path: Path, missing: list[Unmeasured]
) -> Evidence:
    """Add what detections show; a part that fails is left out."""
    if own.scores:
        with attempt(missing, "accuracy of classes", path):
            made = replace(made, per_class=class_figures(task, own.scores, reference.scores if reference else None))
    if reference is None:
        return made
    with attempt(missing, "parts of fidelity", path):
        made = replace(made, fidelity=fidelity_parts(task, own, reference))
    with attempt(missing, "shift of confidence", path):
        made = replace(made, confidence=confidence_shift(reference.found, own.found, CONFIDENCE))
    with attempt(missing, "thresholds", path):
        made = replace(made, thresholds=evaluated_thresholds(reference, own))
    with attempt(missing, "gallery", path):
        made = replace(made, gallery=gallery(reference.found, own.found, CONFIDENCE))
    return made


def fidelity_parts(task: str, own: Accuracy, reference: Accuracy) -> FidelityParts | None:
    """Fidelity's interval and parts; None where there is no fidelity."""
    if own.fidelity is None:
        return None
    samples = resampled(task, own.fidelity_scores)
    bounds = corrected_interval(samples, own.fidelity)
    if not SCORING[task].correct:
        return FidelityParts(bounds, None, None, (), len(samples))
    images = sorted(own.fidelity_scores)
    at_50 = at_first_threshold(by_class(own.fidelity_scores, images))
    figure = figure_once(at_50, len(images))
    return FidelityParts(
        interval=bounds,
        at_50=figure,
        at_50_interval=corrected_interval(mean_average_precision(at_50, resample_weights(len(images))), figure),
        matched=matched_boxes(reference.found, own.found, CONFIDENCE),
        resamples=len(samples),
    )


def class_figures(task: str, own: Scores, reference: Scores | None) -> tuple[ClassFigure, ...]:
    """mAP50-95, or the share of right answers, of every class that the labels have."""

    def every(scores: Scores) -> list[tuple[int, int, float]]:
        return list(
            class_precisions(by_class(scores, sorted(scores))) if SCORING[task].correct else class_shares(scores)
        )

    floats = {number: figure for number, _, figure in every(reference)} if reference else {}
    return tuple(ClassFigure(number, labels, figure, floats.get(number)) for number, labels, figure in every(own))


def _noise(
    program: Program, table: CalibrationTable | None, item: ArtifactResult
) -> tuple[tuple[Layer, ...] | None, tuple[Histogram, ...] | None]:
    """The plan's values and, where there was a calibration pass, the worst histograms of an artifact of integers."""
    if item.plan is None or item.sqnr is None:
        return None, None
    plan = load_plan(item.plan)
    worst = worst_histograms(program, plan, table.statistics, item.sqnr) if table else None
    return layers(program, plan, item.sqnr), worst
