"""What is to be done, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qexport.optimisation.effort import DEFAULT_EFFORT, EFFORTS
from qexport.planning.registry import DEFAULT_RANGES
from qexport.system.machine import default_threads
from qexport.targets import INTEGERS_ONLY, TARGETS

TUNE_SECONDS = 120.0


@dataclass(frozen=True)
class ExportJob:
    """One run. Field names are the option names, with underscores.

    Attributes:
        model: checkpoint path, or a name that Ultralytics knows.
        format: backends to write for.
        precision: of weights and activations, one of `qexport.vocabulary.PRECISIONS`; "" becomes what the short forms
            say, and "int8-full" for devices that compute with nothing else.
        int8, half: short forms of "int8" and "fp16"; neither means "fp32".
        target: a device of `qexport.targets`, which says what is not given: formats, precision, CPU, threads.
        io: type of what integer-only files take and give.
        layout: order of axes of images in TFLite files, "nchw" or "nhwc"; None for nchw, of integer-only files nhwc.
        normalised_boxes: TFLite files give coordinates in 0..1 where rows come out, too.
        data: data set YAML whose train split calibrates and whose val split evaluates.
        eval_data: another YAML to evaluate on, or a folder or list of images, which need no labels.
        imgsz: (height, width) in pixels; None for the size that the model was trained at.
        batch: images in one run of the artifact.
        device: where calibration runs; only "cpu" so far.
        fraction, calib_images: share and greatest number of the calibration images to use; 0 for all, None for
            what `qexport.data.choice.limit_of` says.
        min_images: calibration images that must be usable.
        nms: build non-maximum suppression into the artifact.
        head: "end2end" or "one2many"; None for end-to-end where the model has it.
        ranges: how activation ranges are chosen; None for what suits the precision, see `range_method`.
        threads: CPU threads of runners.
        jobs: processes that score images at once, each with so many threads; figures do not depend on it.
        opset: ONNX operator set; None for the one that suits each runtime.
        dynamic: leave the number of images in a run open.
        cpu: kind of CPU that integer types are chosen for, "auto" for this machine's; for single formats
            "onnx=arm,openvino=vnni": see `qexport.system.machine.kind_for`.
        no_build: stop at the graph where a format builds an engine from it.
        workspace: GiB that TensorRT may use while it builds.
        timing_cache: file that TensorRT keeps kernel timings in.
        dla: DLA core of a Jetson to build for.
        out: folder for everything that is written; None for qexport_out/<model>.
        report: another place for report.json; with a name that ends in .html, a place for the page beside it.
        calibration: a calibration.npz to use in place of a calibration pass.
        plan: a plan.json to obey in place of planning, as a run wrote it or edited by hand.
        effort: how much is done so that integers lose less, one of `qexport.optimisation.effort.EFFORTS`.
        optimise: names of passes over the weights in place of the effort's; each is kept where images that it did not
            see lose less by it.
        candidate: a candidate.npz to obey in place of planning and optimising.
        densify: let passes make something else of the zeros of pruned weights.
        no_eval, no_latency: leave out accuracy, latency.
        no_cache: take nothing of earlier runs, and leave nothing for later ones: see `qexport.system.cache`.
        max_drop: gate: percent of FP32's mAP that may be lost, 0..100. Bounds are None where there is no such rule.
        repair: keep in float what it takes to meet `max_drop`.
        tune: what a plan is searched for on this machine, "latency"; None for nothing.
        tune_seconds: most seconds of that search, for each format.
        min_retention, min_fidelity: gate: least share, 0..1.
        min_speedup: gate: least factor by which it is faster than FP32.
        max_size: gate: most megabytes (10⁶ bytes) of an artifact.
        max_latency_ms: gate: most milliseconds of the median run.
        rule: gate: rules of other packages, each as NAME=BOUND.
        strict: an artifact whose outputs are far from FP32's fails the gate.
        baseline: report.json of an earlier run; what is worse by more than noise fails the gate.
        summary, junit: files for the report as Markdown, and for rules and verifications as JUnit XML.
        trust_checkpoint: load pickled classes that are not on the allow-list.
        keep_float: values whose operation stays float, by their names in plans or in the ONNX file.
        raw_outputs: of an ONNX file, values behind which everything stays float, in place of what is found by itself.
        pixels: what an ONNX file wants pixels to be: see `qexport.data.input_form`.
        bgr: an ONNX file wants blue first.
        option: options of formats that have others than these, each as NAME=VALUE.
    """

    model: str
    format: tuple[str, ...] = ("tflite",)
    precision: str = ""
    int8: bool = False
    half: bool = False
    target: str | None = None
    io: str = "int8"
    layout: str | None = None
    normalised_boxes: bool = False
    data: str | None = None
    eval_data: str | None = None
    imgsz: tuple[int, int] | None = None
    batch: int = 1
    device: str = "cpu"
    fraction: float = 1.0
    calib_images: int | None = None
    min_images: int = 1
    nms: bool = False
    head: str | None = None
    ranges: str | None = None
    threads: int = field(default_factory=default_threads)
    jobs: int = 1
    opset: int | None = None
    dynamic: bool = False
    cpu: str = "auto"
    no_build: bool = False
    workspace: float | None = None
    timing_cache: Path | None = None
    dla: int | None = None
    out: Path | None = None
    report: Path | None = None
    calibration: Path | None = None
    plan: Path | None = None
    effort: str = DEFAULT_EFFORT
    optimise: tuple[str, ...] = ()
    candidate: Path | None = None
    densify: bool = False
    no_eval: bool = False
    no_latency: bool = False
    no_cache: bool = False
    max_drop: float | None = None
    repair: bool = False
    tune: str | None = None
    tune_seconds: float = TUNE_SECONDS
    min_retention: float | None = None
    min_fidelity: float | None = None
    min_speedup: float | None = None
    max_size: float | None = None
    max_latency_ms: float | None = None
    rule: tuple[str, ...] = ()
    strict: bool = False
    baseline: Path | None = None
    summary: Path | None = None
    junit: Path | None = None
    trust_checkpoint: bool = False
    keep_float: tuple[str, ...] = ()
    raw_outputs: tuple[str, ...] = ()
    pixels: str = "0..1"
    bgr: bool = False
    option: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Let the short forms fill in the precision."""
        if not self.precision:
            short = (precision for option, precision in self.short_forms.items() if getattr(self, option))
            object.__setattr__(self, "precision", next(short, INTEGERS_ONLY if self.integer_device else "fp32"))

    @property
    def integer_device(self) -> bool:
        """Whether it is for a device that computes with integers only."""
        from qexport.backends.registry import known

        formats = known(self.format)
        return self.only_integers or (bool(formats) and all(info.precisions == {INTEGERS_ONLY} for info in formats))

    @property
    def only_integers(self) -> bool:
        """Whether the target computes with integers only."""
        return self.target in TARGETS and TARGETS[self.target].integers_only

    @property
    def short_forms(self) -> dict[str, str]:
        """Option → the precision that it means."""
        return {"int8": INTEGERS_ONLY if self.integer_device else "int8", "half": "fp16"}

    @property
    def backend_options(self) -> dict[str, Any]:
        """What backends may read as their own options, by name: see `qexport.backends.info.options_from`."""
        return {**vars(self), **dict(each.split("=", 1) for each in self.option if "=" in each)}

    @property
    def range_method(self) -> str:
        """How activation ranges are chosen: 16 bits have room for every extreme, 8 bits are for the bulk."""
        suited = "minmax" if self.precision == "w8a16" else EFFORTS[self.effort].ranges
        return self.ranges or suited or DEFAULT_RANGES

    @property
    def passes(self) -> tuple[str, ...]:
        """Names of the passes over the weights: a plan or candidate that was given is obeyed as it is."""
        return self.optimise or (() if self.plan or self.candidate else EFFORTS[self.effort].passes)

    @property
    def views(self) -> bool:
        """Whether few calibration images are seen in other pictures, too."""
        return EFFORTS[self.effort].views

    @property
    def repairs(self) -> bool:
        """Whether values are kept in float to meet `max_drop`, as asked or by the effort; a given plan is obeyed."""
        by_effort = EFFORTS[self.effort].repairs and self.calibrates and self.precision != INTEGERS_ONLY
        return self.max_drop is not None and (self.repair or (by_effort and not (self.plan or self.candidate)))

    @property
    def calibrates(self) -> bool:
        """Whether activations get scales from calibration: integers of a profile have them."""
        from qexport.backends.registry import known

        return any(self.precision in info.profiles for info in known(self.format))

    def needs_float_counterpart(self, timed: bool) -> bool:
        """Whether a format's FP32 file is needed beside what is asked for; `timed`: its latency can be measured."""
        return self.precision != "fp32" and (self.evaluates or (timed and self.measures_latency))

    @property
    def evaluates(self) -> bool:
        """Whether accuracy is measured: where there is something to measure it on, unless nobody wants it."""
        return not self.no_eval and bool(self.data or self.eval_data)

    @property
    def measures_latency(self) -> bool:
        """Whether latency is measured: what this machine takes says nothing of a device of another kind."""
        return not self.no_latency and (self.target not in TARGETS or TARGETS[self.target].here)

    @property
    def from_onnx(self) -> bool:
        """Whether the model is an ONNX file."""
        return self.model.lower().endswith(".onnx")

    @property
    def stem(self) -> str:
        """What artifacts are named after."""
        return Path(self.model).stem

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self.out or Path("qexport_out") / self.stem

    @property
    def page(self) -> Path | None:
        """Where the report is written as a page; None for nowhere."""
        return self.report if self.report and self.report.suffix.lower() in (".html", ".htm") else None

    @property
    def report_json(self) -> Path:
        """Where report.json is written."""
        return self.report if self.report and not self.page else self.folder / "report.json"
