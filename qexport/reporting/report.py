"""The report: every figure of a run as plain data. JSON is its form; tables and pages are renderings of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qexport.backends.device_fit import DeviceFit
from qexport.clock import elapsed
from qexport.detections.thresholds import Thresholds
from qexport.measurement.attempt import Unmeasured
from qexport.measurement.evidence.fidelity_parts import Interval, MatchedBoxes
from qexport.measurement.evidence.parts import ConfidenceShift, Histogram, Layer, Picture
from qexport.optimisation.pass_record import PassRecord
from qexport.optimisation.repair_record import RepairRecord
from qexport.optimisation.tune_record import TuneRecord
from qexport.system.json_form import beside, called, from_plain, to_plain
from qexport.system.machine import Environment
from qexport.tasks import METRICS
from qexport.training.record import TrainingRecord
from qexport.verification.likeness import Likeness
from qexport.verification.outcome import OutputFidelity, Verification
from qexport.version import __version__

SCHEMA = 2
RUN, ARTIFACT, ACCURACY, LATENCY = "run", "artifact", "accuracy", "latency"
"""What a warning is about: the run, a whole file, or figures of one kind, which are not shown without it."""
LIKENESS = "likeness"
"""The same of a file whose outputs are far from FP32's: none of its figures is shown without it."""


@dataclass(frozen=True)
class Warning:
    """What a reader must know before believing something, and what that is: "run", "artifact", "accuracy", "latency",
    "likeness".

    In JSON texts are in `warnings` and what they are about is in `warnings_about`, in the same order.
    """

    about: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What was exported.

    Attributes:
        task: None for models of unknown task.
        nms: whether boxes come out without overlaps; None in the first reports.
        imgsz: height and width in pixels.
        names: of the classes, in their order.
        program: fingerprint of the float program.
    """

    path: str
    sha256: str
    task: str | None = None
    head: str
    nms: bool | None = None
    imgsz: tuple[int, ...]
    batch: int
    classes: int = 0
    names: tuple[str, ...] = ()
    single_class: bool = False
    program: str = ""


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be used, and why."""

    image: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CalibrationInfo:
    """What activation ranges are from.

    Attributes:
        data, table: as given; None where not.
        images: how many were used, of as many as `available` says.
        fingerprint: of the images that were asked for.
        ranges: how ranges were chosen.
        min_images: how many had to be usable.
        skipped: images that were left out.
        taken: when the earlier run was that calibrated, in UTC; "" where this one did.
    """

    data: str | None = None
    table: str | None = None
    images: int = 0
    available: int | None = None
    fingerprint: str = ""
    preprocess: str = ""
    skipped: tuple[SkippedImage, ...] = ()
    ranges: str = ""
    min_images: int = 1
    taken: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluationInfo:
    """What accuracy is measured on.

    Attributes:
        metrics: names of the task's two figures.
        labelled: the images have labels; without, nothing but agreement with FP32 is measured.
        also_calibrated_on: names of images that calibration has seen, too.
        skipped: images that were left out.
    """

    metrics: tuple[str, ...] = ()
    data: str | None = None
    images: int = 0
    fingerprint: str = ""
    also_calibrated_on: tuple[str, ...] = ()
    labelled: bool = True
    skipped: tuple[SkippedImage, ...] = ()


@dataclass(frozen=True)
class ClassAccuracy:
    """One class of the labels: how many there are, the artifact's figure, and the float file's."""

    number: int = field(metadata=called("class"))
    name: str
    labels: int
    map: float | None
    map_float: float | None


