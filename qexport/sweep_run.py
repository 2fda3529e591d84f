"""A sweep: every run that is not complete yet → an executor → its record and report → one table.

A run is an ordinary export in a process of its own: see `qexport.sweeps.one_run`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qexport.backends.artifact import describe_artifact
from qexport.backends.registry import reported_packages
from qexport.data.dataset import fingerprint, label_path
from qexport.data.resolve import resolve_model
from qexport.data.selection import RunImages, select_images
from qexport.errors import InputError, QexportError
from qexport.execution.executor import Executor, Task, WorkerDiedError
from qexport.inspection.run_folder import REPORT, locked
from qexport.job.export_job import ExportJob
from qexport.job.images import has_task_metadata, image_choice
from qexport.job.sweep_file import PAGE, Sweep, SweepRun
from qexport.planning.registry import needs_importance
from qexport.plugins import packages_of
from qexport.progress import Progress, Silent
from qexport.reporting.load import load_report
from qexport.reporting.rule import GROUP as RULES
from qexport.reporting.sweep_report import DONE, FAILED, UNAVAILABLE, SweepReport, SweptRun, save_sweep, swept
from qexport.steps.reuse import GROUPS
from qexport.sweeps.one_run import RunRequest, run_export
from qexport.sweeps.run_record import RunRecord, load_run
from qexport.system.files import make_folder
from qexport.system.json_form import to_plain
from qexport.system.machine import environment
from qexport.version import __version__

SILENT = Silent()
TABLE_FILE, TABLE_PAGE = "sweep.json", "sweep.html"
FILES = ("calibration", "plan", "candidate", "baseline")
"""Options that name a file, whose bytes decide."""
CALIBRATED_BY = (
    *("model", "data", "imgsz", "batch", "dynamic", "head", "nms", "fraction", "calib_images", "min_images"),
    *("raw_outputs", "pixels", "bgr"),
)
"""Options that statistics depend on: runs with equal ones may share them. Whether they fit the export checks itself."""


@dataclass
class _Hashes:
    """Digests of what several runs share."""

    files: dict[Path, str] = field(default_factory=dict)
    lists: dict[tuple[Path, ...], str] = field(default_factory=dict)

    def model(self, path: Path, from_onnx: bool) -> str:
        """SHA-256 of a model, with the weights that an ONNX file has beside it."""
        if from_onnx and path not in self.files:
            from qexport.programs.onnx.file import read_file  # ONNX takes time to import

            self.files[path] = read_file(path).fingerprint
        return self.file(path)

    def file(self, path: Path) -> str:
        """SHA-256 of a file's bytes."""
        if path not in self.files:
            self.files[path] = describe_artifact(path, "", "").sha256
        return self.files[path]

    def of(self, paths: Sequence[Path]) -> str:
        """Digest of names and bytes of images or labels."""
        key = tuple(paths)
        if key not in self.lists:
            self.lists[key] = fingerprint(key)
        return self.lists[key]


