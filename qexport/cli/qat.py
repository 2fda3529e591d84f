"""The verb `qat`: train with the rounding in place, and write a checkpoint that exports to every format."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from qexport.cli.completion import model_path
from qexport.cli.console import Timeout, fail, library_output
from qexport.cli.console import option as _option
from qexport.cli.output import Rows, say_json, sentence, show
from qexport.errors import OtherProcessError
from qexport.optimisation.effort import DEFAULT_EFFORT, EFFORTS
from qexport.system.launch import launched
from qexport.system.signals import ignore_termination
from qexport.training.recipe import Recipe

if TYPE_CHECKING:
    from qexport.job.export_job import ExportJob
    from qexport.reporting.training_report import ProfileTraining, TrainingReport

DEFAULTS = Recipe()
_training = partial(_option, rich_help_panel="Training")
_planning = partial(_option, rich_help_panel="What is trained for")
_learning = partial(_option, rich_help_panel="How it learns")
_output = partial(_option, rich_help_panel="Output")
INTERRUPTED = 130
SHARE = "--labels"


def qat_command(
    model: Annotated[
        str, typer.Argument(help="Checkpoint (.pt) or name that Ultralytics knows.", autocompletion=model_path)
    ],
    data: Annotated[str | None, _training("Data set YAML: train is trained on.", "--data")] = None,
    epochs: Annotated[
        int | None,
        _training(f"How often all images are seen. Default: {DEFAULTS.epochs}.", "--epochs"),
    ] = None,
    batch: Annotated[int | None, _training(f"Images of a step. Default: {DEFAULTS.batch}.", "--batch")] = None,
    labels: Annotated[
        float | None,
        _training(
            "Share of the loss that labels have; alone: 1. Default: 0, the FP32 model teaches.",
            SHARE,
            metavar="[SHARE]",
        ),
    ] = None,
    device: Annotated[str | None, _training("cpu, cuda or cuda:NUMBER. Default: cpu.", "--device")] = None,
    seed: Annotated[int | None, _training("Of images' order and augmentation. Default: 0.", "--seed")] = None,
    resume: Annotated[bool, _training("Go on behind the last epoch of the run in --out.", "--resume")] = False,
    format_: Annotated[
        str | None,
        _planning("Formats, comma-separated. Default: tflite.", "--format", "-f"),
    ] = None,
    precision: Annotated[str | None, _planning("One with integers. Default: int8.", "--precision")] = None,
    imgsz: Annotated[
        str | None,
        _planning("Image size: 640, or height and width: 480 640.", "--imgsz"),
    ] = None,
    head: Annotated[str | None, _planning("end2end or one2many.", "--head")] = None,
    cpu: Annotated[str | None, _planning("CPU to plan for, as in an export.", "--cpu")] = None,
    effort: Annotated[
        str | None,
        _planning(f"Passes before training: {', '.join(EFFORTS)}. Default: {DEFAULT_EFFORT}.", "--effort"),
    ] = None,
    ranges: Annotated[str | None, _planning("How ranges of activations are chosen.", "--ranges")] = None,
    calib_images: Annotated[
        str | None,
        _planning("At most this many images of the split, or all. Default: 512.", "--calib-images"),
    ] = None,
    min_images: Annotated[
        str | None,
        _planning("Fail where fewer of them are usable. Default: 1.", "--min-images"),
    ] = None,
    weights: Annotated[
        str | None,
        _learning(
            f"within-step: rounding is learned; free: weights go anywhere. Default: {DEFAULTS.weights}.", "--weights"
        ),
    ] = None,
    rate_weights: Annotated[
        float | None,
        _learning(f"Learning rate of weights, in steps. Default: {DEFAULTS.rate_weights:g}.", "--rate-weights"),
    ] = None,
    rate_scales: Annotated[
        float | None,
        _learning(f"The same of scales' logarithms. Default: {DEFAULTS.rate_scales:g}.", "--rate-scales"),
    ] = None,
    rate_biases: Annotated[
        float | None,
        _learning(f"The same of biases. Default: {DEFAULTS.rate_biases:g}.", "--rate-biases"),
    ] = None,
    damping: Annotated[
        float | None,
        _learning(f"Against weights that oscillate. Default: {DEFAULTS.damping:g}.", "--damping"),
    ] = None,
    patience: Annotated[
        int | None,
        _learning(f"Epochs without gain before it ends, 0: never. Default: {DEFAULTS.patience}.", "--patience"),
    ] = None,
    eval_data: Annotated[
        str | None, _training("Measure fidelity on this YAML, folder or list of images.", "--eval-data")
    ] = None,
    out: Annotated[Path | None, _output("Folder for all files. Default: qexport_out/MODEL_qat.", "--out", "-o")] = None,
    trust_checkpoint: Annotated[
        bool | None, _option("Unpickle any class: runs code from the file.", "--trust-checkpoint")
    ] = None,
    timeout: Timeout = None,
    quiet: Annotated[bool, _output("Print errors only.", "--quiet", "-q")] = False,
    json_: Annotated[bool, _output("Print the record as JSON, and nothing else.", "--json")] = False,
) -> int:
    """Train with the rounding of INT8 in place, and write a checkpoint that exports to every format."""
    given: dict[str, Any] = dict(locals(), format=format_)
    others = ("format_", "resume", "timeout", "quiet", "json_")
    from qexport.job.train_job import make_train_job

    launch = launched(os.environ)
    job = make_train_job({name: value for name, value in given.items() if name not in others}, resume, launch)
    from qexport.cli.progress import shown_progress
    from qexport.compat.patches import WORLD_SIZE, without_variable
    from qexport.compat.quiet import quiet_libraries
    from qexport.job.places import check_paths

    quiet_libraries()
    if launch.first:
        check_paths(job.export)
    hidden = quiet or json_ or not launch.first
    with (
        without_variable(WORLD_SIZE),
        library_output(job.export.folder) as terminal,
        shown_progress(terminal, hidden, timeout) as progress,
    ):
        from qexport.training_run import train_of

        try:
            report = train_of(job, progress, shlex.join(["qexport", *sys.argv[1:]]))
        except OtherProcessError as error:
            ignore_termination()  # of `torchrun`, which has seen the same, and would add a second line
            if launch.first:
                raise
            return error.exit_code
    return _told(report, job.export, quiet, json_) if launch.first else 0


def _told(report: TrainingReport, job: ExportJob, quiet: bool, as_json: bool) -> int:
    """Print what came of it, and return the exit code."""
    last = report.profiles[-1].record
    if report.interrupted and not any(each.record.epochs for each in report.profiles):
        what = f"nothing was learned, {report.file} has what was known before"
        return fail(f"interrupted before an epoch was whole: {what}", INTERRUPTED)
    if as_json:
        say_json((report.file.parent / "train.json").read_text(encoding="utf-8"))
    elif not quiet:
        console = Console()
        show(console, _table(report))
        for line in _lines(report, job):
            show(console, line, whole_lines=True)
    if report.interrupted:
        done = f"{len(last.epochs)} of {last.recipe.epochs} epochs for {last.profile}"
        return fail(f"interrupted: {report.file} has what {done} came to, --resume goes on", INTERRUPTED)
    return 0


def _table(report: TrainingReport) -> Rows:
    table = Rows()
    scored = any(each.fidelity is not None for each in report.profiles)
    for heading in ("profile", "formats", "distance before", "trained", "", "epoch"):
        table.add_column(heading, justify="left" if heading in ("profile", "formats") else "right")
    labels = any(each.record.start_labelled is not None for each in report.profiles)
    for heading in (
        *(("by labels before", "trained") if labels else ()),
        *(("fidelity before", "trained") if scored else ()),
    ):
        table.add_column(heading, justify="right")
    for each in report.profiles:
        by_labels = (_figure(each.record.start_labelled), _figure(each.record.end_labelled)) if labels else ()
        fidelity = (_figure(each.fidelity_before), _figure(each.fidelity)) if scored else ()
        table.add(*_row(each), *by_labels, *fidelity)
    return table


def _row(profile: ProfileTraining) -> tuple[str, ...]:
    record = profile.record
    change = f"{100 * (record.end / record.start - 1):+.0f} %" if record.start > 0 else ""
    kept = f"{record.best} of {len(record.epochs)}" if record.best else "none"
    return record.profile, ", ".join(profile.formats), f"{record.start:.4f}", f"{record.end:.4f}", change, kept


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _lines(report: TrainingReport, job: ExportJob) -> list[Text]:
    """What must be known besides, where the files are, and what to type next."""
    first = report.profiles[0].record
    judged = "distance of the simulated network from FP32"
    if first.start_labelled is not None:
        judged += ", and its loss by labels,"
    lines = [sentence(f"{judged} on {first.held_out} images held out from training")]
    records = [each.record for each in report.profiles]
    lines += [
        sentence(f"{each.profile}: {len(each.epochs)} epoch{'s'[: len(each.epochs) != 1]} ({each.stopped})")
        for each in records
    ]
    lines += [sentence(f"warning: {note}", style="yellow") for note in report.notes]
    lines.append(sentence(f"wrote {report.file.name}, train.json and train.html to {report.file.parent}"))
    lines.append(sentence(f"next: {shlex.join(export_words(report.file, job))}"))
    return lines


def export_words(file: Path, job: ExportJob) -> list[str]:
    """The command that exports what was trained as it was trained."""
    precision = ["--int8"] if job.precision == job.short_forms["int8"] else ["--precision", job.precision]
    words = ["qexport", str(file), "--data", str(job.data), "--format", ",".join(job.format), *precision]
    if job.imgsz:
        words += ["--imgsz", ",".join(map(str, job.imgsz)) if job.imgsz[0] != job.imgsz[1] else str(job.imgsz[0])]
    if job.head:
        words += ["--head", job.head]
    if job.cpu != "auto":
        words += ["--cpu", job.cpu]
    return [*words, *(["--trust-checkpoint"] if job.trust_checkpoint else [])]


def with_share(words: Sequence[str]) -> list[str]:
    """Let `--labels` without a share mean all of it: options have one value, which cannot be left out."""
    found: list[str] = []
    for place, word in enumerate(words):
        found.append(word)
        if word == SHARE and not _is_number(words[place + 1] if place + 1 < len(words) else ""):
            found.append("1")
    return found


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
