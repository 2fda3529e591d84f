"""The command line. Nothing else prints, and nothing here imports torch before it is needed."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qexport.cli import completion
from qexport.cli import help as texts
from qexport.cli.cache import cache_command
from qexport.cli.console import SETTINGS, Timeout, UnexpectedError, fail, library_output, misused, tell, unexpected
from qexport.cli.console import option as _option
from qexport.cli.doctor import doctor_command
from qexport.cli.formats import formats_command
from qexport.cli.output import say, say_json
from qexport.cli.qat import qat_command, with_share
from qexport.cli.report import report_command
from qexport.cli.sensitivity import sensitivity_command
from qexport.cli.snippet import snippet_command
from qexport.cli.spelling import is_pair, join_pairs, join_sizes, known_to, spell
from qexport.cli.sweep import sweep_command
from qexport.errors import OUT_OF_MEMORY, GateError, InputError, QexportError, UsageError, is_out_of_memory
from qexport.optimisation.effort import DEFAULT_EFFORT, EFFORTS
from qexport.optimisation.registry import PASSES
from qexport.planning.registry import DEFAULT_RANGES, RANGES
from qexport.plugins import BACKENDS, names
from qexport.targets import TARGETS
from qexport.tasks import SCORING
from qexport.version import __version__
from qexport.vocabulary import PRECISIONS, alternatives, closest, unknown

if TYPE_CHECKING:
    from qexport.job.options import ExportJob

MODEL = "Checkpoint (.pt) or name that Ultralytics knows, or a float .onnx file."
_what = partial(_option, rich_help_panel="What to export")
_data = partial(_option, rich_help_panel="Data")
_output = partial(_option, rich_help_panel="Output")
_accuracy = partial(_option, rich_help_panel="Nearer to FP32")
_gate = partial(_option, rich_help_panel="Gate: exit code 9 where a figure breaks a bound")
_runtime = partial(_option, rich_help_panel="Runtimes and devices")
_onnx = partial(_option, rich_help_panel="ONNX files")
_other = partial(_option, rich_help_panel=texts.OTHER)
export_app = typer.Typer(rich_markup_mode="rich")
verbs_app = typer.Typer(no_args_is_help=True, context_settings=SETTINGS)


@export_app.command(cls=texts.Command, epilog=texts.EXPORT, context_settings=SETTINGS, no_args_is_help=True)
def export_command(
    model: Annotated[str | None, typer.Argument(help=MODEL, autocompletion=completion.verb_or_model)] = None,
    format_: Annotated[
        str | None, _what(f"{', '.join(names(BACKENDS))}; comma-separated. Default: tflite.", "--format", "-f")
    ] = None,
    int8: Annotated[bool | None, _what("Short for --precision int8 (int8-full for devices).", "--int8")] = None,
    half: Annotated[bool | None, _what("Short for --precision fp16.", "--half")] = None,
    precision: Annotated[
        str | None,
        _what(f"{', '.join(PRECISIONS)}. Default: fp32, or the target's.", "--precision"),
    ] = None,
    target: Annotated[str | None, _what(f"Device to write for: {', '.join(TARGETS)}.", "--target")] = None,
    imgsz: Annotated[str | None, _what("Image size: 640, or height and width: 480 640.", "--imgsz")] = None,
    head: Annotated[
        str | None, _what("end2end (no NMS) or one2many. Default: end2end where there is one.", "--head")
    ] = None,
    nms: Annotated[bool | None, _what("Build NMS into the artifact.", "--nms")] = None,
    batch: Annotated[int | None, _what("Images in one run of the artifact. Default: 1.", "--batch")] = None,
    dynamic: Annotated[bool | None, _what("Leave the number of images in a run open.", "--dynamic")] = None,
    data: Annotated[str | None, _data("Data set YAML: train calibrates, val evaluates.", "--data")] = None,
    eval_data: Annotated[
        str | None, _data("Evaluate on this YAML instead, or on a folder or list of images.", "--eval-data")
    ] = None,
    calib_images: Annotated[
        str | None, _data("At most this many calibration images, or all. Default: 512.", "--calib-images")
    ] = None,
    fraction: Annotated[
        float | None, _data("Share of the train split to calibrate with. Default: 1.", "--fraction")
    ] = None,
    min_images: Annotated[
        str | None, _data("Fail where fewer calibration images are usable. Default: 1.", "--min-images")
    ] = None,
    calibration: Annotated[Path | None, _data("Reuse a calibration.npz.", "--calibration")] = None,
    out: Annotated[Path | None, _output("Folder for all files. Default: qexport_out/MODEL.", "--out", "-o")] = None,
    report: Annotated[
        Path | None, _output("Another place for report.json; NAME.html: a page, too.", "--report")
    ] = None,
    summary: Annotated[
        Path | None, _output("Write Markdown; added to the end of $GITHUB_STEP_SUMMARY.", "--summary")
    ] = None,
    junit: Annotated[Path | None, _output("Write rules and verifications as JUnit XML.", "--junit")] = None,
    config: Annotated[Path | None, _output("YAML with these options; the command line wins.", "--config")] = None,
    no_eval: Annotated[bool | None, _output("Do not measure accuracy.", "--no-eval")] = None,
    no_latency: Annotated[bool | None, _output("Do not measure latency.", "--no-latency")] = None,
    no_cache: Annotated[
        bool | None, _output("Take nothing of earlier runs, leave nothing for later.", "--no-cache")
    ] = None,
    quiet: Annotated[bool, _output("Print errors only.", "--quiet", "-q")] = False,
    json_: Annotated[bool, _output("Print the report as JSON, and nothing else.", "--json")] = False,
    effort: Annotated[
        str | None,
        _accuracy(
            f"How much to do so that INT8 loses less: {', '.join(EFFORTS)}. Default: {DEFAULT_EFFORT}.", "--effort"
        ),
    ] = None,
    repair: Annotated[
        bool | None, _accuracy("Keep in float what it takes to meet --max-drop, and no more.", "--repair")
    ] = None,
    optimise: Annotated[
        str | None,
        _accuracy(f"Passes over the weights instead, comma-separated: {', '.join(PASSES.own)}.", "--optimise"),
    ] = None,
    ranges: Annotated[
        str | None,
        _accuracy(
            f"{alternatives((*RANGES.own, 'one of a plug-in'))}. "
            f"Default: auto; {DEFAULT_RANGES} with --effort none, minmax for w8a16.",
            "--ranges",
        ),
    ] = None,
    keep_float: Annotated[
        str | None, _accuracy("Values or ONNX outputs to keep float, comma-separated.", "--keep-float")
    ] = None,
    densify: Annotated[
        bool | None, _accuracy("Let passes fill zeros of pruned weights, which they keep otherwise.", "--densify")
    ] = None,
    plan: Annotated[Path | None, _accuracy("Obey a plan.json, edited or not, instead of planning.", "--plan")] = None,
    candidate: Annotated[
        Path | None, _accuracy("Obey a candidate.npz instead of planning and optimising.", "--candidate")
    ] = None,
    max_drop: Annotated[
        str | None, _gate("Most percent of FP32's mAP lost, 100 × (1 − retention).", "--max-drop")
    ] = None,
    min_retention: Annotated[
        str | None, _gate("Least share of FP32's mAP kept: 0.97 or 97%.", "--min-retention")
    ] = None,
    min_fidelity: Annotated[str | None, _gate("Least fidelity, 0 to 1.", "--min-fidelity")] = None,
    min_speedup: Annotated[str | None, _gate("Least speed-up against FP32.", "--min-speedup")] = None,
    max_latency_ms: Annotated[str | None, _gate("Most milliseconds (p50).", "--max-latency-ms")] = None,
    max_size: Annotated[str | None, _gate("Most MB, or with a unit: 900kB, 3MiB.", "--max-size")] = None,
    rule: Annotated[str | None, _gate("Rules of plug-ins: NAME=BOUND, comma-separated.", "--rule")] = None,
    strict: Annotated[
        bool | None, _gate("Fail where outputs are far from FP32's, which is a warning otherwise.", "--strict")
    ] = None,
    baseline: Annotated[
        Path | None,
        _gate("An earlier report.json; fail where this run is worse by more than noise.", "--baseline"),
    ] = None,
    threads: Annotated[
        int | None,
        _runtime("CPU threads to run artifacts with. Default: 2 where there are cores, or the target's.", "--threads"),
    ] = None,
    jobs: Annotated[int | None, _runtime("Processes that score images at once. Default: 1.", "--jobs", "-j")] = None,
    tune: Annotated[
        str | None, _runtime("latency: search on this machine for the fastest plan no farther from FP32.", "--tune")
    ] = None,
    tune_seconds: Annotated[
        str | None, _runtime("Most seconds of that search, a format. Default: 120.", "--tune-seconds")
    ] = None,
    cpu: Annotated[
        str | None,
        _runtime("CPU to plan for: vnni, avx2, arm; onnx=arm,openvino=vnni. Default: target's, this one.", "--cpu"),
    ] = None,
    io: Annotated[
        str | None, _runtime("int8 or uint8 in and out of integer-only files. Default: int8.", "--io")
    ] = None,
    layout: Annotated[
        str | None, _runtime("nchw or nhwc: axes of images in TFLite files. Default: nchw; int8-full nhwc.", "--layout")
    ] = None,
    normalised_boxes: Annotated[
        bool | None, _runtime("TFLite: boxes in 0..1 of end-to-end heads and --nms, too.", "--normalised-boxes")
    ] = None,
    opset: Annotated[int | None, _runtime("ONNX operator set. Default: what suits the runtime.", "--opset")] = None,
    no_build: Annotated[
        bool | None, _runtime("Stop at the graph: no TensorRT engine, no Edge TPU file.", "--no-build")
    ] = None,
    workspace: Annotated[float | None, _runtime("GiB for TensorRT's builder.", "--workspace")] = None,
    timing_cache: Annotated[Path | None, _runtime("File for TensorRT's kernel timings.", "--timing-cache")] = None,
    dla: Annotated[int | None, _runtime("DLA core of a Jetson (TensorRT 10).", "--dla")] = None,
    option: Annotated[
        str | None, _runtime("Options of a format that has others than these: NAME=VALUE, comma-separated.", "--option")
    ] = None,
    device: Annotated[str | None, _runtime("Where calibration runs: cpu.", "--device", hidden=True)] = None,
    pixels: Annotated[
        str | None, _onnx("0..1, 0..255, imagenet, or means and deviations. Default: 0..1.", "--pixels")
    ] = None,
    bgr: Annotated[bool | None, _onnx("Blue comes first.", "--bgr")] = None,
    raw_outputs: Annotated[
        str | None, _onnx("Everything behind these tensors stays float. Default: found.", "--raw-outputs")
    ] = None,
    turns: Annotated[
        Path | None, _other("Measure latency while no run with the same folder here works.", "--turns", hidden=True)
    ] = None,
    timeout: Timeout = None,
    trust_checkpoint: Annotated[
        bool | None, _other("Unpickle any class: runs code from the file.", "--trust-checkpoint")
    ] = None,
    version: Annotated[bool, _other("Print the version and stop.", "--version")] = False,
    *,
    context: typer.Context,
) -> int:
    """Turn a YOLO checkpoint into a verified edge artifact, with a report of what it gained and lost."""
    if version:
        say(__version__)
        return 0
    given = dict(locals(), format=format_)
    from qexport.job.options import FIELDS, make_job

    return _run(make_job({name: given[name] for name in FIELDS}, config), context.obj, quiet, json_, timeout, turns)


@verbs_app.command(cls=texts.Command, epilog=texts.DEMO)
def demo(
    task: Annotated[str, _option(f"{alternatives(tuple(SCORING))}. Default: detect.", "--task")] = "detect",
    format_: Annotated[
        str | None, _option(f"{', '.join(names(BACKENDS))}; comma-separated. Default: tflite.", "--format", "-f")
    ] = None,
    out: Annotated[Path | None, _option("Folder for all files. Default: qexport_out/demo.", "--out")] = None,
    timeout: Timeout = None,
    quiet: Annotated[bool, _option("Print errors only.", "--quiet", "-q")] = False,
    json_: Annotated[bool, _option("Print the report as JSON, and nothing else.", "--json")] = False,
    *,
    context: typer.Context,
) -> int:
    """Run the main job offline on a small model and data set that come with qexport."""
    from qexport.cli.demo import demo_job

    return _run(demo_job(out, task, format_), context.obj, quiet, json_, timeout)


def _run(
    job: ExportJob, words: Sequence[str], quiet: bool, as_json: bool, timeout: float | None, folder: Path | None = None
) -> int:
    """Run a job, show its report, and return the exit code."""
    from qexport.cli.progress import shown_progress
    from qexport.compat.quiet import quiet_libraries
    from qexport.execution.worker_process import worker_process
    from qexport.job.offload import offloaded_formats
    from qexport.job.places import check_paths
    from qexport.job.wording import announced
    from qexport.sweeps.turns import Turns

    quiet_libraries()
    check_paths(job)
    if not (quiet or as_json):
        tell(announced(job))
    turns = Turns(folder) if folder else None
    with (
        turns.working() if turns else nullcontext(),
        library_output(job.folder) as terminal,
        shown_progress(terminal, quiet or as_json, timeout) as progress,
        worker_process(progress) if offloaded_formats(job) else nullcontext() as worker,
    ):
        from qexport.pipeline import export

        report = export(job, progress, shlex.join(["qexport", *words]), worker, turns)
    from qexport.cli.terminal import print_report
    from qexport.reporting.gate import exit_code
    from qexport.reporting.report import to_json

    if as_json:
        say_json(to_json(report))
    elif not quiet:
        print_report(report, job.page or Path(report.saved), Console())
    for failure in report.failures:
        named = failure.reason.startswith(f"{failure.format}: ")
        fail(failure.reason if named else f"{failure.format}: {failure.reason}", failure.exit_code)
    for each in report.unmeasured:
        fail(f"{each.artifact or 'run'}: {each.text}", each.exit_code)
    broken = [rule for rule in report.gate.rules if not rule.passed] if report.gate else []
    for rule in broken:
        fail(f"{rule.rule}: {rule.text}", GateError.exit_code)
    return exit_code(report)


verbs_app.command("cache", cls=texts.Command, epilog=texts.CACHE)(cache_command)
verbs_app.command("formats", cls=texts.Command)(formats_command)
verbs_app.command("doctor", cls=texts.Command, epilog=texts.DOCTOR)(doctor_command)
verbs_app.command("report", cls=texts.Command, epilog=texts.REPORT)(report_command)
verbs_app.command("sensitivity", cls=texts.Command, epilog=texts.SENSITIVITY)(sensitivity_command)
verbs_app.command("qat", cls=texts.Command, epilog=texts.QAT)(qat_command)
verbs_app.command("sweep", cls=texts.Command, epilog=texts.SWEEP)(sweep_command)
verbs_app.command("snippet", cls=texts.Command, epilog=texts.SNIPPET)(snippet_command)
VERBS = dict.fromkeys(
    ("cache", "demo", "doctor", "formats", "qat", "report", "sensitivity", "snippet", "sweep"), verbs_app
)
CHECKS = ("verify", "diff")
SAME = {"list": "formats"}
ELSEWHERE = {"train": "qat", "val": "verify", "predict": "snippet"}
"""Modes of Ultralytics, and the verb here that is nearest."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every expected error is one line on stderr."""
    if completion.VARIABLE in os.environ:
        return _completed()
    words = join_sizes(join_pairs(sys.argv[1:] if arguments is None else arguments))
    return ended(lambda: _command(verb_first(words)))


