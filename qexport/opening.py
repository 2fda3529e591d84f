"""What a run begins with: a job's model, its images, and their calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache as remembered
from pathlib import Path

from qexport.calibration.calibrate import calibrate, described, passes_for, preprocess_name
from qexport.calibration.calibration_table import CalibrationTable, check_table, load_table, save_table
from qexport.clock import Clock
from qexport.data.dataset import fingerprint
from qexport.data.resolve import resolve_model
from qexport.data.selection import RunImages, select_images
from qexport.data.usable import check_enough, named, usable
from qexport.errors import InputError
from qexport.execution.executor import Executor, Inline, Task
from qexport.job.export_job import ExportJob
from qexport.job.images import has_task_metadata, image_choice
from qexport.lowering.request import Target
from qexport.measurement.dataset_check import as_trained, check_data
from qexport.measurement.measure import Elsewheres
from qexport.optimisation.candidate_file import load_candidate
from qexport.optimisation.registry import weight_pass
from qexport.planning.plan import QuantPlan, load_plan
from qexport.planning.registry import needs_importance
from qexport.programs.build import Source, read_source
from qexport.programs.options import CaptureOptions
from qexport.progress import Progress, Silent
from qexport.steps.build import ready
from qexport.steps.plan import check_given, check_request, computes_in_integers, make_target, needs_table
from qexport.steps.reuse import Fingerprint, calibration_key, keep_table, kept_table, open_cache
from qexport.system.cache import Cache
from qexport.verification.result import ArtifactResult

SILENT = Silent()
NO_CACHE = Cache()
TABLE = "calibration.npz"
FLOAT_WEIGHTS = "have the float weights from before training: what it learned is for integer arithmetic"


def _told_nobody(written: ArtifactResult) -> None:
    """What is written says nothing by itself."""


@dataclass(frozen=True)
class Run:
    """What the steps of one run share.

    Attributes:
        job: with the folder that was chosen.
        reading: the task that reads the source, which other processes have to do for themselves.
        plan: one that was given, by itself or in a candidate, which is obeyed in place of planning.
        progress: what steps report to that time themselves.
        here, beside: where artifacts are built; the second one at the same time as the first, None for nowhere.
        cache: what earlier runs have left.
        fingerprint: of the run's images, each found out once.
        elsewhere: processes that score images in place of this one; None for none.
        written: is told of each artifact as soon as it is there, from any thread.
    """

    job: ExportJob
    source: Source
    images: RunImages
    reading: Task
    clock: Clock
    here: Executor
    beside: Executor | None = None
    plan: QuantPlan | None = None
    progress: Progress = SILENT
    cache: Cache = NO_CACHE
    fingerprint: Fingerprint = field(default_factory=lambda: remembered(fingerprint))
    elsewhere: Elsewheres | None = None
    written: Callable[[ArtifactResult], None] = _told_nobody


def opened(job: ExportJob, clock: Clock, beside: Executor | None) -> Run:
    """Read model and data, and leave out the images that cannot be used."""
    with clock.step("read", "Reading model and data") as advance:
        run = read_run(job, clock, beside)
        advance(_resolved(job, run))
    images, channels = run.images, run.source.program.input.channels
    count = len({*images.calibration, *images.evaluation})
    if not count:
        return run
    with clock.step("images", "Looking at images", count + 1) as advance:
        images = usable(images, channels, advance, job.min_images if job.calibrates else 0)
        lost = tuple(dict.fromkeys((*images.left_out, *images.unscored)))
        advance(f"{len(lost)} left out: {named(lost)}" if lost else "")
    return replace(run, images=images)


def _resolved(job: ExportJob, run: Run) -> str:
    """What bare names were found to mean, "" where none was."""
    data = run.images.calibration_dataset, run.images.evaluation_data
    found = {job.model: run.source.checkpoint.path}
    found |= {name: each.root for name, each in zip((job.data, job.eval_data), data, strict=True) if name and each}
    bare = {name: path for name, path in found.items() if Path(name).name == name and not Path(name).exists()}
    return ", ".join(f"{name} is {path}" for name, path in bare.items() if str(path) != name)


def read_run(job: ExportJob, clock: Clock, beside: Executor | None) -> Run:
    """Resolve, read and capture, and refuse what cannot be done with it."""
    choice = image_choice(job)
    try:
        images = select_images(choice, task_known=has_task_metadata(job))
    except InputError as error:
        raise _with_model(error, job.model) from error
    path = resolve_model(job.model)
    options = _capture_options(job)
    reading = Task(read_source, (path, options))
    if beside:
        beside.submit(Task(ready, (), reading))
    checked: list[RunImages] = []
    source = read_source(
        path, options, lambda read: checked.append(check_data(read.task_spec, images, choice.compares))
    )
    check_request(source.program, job.precision, job.keep_float)
    for name in job.passes:
        weight_pass(name)  # another package's may be broken
    images = replace(as_trained(source.checkpoint.task_spec, checked[0]), classes=source.checkpoint.names)
    if source.checkpoint.learned and not computes_in_integers(target_of(job, job.format[0])):
        images = replace(images, notes=(*images.notes, f"{job.precision} files {FLOAT_WEIGHTS}"))
    here = Inline({reading: source}, clock.progress)
    plan, cache = _given_plan(job, source), open_cache(not job.no_cache)
    return Run(job, source, images, reading, clock, here, beside, plan, cache=cache)


def _with_model(error: InputError, model: str) -> InputError:
    """What is wrong with the data, and with the model where that is not to be had either: one error says both."""
    try:
        resolve_model(model, download=False)
    except InputError as other:
        return InputError(f"{other.what}; {error.what}", other.remedy)
    return error


def _capture_options(job: ExportJob) -> CaptureOptions:
    return CaptureOptions(
        imgsz=job.imgsz,
        batch=job.batch,
        dynamic=job.dynamic,
        head=job.head,
        nms=job.nms,
        trust=job.trust_checkpoint,
        raw_outputs=job.raw_outputs,
        pixels=job.pixels,
        bgr=job.bgr,
    )


def _given_plan(job: ExportJob, source: Source) -> QuantPlan | None:
    if job.candidate is not None:
        candidate = load_candidate(job.candidate, source.program)
        given, program, path, option = candidate.plan, candidate.program, job.candidate, "candidate"
    elif job.plan is not None:
        given, program, path, option = load_plan(job.plan), source.program, job.plan, "plan"
    else:
        return None
    check_given(given, program, target_of(job, job.format[0]), path, option)
    return given


def calibrated(run: Run, keep: bool = True) -> tuple[CalibrationTable | None, str]:
    """Calibrate, or take the table that was given or of an earlier run; None where nothing needs one.

    Args:
        keep: it is saved in the job's folder, too, unless it was given.

    Returns:
        The table, and when the earlier run made it that it is of; "" where there was none.
    """
    job, program, images = run.job, run.source.program, run.images.calibration
    if job.calibration and job.calibrates:
        table = load_table(job.calibration)
        names = [value.name for value in described(program)]
        check_table(table, program.fingerprint, preprocess_name(program), names, job.calibration)
        if images and table.images != fingerprint(images):
            raise InputError(
                f"{job.calibration} was made from other images than --data",
                "leave out one of the two, or give its --calib-images and --fraction",
            )
        check_enough(len(table.image_names), (), job.min_images)
        return table, ""
    if not any(needs_table(target_of(job, name), run.plan, run.source, job.keep_float) for name in job.format):
        return None, ""
    if run.source.checkpoint.learned and not images:
        return None, ""  # formats say what they lack
    weighted = run.plan is None and needs_importance(job.range_method)
    with run.clock.timed("calibrate"):
        table, taken = _calibrated_once(run, weighted)
    if keep:
        save_table(table, job.folder / TABLE)
    return table, taken


def _calibrated_once(run: Run, weighted: bool) -> tuple[CalibrationTable, str]:
    program, images, cache = run.source.program, run.images.calibration, run.cache
    key = calibration_key(cache, program, images, weighted, run.job.views, run.fingerprint)
    if earlier := kept_table(cache, key):
        with run.clock.shown(f"Taking the calibration of the run of {earlier[1]}"):
            return earlier
    with run.clock.progress.step("Calibrating", passes_for(program, len(images), weighted, run.job.views)) as advance:
        table = calibrate(program, images, advance, weighted=weighted, views=run.job.views)
    if key and table.images == run.fingerprint(images):  # as they were before the pass
        keep_table(cache, key, table)
    return table, ""


def table_notes(run: Run, table: CalibrationTable | None) -> tuple[str, ...]:
    """What is to be said of the statistics that ranges are chosen by."""
    return () if table is None else (*_seen_in_views(table), *_unweighted(run, table), *_not_needed(run))


def _not_needed(run: Run) -> tuple[str, ...]:
    """A note where statistics were given of values whose ranges were all learned."""
    job = run.job
    if run.plan is not None or not (job.calibration and run.source.checkpoint.learned):
        return ()
    if any(needs_table(target_of(job, name), None, run.source, job.keep_float) for name in job.format):
        return ()
    return ("no range is taken of --calibration: all were learned in training",)


def _seen_in_views(table: CalibrationTable) -> tuple[str, ...]:
    """A note that there are statistics of more pictures than there are images."""
    if not table.views:
        return ()
    few = len(table.image_names)
    seen = "1 calibration image was" if few == 1 else f"{few} calibration images were"
    return (f"{seen} also seen mirrored, scaled and cut: {table.views} views",)


def _unweighted(run: Run, table: CalibrationTable) -> tuple[str, ...]:
    """A note where ranges are asked for that the table does not have what it takes to choose."""
    method = run.job.range_method
    if run.plan is not None or table.weighted or not needs_importance(method):
        return ()
    why = "was made without" if run.job.calibration else "could not measure"
    return (f"calibration {why} what errors cost at the outputs: ranges {method} are percentiles",)


def target_of(job: ExportJob, name: str, precision: str = "") -> Target:
    """What a job asks for in one of its formats."""
    return make_target(name, precision or job.precision, job.cpu)