def sweep_of(
    sweep: Sweep, executor: Executor, progress: Progress = SILENT, command: str = "", side_by_side: bool = False
) -> SweepReport:
    """Do the runs of a sweep that are not complete, and write sweep.json and sweep.html; return what they say.

    A run that fails does not end the others; what fails before it could begin is told in the same way.

    Args:
        executor: does the runs, in the order of submission or as it sees fit.
        progress: shows steps; nothing does unless given.
        command: for the report, as one string.
        side_by_side: the executor may do several runs of one machine at once, which then measure latency in turns.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = make_folder(sweep.folder)
    with locked(folder, progress):
        with progress.step("Looking at models and data"):
            asked, failed = _requests(sweep, folder.absolute() if side_by_side else None)
        earlier = {name: record for name, each in asked.items() if (record := _complete(each))}
        runs = {run.name: run for run in sweep.runs}
        # Each report is read once: it is while others measure.
        ended = {name: _swept(runs[name], record) for name, record in {**failed, **earlier}.items()}
        report = _report(sweep, ended, command)
        with progress.step("Running", len(asked)) as advance:
            for _ in earlier:
                advance("complete already")
            for name, record in _submitted([each for name, each in asked.items() if name not in earlier], executor):
                ended[name] = _swept(runs[name], record)
                report = _report(sweep, ended, command)
                save_sweep(report, folder / TABLE_FILE)  # what is there after a kill
                advance(f"{runs[name].label} {'is done' if record.complete else 'failed'}")
        save_sweep(report, folder / TABLE_FILE)
        from qexport.reporting.page.sweep_page import write_sweep_page  # Matplotlib takes time to import

        write_sweep_page(report, folder / TABLE_PAGE)
        return report


def _submitted(requests: Sequence[RunRequest], executor: Executor) -> Iterator[tuple[str, RunRecord]]:
    """Name and record of each run, when it ends."""
    futures: dict[Future[RunRecord], RunRequest] = {}
    for request in requests:
        futures[executor.submit(Task(run_export, (request,), shown=True))] = request
    for future in as_completed(futures):
        request = futures[future]
        try:
            yield request.folder.name, future.result()
        except (QexportError, WorkerDiedError, OSError) as error:
            yield request.folder.name, _failed(error, request.fingerprint)


def _failed(error: Exception, identity: str = "") -> RunRecord:
    """The record of a run that has no exit code of its own."""
    code = error.exit_code if isinstance(error, QexportError) else QexportError.exit_code
    return RunRecord(identity, code, str(error))


def _complete(request: RunRequest) -> RunRecord | None:
    """The record of a run that need not be done again."""
    record = load_run(request.folder)
    wanted = record is not None and record.complete and record.fingerprint == request.fingerprint
    return record if wanted and (request.folder / REPORT).is_file() else None


def _requests(sweep: Sweep, turns: Path | None) -> tuple[dict[str, RunRequest], dict[str, RunRecord]]:
    """What is to be run by name, and records of what cannot even begin.

    Of runs that calibrate alike the first goes before everything else: the others find its statistics in the cache.
    """
    requests: dict[str, RunRequest] = {}
    failed: dict[str, RunRecord] = {}
    groups: dict[str, list[str]] = {}
    hashes = _Hashes()
    for run in sweep.runs:
        if run.job is None:
            continue
        try:
            job = _with_model(run.job)
            identity = _identity(job, hashes)
        except (QexportError, OSError) as error:
            failed[run.name] = _failed(error)
            continue
        options = {**run.options, "model": job.model}
        own = job.folder.absolute()
        request = RunRequest(run.label, own, own / PAGE, options, identity, turns=turns, start=Path.cwd())
        requests[run.name] = request
        groups.setdefault(_calibrated_as(job) or run.name, []).append(run.name)
    first = [names[0] for names in groups.values() if len(names) > 1]
    return {name: requests[name] for name in (*first, *(each for each in requests if each not in first))}, failed


def _with_model(job: ExportJob) -> ExportJob:
    """A job whose model is a file: a name that Ultralytics knows is fetched once, not by every run."""
    return job if Path(job.model).is_file() else replace(job, model=str(resolve_model(job.model)))


def _calibrated_as(job: ExportJob) -> str:
    """What decides on the statistics of a run; "" where it needs none."""
    if not job.calibrates or job.calibration or job.plan or job.candidate:
        return ""
    return repr([*(getattr(job, name) for name in CALIBRATED_BY), needs_importance(job.range_method)])


def _identity(job: ExportJob, hashes: _Hashes) -> str:
    """SHA-256 over all that a run's figures depend on, but for the machine that measures."""
    options: Mapping[str, Any] = vars(replace(job, model="", data=None, eval_data=None, out=None, report=None, jobs=1))
    images = select_images(image_choice(job), has_task_metadata(job))
    parts = {
        "options": to_plain(options),
        "model": [Path(job.model).name, hashes.model(Path(job.model), job.from_onnx)],
        "files": [hashes.file(path) if (path := getattr(job, name)) else "" for name in FILES],
        "images": _identity_of_images(images, hashes),
        "qexport": __version__,
        "packages": {**environment(reported_packages()).packages, **packages_of(*GROUPS, RULES)},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _identity_of_images(images: RunImages, hashes: _Hashes) -> list[Any]:
    data = images.evaluation_data
    labels = [label_path(image, data.labels) for image in images.evaluation] if data else []
    described = [sorted(data.names.items()), data.channels, data.kpt_shape] if data else []
    return [
        hashes.of(images.calibration),
        hashes.of(images.evaluation),
        hashes.of([path for path in labels if path.is_file()]),
        described,
    ]


def _report(sweep: Sweep, ended: Mapping[str, SweptRun], command: str) -> SweepReport:
    """What is known so far."""
    runs = []
    for run in sweep.runs:
        if run.job is None:
            runs.append(SweptRun(run.name, run.label, UNAVAILABLE, line=run.obstacle))
        elif run.name in ended:
            runs.append(ended[run.name])
    return SweepReport(str(sweep.file), command, tuple(runs))


def _swept(run: SweepRun, record: RunRecord) -> SweptRun:
    """What is told of a run that has ended, from its record and its report."""
    job = run.job
    assert job is not None  # what cannot be has no record
    state = DONE if record.complete else FAILED
    code, line = record.exit_code if record.exit_code is not None else QexportError.exit_code, record.line
    told = SweptRun(run.name, run.label, state, code, line, record.seconds, alone=record.alone)
    try:
        report = load_report(job.folder / REPORT)
        if report.qexport != __version__:
            raise InputError(f"its worker has qexport {report.qexport}", f"install {__version__} there")
    except InputError as error:
        if state == FAILED:
            return told
        line = f"{error}; do the workers share this folder?"
        return replace(told, state=FAILED, exit_code=InputError.exit_code, line=line)
    page = f"{run.name}/{PAGE}" if (job.folder / PAGE).is_file() else ""
    return replace(
        told,
        report=f"{run.name}/{REPORT}",
        page=page,
        metric=report.metrics[0],
        processor=report.environment.processor,
        artifacts=swept(report, job.precision),
    )