def _command(words: list[str]) -> int:
    """Run a command line that begins with a verb, or with what belongs to an export."""
    app = _checks() if words[0] in CHECKS else VERBS.get(words[0], export_app)
    if app is export_app and (meant := _mistyped(words[0])):
        raise UsageError(f"{words[0]} is neither a file nor a verb", f"did you mean qexport {meant}")
    words = with_share(words) if words[0] == "qat" else words
    if any(map(is_pair, words)):
        words = _understood(app, words)
    return int(app(words, prog_name="qexport", standalone_mode=False, obj=words) or 0)


def _completed() -> int:
    """Tell a shell what the line may become that it asks about."""
    verb = completion.typed_verb()
    app = _checks() if verb in CHECKS else verbs_app if verb in VERBS else export_app
    if verb == "export":  # a word of its own there, and not the model
        app = typer.Typer(context_settings=SETTINGS)
        app.registered_commands = list(verbs_app.registered_commands)
        app.command(verb)(export_command)
    app(prog_name="qexport")
    return 0


def verb_first(words: list[str]) -> list[str]:
    """What a command line means whose first words say no more than `qexport` does, or ask for help."""
    if len(words) > 1 and words[0] in SCORING and words[1] in ("export", *ELSEWHERE):
        words = words[1:]  # as in `yolo detect export`
    if words[:1] == ["export"]:
        words = words[1:]
        if words and words[0] in (*VERBS, *CHECKS, *SAME):  # a model of that name
            words = [f"./{words[0]}", *words[1:]]
    if words[:1] == ["help"]:
        verb = [SAME.get(word, word) for word in words[1:2] if word != "export"]
        if verb and verb[0] not in (*VERBS, *CHECKS):
            raise unknown(f"help {verb[0]}", verb[0], ("export", *VERBS, *CHECKS))
        words = [*verb, "--help"]
    return [SAME.get(words[0], words[0]), *words[1:]] if words else ["--help"]