@dataclass(frozen=True, kw_only=True)
class AccuracyInfo:
    """Accuracy of an artifact, in points of 0..1, beside that of the float file of its runtime.

    Attributes:
        map, map50: the task's own two figures; None without labels.
        drop: the float file's `map` minus the artifact's.
        retention: the artifact's share of the float file's.
        fidelity: agreement with what the float file finds: mAP50-95 against it, or a classifier's share.
        fidelity_ceiling: what the float file has against itself.
        fidelity50: the same at an IoU of 0.5 alone.
        map_interval, drop_interval, retention_interval, fidelity_interval, fidelity50_interval: 95 % intervals over
            images.
        matched_boxes: how well boxes coincide where both find an object, by its size.
        resamples: how many those are of; None where there is nothing but the figures above.
        thresholds: of scores, from evaluation images; None without a float file, and of what has no detections.
    """

    map: float | None = None
    map50: float | None = None
    box_map: float | None = field(default=None, metadata=beside("box_map"))
    map_float: float | None = None
    map50_float: float | None = None
    drop: float | None = None
    retention: float | None = None
    fidelity: float | None = None
    fidelity_ceiling: float | None = field(default=None, metadata=beside("fidelity_ceiling"))
    images: int
    map_interval: Interval | None = field(default=None, metadata=beside("resamples"))
    drop_interval: Interval | None = field(default=None, metadata=beside("resamples"))
    retention_interval: Interval | None = field(default=None, metadata=beside("resamples"))
    resamples: int | None = field(default=None, metadata=beside("resamples"))
    per_class: tuple[ClassAccuracy, ...] | None = field(default=None, metadata=beside("resamples"))
    confidence: ConfidenceShift | None = field(default=None, metadata=beside("resamples"))
    fidelity_interval: Interval | None = field(default=None, metadata=beside("resamples"))
    fidelity50: float | None = field(default=None, metadata=beside("resamples"))
    fidelity50_interval: Interval | None = field(default=None, metadata=beside("resamples"))
    matched_boxes: tuple[MatchedBoxes, ...] = field(default=(), metadata=beside("resamples"))
    thresholds: Thresholds | None = field(default=None, metadata=beside("thresholds"))


@dataclass(frozen=True)
class LatencyInfo:
    """Milliseconds of a run: median, 95th percentile, minimum."""

    p50: float
    p95: float
    min: float


@dataclass(frozen=True)
class DefaultRun:
    """An FP32 file in the type that its runtime takes where nobody asks for FP32."""

    arithmetic: str
    latency_ms: LatencyInfo


@dataclass(frozen=True)
class ArtifactReport:
    """Figures of one artifact; None where they were not measured.

    Attributes:
        runtime: what it was verified, scored and timed with.
        own_runtime: whether that is the runtime that it is for, on hardware that it is for; if not, its latency is not
            measured, and all else is the stand-in's.
        arithmetic: type → share of the multiply-accumulates that the runtime does in it here, 0..1.
        needs: what runs the file → the least version of it.
        by_default: of an FP32 file that its runtime would compute in less than FP32: in what, and its latency then.
        speedup_by_default: factor by which it is faster than that.
        passes: over the weights, in the order in which they were tried.
        likeness: to FP32 on calibration images; its thresholds are those of the file's metadata.
        repair: what was kept in float to meet `--max-drop`.
        tuning: what was tried for `--tune`, and what each gave.
        peak_share: what its multiply-accumulates alone would take at the peaks that `qexport doctor` has measured here
            with as many threads, each in the type that it is computed in, as a share of the median run: 1 is the peak.
            None where nothing of this machine is kept.
        taken: what is an earlier run's, "file", "accuracy", "latency" or "outputs" → when that made it, in UTC.
    """

    path: str
    format: str
    precision: str
    sha256: str
    bytes: int
    runtime: str = ""
    engine: bool = False
    accuracy: AccuracyInfo | None = None
    latency_ms: LatencyInfo | None = None
    latency_float_ms: LatencyInfo | None = None
    speedup: float | None = None
    int8_mac_coverage: float | None = None
    quantisation: Mapping[str, str] | None = None
    plan: str | None = None
    verification: Verification | None = None
    outputs: tuple[OutputFidelity, ...] = ()
    device: DeviceFit | None = None
    gallery: tuple[Picture, ...] | None = None
    layers: tuple[Layer, ...] | None = None
    histograms: tuple[Histogram, ...] | None = None
    manifest: str | None = None
    warnings: tuple[Warning, ...] = ()
    own_runtime: bool = True
    arithmetic: Mapping[str, float] | None = None
    needs: Mapping[str, str] | None = None
    by_default: DefaultRun | None = None
    speedup_by_default: float | None = None
    passes: tuple[PassRecord, ...] = ()
    likeness: Likeness | None = None
    repair: RepairRecord | None = None
    tuning: TuneRecord | None = None
    peak_share: float | None = field(default=None, metadata=beside("peak_share"))
    taken: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """Its name without the folder that it lay in."""
        return file_name(self.path)

    @property
    def label(self) -> str:
        """Format and precision, as options call them: `onnx int8`, `engine int8`."""
        return f"{'engine' if self.engine else self.format} {self.precision}"

    def warned(self, about: str) -> tuple[Warning, ...]:
        """The warnings that a figure of this kind must not be shown without."""
        return tuple(warning for warning in self.warnings if warning.about in (about, LIKENESS))


