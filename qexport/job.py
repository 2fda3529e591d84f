"""What is to be done: the command line and an optional config file, as one frozen value.

Everything that can be refused without looking into a model is refused here, before torch is imported.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.errors import InputError, UsageError
from qexport.lowering.cpu import KINDS
from qexport.reporting.gate import BY_FIELD, check_measured

OPSETS = range(18, 24)
"""ONNX operator sets that torch.onnx writes without converting."""

HEADS = ("end2end", "one2many")
RANGE_METHODS = ("percentile", "minmax", "mse")

PRECISIONS = ("fp32", "fp16", "int8", "int8-dynamic", "int8-full", "w8a16")
NOTHING_KEPT = {
    "fp32": "all of it is float already: leave it out",
    "int8-full": "it has no float: use --precision int8",
}
CALIBRATED = frozenset({"int8", "int8-full", "w8a16"})
"""Precisions whose activations are integers with scales from calibration."""
SHORT_FORMS = ("int8", "half")
TARGETS = ("mcu",)
IO_TYPES = ("int8", "uint8")


@dataclass(frozen=True)
class ExportJob:
    """One run. Field names are the option names, with underscores.

    Attributes:
        model: checkpoint path, or a name that Ultralytics knows.
        format: backends to write for.
        precision: of weights and activations, one of `PRECISIONS`; "" becomes what the short forms say, and
            "int8-full" for devices that compute with nothing else.
        int8, half: short forms of "int8" and "fp16"; neither means "fp32".
        target: a kind of device that the TFLite file is prepared for besides: "mcu", a microcontroller.
        io: type of what integer-only files take and give.
        data: data set YAML whose train split calibrates and whose val split evaluates.
        eval_data: another YAML to evaluate on.
        imgsz: (height, width) in pixels; None for the size that the model was trained at.
        batch: images in one run of the artifact.
        device: where calibration runs; only "cpu" so far.
        fraction, calib_images: share and number of the calibration images to use.
        nms: build non-maximum suppression into the artifact.
        head: "end2end" or "one2many"; None for end-to-end where the model has it.
        ranges: how activation ranges are chosen; None for what suits the precision, see `range_method`.
        threads: CPU threads of runners.
        opset: ONNX operator set; None for the one that suits each runtime.
        dynamic: leave the number of images in a run open.
        cpu: kind of CPU that integer types are chosen for; "auto" for this machine's.
        no_build: stop at the graph where a format builds an engine from it.
        workspace: GiB that TensorRT may use while it builds.
        timing_cache: file that TensorRT keeps kernel timings in.
        dla: DLA core of a Jetson to build for.
        out: folder for everything that is written; None for qexport_out/<model>.
        report: another place for report.json; with a name that ends in .html, a place for the page beside it.
        calibration: a calibration.npz to use in place of a calibration pass.
        no_eval, no_latency: leave out accuracy, latency.
        max_drop: gate: percent of FP32's mAP that may be lost, 0..100. Bounds are None where there is no such rule.
        min_retention, min_fidelity: gate: least share, 0..1.
        min_speedup: gate: least factor by which it is faster than FP32.
        max_size: gate: most megabytes (10⁶ bytes) of an artifact.
        max_latency_ms: gate: most milliseconds of the median run.
        baseline: report.json of an earlier run; what is worse by more than noise fails the gate.
        summary, junit: files for the report as Markdown, and for rules and verifications as JUnit XML.
        trust_checkpoint: load pickled classes that are not on the allow-list.
        keep_float: values whose operation stays float, by their names in plans or in the ONNX file.
        raw_outputs: of an ONNX file, values behind which everything stays float, in place of what is found by itself.
        pixels: what an ONNX file wants pixels to be: see `qexport.data.input_form`.
        bgr: an ONNX file wants blue first.
    """

    model: str
    format: tuple[str, ...] = ("tflite",)
    precision: str = ""
    int8: bool = False
    half: bool = False
    target: str | None = None
    io: str = "int8"
    data: str | None = None
    eval_data: str | None = None
    imgsz: tuple[int, int] | None = None
    batch: int = 1
    device: str = "cpu"
    fraction: float = 1.0
    calib_images: int | None = None
    nms: bool = False
    head: str | None = None
    ranges: str | None = None
    threads: int = 2
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
    no_eval: bool = False
    no_latency: bool = False
    max_drop: float | None = None
    min_retention: float | None = None
    min_fidelity: float | None = None
    min_speedup: float | None = None
    max_size: float | None = None
    max_latency_ms: float | None = None
    baseline: Path | None = None
    summary: Path | None = None
    junit: Path | None = None
    trust_checkpoint: bool = False
    keep_float: tuple[str, ...] = ()
    raw_outputs: tuple[str, ...] = ()
    pixels: str = "0..1"
    bgr: bool = False

    def __post_init__(self) -> None:
        """Let the short forms fill in the precision."""
        if not self.precision:
            short = (precision for option, precision in self.short_forms.items() if getattr(self, option))
            object.__setattr__(self, "precision", next(short, "int8-full" if self.integer_device else "fp32"))

    @property
    def integer_device(self) -> bool:
        """Whether it is for a device that computes with integers only."""
        return self.format == ("edgetpu",) or self.target == "mcu"

    @property
    def short_forms(self) -> dict[str, str]:
        """Option → the precision that it means."""
        return {"int8": "int8-full" if self.integer_device else "int8", "half": "fp16"}

    @property
    def range_method(self) -> str:
        """How activation ranges are chosen: 16 bits have room for every extreme, 8 bits are for the bulk."""
        return self.ranges or ("minmax" if self.precision == "w8a16" else "percentile")

    @property
    def calibrates(self) -> bool:
        """Whether activations get scales from calibration."""
        return self.precision in CALIBRATED

    def compares(self, timed: bool) -> bool:
        """Whether a format's FP32 file is needed beside what is asked for; `timed`: its latency can be measured."""
        return self.precision != "fp32" and (not self.no_eval or (timed and self.times))

    @property
    def times(self) -> bool:
        """Whether latency is measured: what this machine takes says nothing of a microcontroller."""
        return not self.no_latency and not self.target

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