def _understood(app: typer.Typer, words: list[str]) -> list[str]:
    """Words of Ultralytics' spelling in those of this command line, which are shown unless nobody is there to read."""
    verb = words[: int(app is not export_app)]
    spelled = spell(words[len(verb) :], known_to(app, "".join(verb)), verb)
    understood = [*verb, *spelled.words]
    if not {"--quiet", "-q", "--json"} & {*understood}:
        for note in spelled.notes:
            tell(note)
        tell(shlex.join(["qexport", *understood]))
    return understood


def ended(command: Callable[[], int]) -> int:
    """Run what a command does and return its exit code; an error becomes one line on stderr and a code of its own."""
    try:
        return command()
    except typer.TyperException as error:
        return fail(misused(error), UsageError.exit_code)
    except QexportError as error:
        return fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", 130)
    except UnexpectedError as fault:
        return unexpected(fault.error, fault.output)
    except Exception as error:
        if is_out_of_memory(error):
            return fail(": ".join(OUT_OF_MEMORY), InputError.exit_code)
        return unexpected(error, "")


def _mistyped(word: str) -> str:
    """The verb that a first word nearly is, where it is neither a file's name nor an option."""
    if Path(word).suffix or word.startswith("-") or "=" in word or Path(word).exists():
        return ""
    if word in ELSEWHERE:
        return ELSEWHERE[word]
    return closest(word, (*VERBS, *CHECKS, *SAME, "export", "help"), least=0.75)


def _checks() -> typer.Typer:
    from qexport.cli.verify import checks_app  # it uses what is in this module

    return checks_app