@dataclass(frozen=True)
class Failure:
    """A format that was not written, or not to its end: why, and the exit code that it leads to."""

    format: str
    reason: str
    exit_code: int


@dataclass(frozen=True)
class Outcome:
    """What became of one rule on one artifact.

    Attributes:
        rule: its name, which is that of the option.
        artifact: file name.
        figure: None where there was nothing to measure, which no rule passes.
        interval: 95 % interval of the figure, None where there is none.
        text: one line: figure, bound, and what a reader must know before believing the figure.
    """

    rule: str
    artifact: str
    figure: float | None
    interval: Interval | None
    bound: float
    passed: bool
    text: str


@dataclass(frozen=True)
class Gate:
    """Every rule that was checked."""

    passed: bool
    rules: tuple[Outcome, ...]


@dataclass(frozen=True)
class BaselineInfo:
    """The report that a run was compared with: its path, and the hash of its file."""

    path: str
    sha256: str = ""


@dataclass(frozen=True)
class Report:
    """One run: what went in, where it ran, what came out.

    Attributes:
        command: the command line, as one string.
        seconds: wall-clock time of each step. Planning, optimising, simulating, lowering and verifying count by
            themselves for each artifact, such as "plan_tflite_int8"; where a second process did them beside others,
            "wait_tflite_int8" says how much of it was waited for (`elapsed`).
        threads: CPU threads that artifacts ran with.
        warnings: about the run as a whole, or about figures of every artifact.
        failures: formats that did not come to their end; the others did.
        gate: rules that were checked, None where none was set.
        unmeasured: what could not be measured or rendered; of artifacts it is among their warnings, too.
        saved: where this report was saved.
        training: what became of the training that the checkpoint comes from, for each profile; empty for any other.
    """

    command: str
    model: ModelInfo
    calibration: CalibrationInfo | None
    evaluation: EvaluationInfo | None
    artifacts: tuple[ArtifactReport, ...]
    seconds: Mapping[str, float]
    threads: int
    warnings: tuple[Warning, ...] = ()
    failures: tuple[Failure, ...] = ()
    gate: Gate | None = None
    baseline: BaselineInfo | None = None
    unmeasured: tuple[Unmeasured, ...] = ()
    saved: str = ""
    training: tuple[TrainingRecord, ...] = ()
    environment: Environment = field(default_factory=Environment)
    schema: int = SCHEMA
    qexport: str = __version__

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the two figures of accuracy."""
        return (self.evaluation.metrics if self.evaluation else ()) or METRICS

    @property
    def elapsed(self) -> float:
        """Seconds of the whole run: of what a second process did beside it, only what was waited for."""
        return elapsed(self.seconds)


def to_json(report: Report) -> str:
    """Return the report as indented JSON."""
    content = to_plain(report)
    for part in (content, *content["artifacts"]):
        told = part["warnings"]
        part |= {"warnings": [each["text"] for each in told], "warnings_about": [each["about"] for each in told]}
    return json.dumps(content, indent=2, default=str) + "\n"


def from_json(content: Mapping[str, Any]) -> Report:
    """Return the report that `to_json` was given, from the parsed JSON of this schema.

    Raises:
        ValueError: names the field that is missing or of another type.
    """
    artifacts = content.get("artifacts")
    if isinstance(artifacts, list):
        content = {**content, "artifacts": [_with_warnings(each, ARTIFACT) for each in artifacts]}
    return from_plain(Report, _with_warnings(content, RUN))


def _with_warnings(part: Any, otherwise: str) -> Any:
    """Join warnings with what they are about: `otherwise` where a report of an earlier version does not say."""
    texts = part.get("warnings") if isinstance(part, Mapping) else None
    if not isinstance(texts, list):
        return part
    about = part.get("warnings_about")
    if not isinstance(about, list) or len(about) != len(texts):
        about = [otherwise] * len(texts)
    told = [{"about": kind, "text": text} for kind, text in zip(about, texts, strict=True)]
    return {**part, "warnings": told}


def file_name(path: str) -> str:
    """The last part of a path, of whichever system."""
    return str(path).replace("\\", "/").rsplit("/", 1)[-1]
