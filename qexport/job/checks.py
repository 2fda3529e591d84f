"""What no model could make possible, refused before torch is imported: rules are rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.backends.info import BackendInfo, check_precision, options_from
from qexport.backends.registry import (
    display_name,
    find_backend,
    find_info,
    formats_from_onnx,
    infos,
    known,
)
from qexport.checkpoints.identify import holds_learned
from qexport.detections.file_form import LAYOUT, NCHW, NHWC, NORMALISED
from qexport.errors import UnavailableError, UsageError
from qexport.job.export_job import TUNE_SECONDS, ExportJob
from qexport.job.places import check_places
from qexport.job.value_rules import rows
from qexport.job.wording import example
from qexport.system.machine import ANY, KINDS, choices, kind_for
from qexport.targets import INTEGERS_ONLY, TARGETS
from qexport.vocabulary import (
    CPU_ALIASES,
    alternatives,
    guess,
    listed,
    unknown,
)

MIN_SIZE = 32
"""Pixels: the largest stride of the detectors."""
NOTHING_KEPT = {
    "fp32": "all of it is float already: leave it out",
    "int8-full": "it has no float: use --precision int8",
}
PLANLESS = ("fp32", "fp16")
ONNX_ONLY: Mapping[str, Any] = {"raw_outputs": (), "bgr": False, "pixels": "0..1"}
"""Options that only make sense for ONNX files, and what they are where they are not given."""


def check_job(job: ExportJob) -> None:
    """Refuse what no model could make possible.

    Raises:
        UsageError, InputError, MissingExtraError: one line, the first row that is broken.
    """
    from qexport.job.bounds import check_measured  # the report's nouns take time to import, which --help has not

    for row in rows(job.format):
        row.check(job)
    for name in job.format:
        find_info(name)  # a word that is none first: what it needs says nothing
    _check_cpu(job)
    for conflict in CONFLICTS:
        conflict.check(job)
    check_places(job)
    _check_source(job)
    _check_size(job)
    _check_options(job)
    for name in job.format:
        _check_format(name, job)
    check_measured(job)


@dataclass(frozen=True)
class Conflict:
    """A combination that cannot be; the texts name the job's fields in braces."""

    broken: Callable[[ExportJob], Any]
    what: str
    remedy: str

    def check(self, job: ExportJob) -> None:
        """Raise `UsageError` where the job has it."""
        if self.broken(job):
            words = {**vars(job), **_derived(job)}
            raise UsageError(self.what.format_map(words), self.remedy.format_map(words))


def _derived(job: ExportJob) -> dict[str, str]:
    """What conflicts say beside fields."""
    target = TARGETS.get(job.target or "")
    runs, kind, short = target.runs if target else (), target.cpu if target else ANY, job.short_forms
    option = f"--target {job.target}, which is {job.precision}," if target else f"--precision {job.precision}"
    same = _same_files(job)
    other = (f"{name}={each}" if name else each for name, each in choices(job.cpu).items() if each != kind)
    return {
        "nothing_kept": NOTHING_KEPT.get(job.precision, ""),
        "files": listed([display_name(name) for name in runs]),
        "runs": ",".join(runs),
        "formats": listed(job.format),
        "target_cpu": kind,
        "other_cpu": ",".join(other),
        "example": example(job),
        "asked": "--int8" if job.int8 else option,
        "short": next((name for name in short if getattr(job, name)), ""),
        "same_files": " and ".join(same),
        "last_of_same": same[-1] if same else "",
        "integers": f"--target {job.target}" if job.only_integers else f"--io {job.io}",
    }


def _same_files(job: ExportJob) -> tuple[str, ...]:
    """Formats of a job whose files have the same names; those that are built into something else come last."""
    asked = sorted((find_info(name) for name in job.format), key=lambda info: info.engine is not None)
    suffixes = [info.suffix for info in asked]
    return tuple(info.name for info in asked if suffixes.count(info.suffix) > 1)


def _another_cpu(job: ExportJob) -> bool:
    kind = TARGETS[job.target].cpu if job.target else ANY
    return kind != ANY and any(kind_for(job.cpu, name) != kind for name in job.format)


def _has_ranges(job: ExportJob) -> bool:
    return any((job.calibration, job.plan, job.candidate)) or holds_learned(Path(job.model))