FIELDS = {field.name: field for field in dataclasses.fields(ExportJob)}
PATHS = ("out", "report", "calibration", "timing_cache", "baseline", "summary", "junit")
NAME_LISTS = ("format", "keep_float", "raw_outputs")


def make_job(options: Mapping[str, Any], config: Path | None = None) -> ExportJob:
    """Merge a config file and the command line, which wins, and check the result.

    Args:
        options: by field name; None means not given.
        config: YAML with the same names, hyphens or underscores.

    Raises:
        UsageError: an unknown name, a value of the wrong kind or out of range, or an impossible combination.
    """
    given = {name: value for name, value in options.items() if value is not None}
    configured = read_config(config) if config else {}
    if any(given.get(name) for name in ("precision", *SHORT_FORMS)):
        configured = {name: value for name, value in configured.items() if name not in ("precision", *SHORT_FORMS)}
    merged = {**configured, **given}
    if "model" not in merged:
        raise UsageError("no model given", "qexport MODEL.pt --format tflite --int8 --data DATA.yaml")
    if "format" not in merged and str(merged["model"]).lower().endswith(".onnx"):
        merged["format"] = "onnx"
    job = ExportJob(**{name: _converted(name, value) for name, value in merged.items()})
    _check(job)
    return job


def read_config(path: Path) -> dict[str, Any]:
    """Read a config file into field names.

    Raises:
        UsageError: it cannot be read, is not a mapping, or has an unknown name.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"config {path} cannot be read ({reason})", "give a YAML file") from error
    if not isinstance(content, dict):
        raise UsageError(f"config {path} is not a mapping of option names to values", "see configs/ for examples")
    options = {str(key).replace("-", "_"): value for key, value in content.items()}
    for name in options:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {near[0]}" if near else f"known options are {', '.join(FIELDS)}"
            raise UsageError(f"unknown option {name} in {path}", hint)
    return {name: value for name, value in options.items() if value is not None}


def _converted(name: str, value: Any) -> Any:
    """Bring a value from YAML or the command line into its field's type."""
    kind = str(FIELDS[name].type)
    try:
        if name in NAME_LISTS:
            names = value.split(",") if isinstance(value, str) else value
            return tuple(dict.fromkeys(_text(name).strip() for name in _sequence(names)))
        if name == "imgsz":
            return _image_size(value)
        if name in PATHS:
            return Path(value)
        if name in BY_FIELD:
            return BY_FIELD[name].parse(value)
        if kind == "bool":
            return _boolean(value)
        return _number(value, whole=kind.startswith("int")) if kind[:3] in ("int", "flo") else _text(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"--{name.replace('_', '-')} cannot be {value!r}", f"give {_wanted(name, kind)}") from error