def _obeyed(option: str, unless_float: str) -> tuple[Conflict, ...]:
    """What excludes a file that is obeyed in place of planning; `unless_float`: what else to do of --keep-float."""

    def is_given(job: ExportJob) -> bool:
        return bool(getattr(job, option))

    return (
        Conflict(
            lambda job: is_given(job) and job.precision in PLANLESS,
            f"--{option} and --precision {{precision}} exclude each other",
            "such files have nothing that is planned: leave out one of them",
        ),
        Conflict(
            lambda job: is_given(job) and len(job.format) > 1,
            f"--{option} is of one format, and {{formats}} are to be written",
            f"give --format the one that the {option} is of",
        ),
        Conflict(
            lambda job: is_given(job) and job.ranges,
            f"--{option} and --ranges {{ranges}} exclude each other",
            f"the {option} has the ranges: leave out one of them",
        ),
        Conflict(
            lambda job: is_given(job) and job.keep_float,
            f"--{option} and --keep-float exclude each other",
            unless_float,
        ),
    )


CONFLICTS = (
    Conflict(
        lambda job: job.device != "cpu",
        "--device {device} is not supported",
        "this version runs on the CPU: leave it out",
    ),
    Conflict(
        lambda job: job.keep_float and job.precision in NOTHING_KEPT,
        "--keep-float and --precision {precision} exclude each other",
        "{nothing_kept}",
    ),
    *_obeyed("plan", "make the values float in the plan, or leave it out"),
    *_obeyed("candidate", "what stays float is said in the candidate: leave out one of them"),
    Conflict(
        lambda job: job.candidate and job.plan,
        "--candidate and --plan exclude each other",
        "the candidate has its plan: leave out one of them",
    ),
    Conflict(
        lambda job: job.candidate and job.optimise,
        "--candidate and --optimise exclude each other",
        "the candidate is optimised already: leave out one of them",
    ),
    Conflict(
        lambda job: job.optimise and not job.calibrates,
        "--optimise and --precision {precision} exclude each other",
        "passes are for integer activations: give --precision int8, or leave it out",
    ),
    Conflict(
        lambda job: job.repair and (job.precision in PLANLESS or job.precision == INTEGERS_ONLY),
        "--repair and --precision {precision} exclude each other",
        "it keeps values in float beside integers, which such files do not have: leave it out",
    ),
    Conflict(
        lambda job: job.repair and (job.plan or job.candidate),
        "--repair plans, and a plan was given",
        "leave out --repair, or --plan and --candidate",
    ),
    Conflict(
        lambda job: job.repair and job.max_drop is None,
        "--repair needs a bound to meet",
        "add --max-drop PERCENT, or leave it out",
    ),
    Conflict(
        lambda job: job.tune and (not job.calibrates or job.precision == INTEGERS_ONLY),
        "--tune and --precision {precision} exclude each other",
        "it chooses between integers and float, which such files do not: leave it out",
    ),
    Conflict(
        lambda job: not job.tune and job.tune_seconds != TUNE_SECONDS,
        "--tune-seconds is for a search",
        "add --tune latency, or leave it out",
    ),
    Conflict(
        lambda job: job.tune and (job.plan or job.candidate),
        "--tune plans, and a plan was given",
        "leave out --tune, or --plan and --candidate",
    ),
    Conflict(
        lambda job: job.nms and job.head == "end2end",
        "--nms and --head end2end exclude each other",
        "the end-to-end head needs no NMS",
    ),
    Conflict(
        lambda job: job.nms and job.precision == INTEGERS_ONLY,
        "--nms and --precision int8-full exclude each other",
        "qexport.decode suppresses overlaps",
    ),
    Conflict(lambda job: not job.format, "--format names no format", "give one, such as tflite"),
    Conflict(
        lambda job: job.target and not {*job.format} <= {*TARGETS[job.target].runs},
        "--target {target} is for {files} files only",
        "give --format {runs}, or leave it out",
    ),
    Conflict(
        lambda job: job.precision != INTEGERS_ONLY and (job.only_integers or job.io != "int8"),
        "{integers} is for integer-only files",
        "give --precision int8-full",
    ),
    Conflict(
        lambda job: job.precision == INTEGERS_ONLY and job.layout == NCHW,
        "--layout nchw and --precision int8-full exclude each other",
        "such files have their channels last: leave it out",
    ),
    Conflict(
        lambda job: job.precision == INTEGERS_ONLY and job.normalised_boxes,
        "--normalised-boxes and --precision int8-full exclude each other",
        "such files end in front of the boxes, which qexport.decode makes: leave it out",
    ),
    Conflict(
        _another_cpu,
        "--cpu {other_cpu} and --target {target} exclude each other",
        "its CPU is {target_cpu}: leave out one of them",
    ),
    Conflict(
        lambda job: _same_files(job),
        "formats {same_files} write the same files",
        "give --format {last_of_same} alone",
    ),
    Conflict(lambda job: job.int8 and job.half, "--int8 and --half exclude each other", "give one of them"),
    Conflict(
        lambda job: any(getattr(job, name) and job.precision != short for name, short in job.short_forms.items()),
        "--{short} and --precision {precision} exclude each other",
        "give one of them",
    ),
    Conflict(
        lambda job: job.calibrates and not (job.data or job.eval_data) and holds_learned(Path(job.model)),
        "{asked} has ranges that were learned, and needs images to verify on",
        "add --data DATA.yaml",
    ),
    Conflict(
        lambda job: job.calibrates and not job.data and not (job.eval_data and _has_ranges(job)),
        "{asked} needs images to calibrate with and to verify on",
        "add --data DATA.yaml, for example: {example}",
    ),
    Conflict(lambda job: job.optimise and not job.data, "--optimise needs calibration images", "add --data DATA.yaml"),
)


def _check_cpu(job: ExportJob) -> None:
    kinds = ("auto", *KINDS)
    for name, kind in choices(job.cpu).items():
        if kind not in kinds:
            raise unknown(f"--cpu {job.cpu}", kind, kinds, CPU_ALIASES)
        if name and name not in job.format:
            written = ", ".join(job.format)
            raise UsageError(f"--cpu is for {name}, which is not written", f"the formats are {written}: see --format")


def _check_size(job: ExportJob) -> None:
    """Refuse sizes that no checkpoint takes; what an ONNX file takes only the file knows."""
    least, words = (1, "1 pixel") if job.from_onnx else (MIN_SIZE, f"{MIN_SIZE} pixels")
    if job.imgsz and min(job.imgsz) < least:
        raise UsageError(f"--imgsz {'x'.join(map(str, job.imgsz))} is out of range", f"give {words} or more")


def _check_source(job: ExportJob) -> None:
    """Refuse what an ONNX file cannot become, and what only makes sense for one."""
    from qexport.data.input_form import pixel_form

    pixel_form(job.pixels)
    if not job.from_onnx:
        for option, default in ONNX_ONLY.items():
            if getattr(job, option) != default:
                raise UsageError(f"--{option.replace('_', '-')} is for ONNX files", "leave it out")
        return
    for name in job.format:
        if not find_info(name).from_onnx:
            able = alternatives(formats_from_onnx())
            what = f"format {name} cannot be written from an ONNX file"
            raise UnavailableError(what, f"{able} can; or give the .pt file")
    if job.precision in ("int8-full", "w8a16"):
        raise UnavailableError(f"--precision {job.precision} cannot be written from an ONNX file", "give the .pt file")
    if job.head or job.nms:
        option = "--nms" if job.nms else f"--head {job.head}"
        raise UsageError(f"{option} cannot be chosen for an ONNX file", "export the .pt file with it")


def _check_options(job: ExportJob) -> None:
    """Refuse options that none of the formats has, and those that are given twice over."""
    own = {option.name for info in known(job.format) for option in info.options}
    free = sorted(own - vars(job).keys())
    for text in job.option:
        name, equals, _ = text.partition("=")
        if not equals or name not in free:
            able = f"give {alternatives(free)} as NAME=VALUE{guess(name, free)}" if free else "leave it out"
            raise UsageError(f"--option {text} is none of format {', '.join(job.format)}", able)


def _check_form(info: BackendInfo, job: ExportJob) -> None:
    """Refuse another form of files than a format has."""
    own = {option.name for option in info.options}
    asked = {
        LAYOUT: job.layout == NHWC and f"--layout {NHWC}",
        NORMALISED: job.normalised_boxes and "--normalised-boxes",
    }
    for name, option in asked.items():
        if option and name not in own:
            able = [each.name for each in infos() if name in {option.name for option in each.options}]
            what = f"format {info.name} cannot be written with {option}"
            raise UnavailableError(what, f"leave it out, or give --format {alternatives(able)}")


def _check_format(name: str, job: ExportJob) -> None:
    info = find_backend(name).info  # where it is installed
    check_precision(info, job.precision)
    options_from(info, job.backend_options)
    _check_form(info, job)
    if job.dynamic and not info.dynamic:
        raise UnavailableError(f"format {name} has a fixed number of images", "leave out --dynamic, or the format")