def _wanted(name: str, kind: str) -> str:
    if name in BY_FIELD:
        return BY_FIELD[name].wanted
    words = {"float": "a number", "int": "a whole number", "bool": "true or false"}
    return next((word for start, word in words.items() if kind.startswith(start)), "another value")


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _number(value: Any, whole: bool) -> float:
    number = float(value)
    if isinstance(value, bool) or (whole and number != int(number)):
        raise ValueError
    return int(number) if whole else number


def _sequence(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool | list | dict):
        raise ValueError
    return str(value)


def _image_size(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        value = value.replace("x", ",").split(",")
    sizes = [int(_number(part, whole=True)) for part in (value if isinstance(value, list | tuple) else [value])]
    if len(sizes) not in (1, 2):
        raise ValueError
    return sizes[0], sizes[-1]


def _check(job: ExportJob) -> None:
    """Refuse what no model could make possible."""
    _check_range("fraction", 0 < job.fraction <= 1, job.fraction, "more than 0 and at most 1")
    _check_range("calib-images", job.calib_images is None or job.calib_images > 0, job.calib_images, "1 or more")
    _check_range("batch", job.batch > 0, job.batch, "1 or more")
    _check_range("threads", job.threads > 0, job.threads, "1 or more")
    _check_range("opset", job.opset is None or job.opset in OPSETS, job.opset, f"{OPSETS[0]} to {OPSETS[-1]}")
    _check_range("cpu", job.cpu in ("auto", *KINDS), job.cpu, _alternatives(("auto", *KINDS)))
    _check_range("workspace", job.workspace is None or 0 < job.workspace < 4096, job.workspace, "more than 0 GiB")
    _check_range("dla", job.dla is None or job.dla >= 0, job.dla, "the number of a core, 0 or more")
    _check_range("head", job.head in (None, *HEADS), job.head, _alternatives(HEADS))
    _check_range("ranges", job.ranges in (None, *RANGE_METHODS), job.ranges, _alternatives(RANGE_METHODS))
    if job.device != "cpu":
        raise UsageError(f"--device {job.device} is not supported", "this version runs on the CPU: leave it out")
    if job.imgsz is not None:
        _check_range("imgsz", min(job.imgsz) >= 32, "x".join(map(str, job.imgsz)), "32 pixels or more")
    if job.nms and job.head == "end2end":
        raise UsageError("--nms and --head end2end exclude each other", "the end-to-end head needs no NMS")
    _check_range("precision", job.precision in PRECISIONS, job.precision, _alternatives(PRECISIONS))
    if job.nms and job.precision == "int8-full":
        raise UsageError("--nms and --precision int8-full exclude each other", "qexport.decode suppresses overlaps")
    if job.keep_float and job.precision in NOTHING_KEPT:
        raise UsageError(
            f"--keep-float and --precision {job.precision} exclude each other", NOTHING_KEPT[job.precision]
        )
    _check_range("target", job.target in (None, *TARGETS), job.target, _alternatives(TARGETS))
    _check_range("io", job.io in IO_TYPES, job.io, _alternatives(IO_TYPES))
    if job.target and job.format != ("tflite",):
        raise UsageError(f"--target {job.target} is for TFLite files only", "give --format tflite, or leave it out")
    if job.precision != "int8-full" and (job.target or job.io != "int8"):
        option = f"--target {job.target}" if job.target else f"--io {job.io}"
        raise UsageError(f"{option} is for integer-only files", "give --precision int8-full")
    if {"tflite", "edgetpu"} <= set(job.format):
        raise UsageError("formats tflite and edgetpu write the same files", "give --format edgetpu alone")
    if job.int8 and job.half:
        raise UsageError("--int8 and --half exclude each other", "give one of them")
    for option, short in job.short_forms.items():
        if getattr(job, option) and job.precision != short:
            raise UsageError(f"--{option} and --precision {job.precision} exclude each other", "give one of them")
    if job.calibrates and not job.data and not (job.calibration and job.eval_data):
        option = "--int8" if job.int8 else f"--precision {job.precision}"
        raise UsageError(f"{option} needs images to calibrate with and to verify on", "add --data DATA.yaml")
    if not job.no_eval and not (job.data or job.eval_data):
        raise UsageError("accuracy needs a data set", "add --data or --eval-data, or --no-eval")
    for option, path in {"report": job.report, "summary": job.summary, "junit": job.junit}.items():
        folder = path.absolute().parent if path else job.folder
        if path and (path.is_dir() or not (folder.is_dir() or folder == job.folder.absolute())):
            raise InputError(f"--{option} {path} cannot be written", "give a file in a folder that exists")
    if not job.format:
        raise UsageError("--format names no format", "give one, such as tflite")
    _check_source(job)
    for name in job.format:
        _check_format(name, job)
    check_measured(job)


def _check_source(job: ExportJob) -> None:
    """Refuse what an ONNX file cannot become, and what only makes sense for one."""
    from qexport.backends import find_class, formats_from_onnx
    from qexport.data.input_form import pixel_form

    pixel_form(job.pixels)
    if not job.from_onnx:
        for option in ("raw_outputs", "bgr", "pixels"):
            if getattr(job, option) != FIELDS[option].default:
                raise UsageError(f"--{option.replace('_', '-')} is for ONNX files", "leave it out")
        return
    for name in job.format:
        if not getattr(find_class(name), "from_onnx", False):
            able = _alternatives(formats_from_onnx())
            raise UsageError(f"format {name} cannot be written from an ONNX file", f"{able} can; or give the .pt file")
    if job.precision in ("int8-full", "w8a16"):
        raise UsageError(f"--precision {job.precision} cannot be written from an ONNX file", "give the .pt file")
    if job.head or job.nms:
        option = "--nms" if job.nms else f"--head {job.head}"
        raise UsageError(f"{option} cannot be chosen for an ONNX file", "export the .pt file with it")


def _alternatives(words: Sequence[str]) -> str:
    return " or ".join(", ".join(words).rsplit(", ", 1))


def _check_range(option: str, good: bool, value: object, wanted: str) -> None:
    if not good:
        raise UsageError(f"--{option} {value} is out of range", f"give {wanted}")


def _check_format(name: str, job: ExportJob) -> None:
    from qexport.backends import find_backend

    backend = find_backend(name)
    if job.precision not in backend.precisions:
        able = ", ".join(sorted(backend.precisions))
        raise UsageError(f"format {name} cannot be written as {job.precision}", f"it can as {able}")
    if job.dynamic and not backend.dynamic:
        raise UsageError(f"format {name} has a fixed number of images", "leave out --dynamic, or the format")
