"""The command line. Nothing else prints, and nothing here imports torch before it is needed."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qexport.cli.console import SETTINGS, Timeout, UnexpectedError, fail, library_output, unexpected
from qexport.cli.console import option as _option
from qexport.cli.doctor import EPILOG as DOCTOR
from qexport.cli.doctor import doctor_command
from qexport.cli.output import say, say_json
from qexport.cli.qat import EXAMPLES, qat_command, with_share
from qexport.cli.report import report_command
from qexport.cli.sensitivity import sensitivity_command
from qexport.cli.snippet import EPILOG as SNIPPET
from qexport.cli.snippet import snippet_command
from qexport.errors import OUT_OF_MEMORY, GateError, InputError, QexportError, is_out_of_memory
from qexport.optimisation.effort import DEFAULT_EFFORT, EFFORTS
from qexport.optimisation.registry import PASSES
from qexport.planning.registry import DEFAULT_RANGES, RANGES
from qexport.plugins import BACKENDS, names
from qexport.targets import TARGETS
from qexport.tasks import SCORING
from qexport.version import __version__
from qexport.vocabulary import PRECISIONS, alternatives

if TYPE_CHECKING:
    from qexport.job.options import ExportJob

EPILOG = (
    "Other verbs: 'qexport demo' runs the whole job offline on a small model that comes with qexport, "
    "'qexport doctor' says what this machine can do and what is missing, "
    "'qexport formats' lists the formats, 'qexport verify' checks a file against its report, "
    "'qexport diff' compares two, 'qexport report' renders a report.json as a page, "
    "'qexport snippet' prints a program that runs a file without qexport, "
    "'qexport sensitivity' measures what each layer costs, "
    "'qexport qat' trains with the rounding in place. "
    "Exit codes: 0 done, 1 failed, 2 usage, 3 model or data, "
    "4 package missing, 5 conversion, 6 verification, 7 written but not measured, "
    "8 engine not built (TensorRT, Edge TPU), "
    "9 a figure breaks a rule of the gate or is worse than the baseline's, or --strict found outputs far from FP32's, "
    "124 not finished in --timeout, 130 interrupted. "
    "Where a format of several fails, the others are written and its code is returned."
)

export_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
verbs_app = typer.Typer(add_completion=False, no_args_is_help=True, context_settings=SETTINGS)


@export_app.command(epilog=EPILOG, context_settings=SETTINGS, no_args_is_help=True)
def export_command(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint (.pt) or name that Ultralytics knows, or a float .onnx file.")
    ] = None,
    format_: Annotated[
        str | None, _option(f"{', '.join(names(BACKENDS))}; comma-separated. Default: tflite.", "--format", "-f")
    ] = None,
    precision: Annotated[
        str | None,
        _option(f"{', '.join(PRECISIONS)}. Default: fp32, or the target's.", "--precision"),
    ] = None,
    int8: Annotated[bool | None, _option("Short for --precision int8 (int8-full for devices).", "--int8")] = None,
    half: Annotated[bool | None, _option("Short for --precision fp16.", "--half")] = None,
    target: Annotated[str | None, _option(f"Device to write for: {', '.join(TARGETS)}.", "--target")] = None,
    io: Annotated[str | None, _option("int8 or uint8 in and out of integer-only files. Default: int8.", "--io")] = None,
    data: Annotated[str | None, _option("Data set YAML: train calibrates, val evaluates.", "--data")] = None,
    eval_data: Annotated[
        str | None, _option("Evaluate on this YAML instead, or on a folder or list of images.", "--eval-data")
    ] = None,
    imgsz: Annotated[str | None, _option("Image size: 640, or height and width: 480 640.", "--imgsz")] = None,
    batch: Annotated[int | None, _option("Images in one run of the artifact. Default: 1.", "--batch")] = None,
    device: Annotated[str | None, _option("Where calibration runs: cpu.", "--device", hidden=True)] = None,
    fraction: Annotated[
        float | None, _option("Share of the train split to calibrate with. Default: 1.", "--fraction")
    ] = None,
    calib_images: Annotated[
        str | None, _option("At most this many calibration images, or all. Default: 512.", "--calib-images")
    ] = None,
    min_images: Annotated[
        str | None, _option("Fail where fewer calibration images are usable. Default: 1.", "--min-images")
    ] = None,
    nms: Annotated[bool | None, _option("Build NMS into the artifact.", "--nms")] = None,
    head: Annotated[
        str | None, _option("end2end (no NMS) or one2many. Default: end2end where there is one.", "--head")
    ] = None,
    ranges: Annotated[
        str | None,
        _option(
            f"{alternatives((*RANGES.own, 'one of a plug-in'))}. "
            f"Default: auto; {DEFAULT_RANGES} with --effort none, minmax for w8a16.",
            "--ranges",
        ),
    ] = None,
    threads: Annotated[
        int | None, _option("CPU threads to run artifacts with. Default: 2, or the target's.", "--threads")
    ] = None,
    out: Annotated[Path | None, _option("Folder for all files. Default: qexport_out/MODEL.", "--out", "-o")] = None,
    report: Annotated[
        Path | None, _option("Another place for report.json; NAME.html: a page, too.", "--report")
    ] = None,
    calibration: Annotated[Path | None, _option("Reuse a calibration.npz.", "--calibration")] = None,
    plan: Annotated[Path | None, _option("Obey a plan.json, edited or not, instead of planning.", "--plan")] = None,
    effort: Annotated[
        str | None,
        _option(
            f"How much to do so that INT8 loses less: {', '.join(EFFORTS)}. Default: {DEFAULT_EFFORT}.", "--effort"
        ),
    ] = None,
    optimise: Annotated[
        str | None,
        _option(f"Passes over the weights instead, comma-separated: {', '.join(PASSES.own)}.", "--optimise"),
    ] = None,
    candidate: Annotated[
        Path | None, _option("Obey a candidate.npz instead of planning and optimising.", "--candidate")
    ] = None,
    densify: Annotated[
        bool | None, _option("Let passes fill zeros of pruned weights, which they keep otherwise.", "--densify")
    ] = None,
    config: Annotated[Path | None, _option("YAML with these options; the command line wins.", "--config")] = None,
    no_eval: Annotated[bool | None, _option("Do not measure accuracy.", "--no-eval")] = None,
    no_latency: Annotated[bool | None, _option("Do not measure latency.", "--no-latency")] = None,
    max_drop: Annotated[
        str | None, _option("Gate: most percent of FP32's mAP lost, 100 × (1 − retention).", "--max-drop")
    ] = None,
    repair: Annotated[
        bool | None, _option("Keep in float what it takes to meet --max-drop, and no more.", "--repair")
    ] = None,
    min_retention: Annotated[
        str | None, _option("Gate: least share of FP32's mAP kept: 0.97 or 97%.", "--min-retention")
    ] = None,
    min_fidelity: Annotated[str | None, _option("Gate: least fidelity, 0 to 1.", "--min-fidelity")] = None,
    min_speedup: Annotated[str | None, _option("Gate: least speed-up against FP32.", "--min-speedup")] = None,
    max_size: Annotated[str | None, _option("Gate: most MB, or with a unit: 900kB, 3MiB.", "--max-size")] = None,
    max_latency_ms: Annotated[str | None, _option("Gate: most milliseconds (p50).", "--max-latency-ms")] = None,
    strict: Annotated[
        bool | None, _option("Gate: fail where outputs are far from FP32's, which is a warning otherwise.", "--strict")
    ] = None,
    baseline: Annotated[
        Path | None,
        _option("Gate: an earlier report.json; fail where this run is worse by more than noise.", "--baseline"),
    ] = None,
    summary: Annotated[
        Path | None, _option("Write Markdown; added to the end of $GITHUB_STEP_SUMMARY.", "--summary")
    ] = None,
    junit: Annotated[Path | None, _option("Write rules and verifications as JUnit XML.", "--junit")] = None,
    trust_checkpoint: Annotated[
        bool | None, _option("Unpickle any class: runs code from the file.", "--trust-checkpoint")
    ] = None,
    opset: Annotated[int | None, _option("ONNX operator set. Default: what suits the runtime.", "--opset")] = None,
    dynamic: Annotated[bool | None, _option("Leave the number of images in a run open.", "--dynamic")] = None,
    cpu: Annotated[
        str | None,
        _option("CPU to plan for: vnni, avx2, arm; onnx=arm,openvino=vnni. Default: target's, this one.", "--cpu"),
    ] = None,
    no_build: Annotated[
        bool | None, _option("Stop at the graph: no TensorRT engine, no Edge TPU file.", "--no-build")
    ] = None,
    workspace: Annotated[float | None, _option("GiB for TensorRT's builder.", "--workspace")] = None,
    timing_cache: Annotated[Path | None, _option("File for TensorRT's kernel timings.", "--timing-cache")] = None,
    dla: Annotated[int | None, _option("DLA core of a Jetson (TensorRT 10).", "--dla")] = None,
    keep_float: Annotated[
        str | None, _option("Values or ONNX outputs to keep float, comma-separated.", "--keep-float")
    ] = None,
    raw_outputs: Annotated[
        str | None, _option("ONNX files: everything behind these tensors stays float. Default: found.", "--raw-outputs")
    ] = None,
    pixels: Annotated[
        str | None, _option("ONNX files: 0..1, 0..255, imagenet, or means and deviations. Default: 0..1.", "--pixels")
    ] = None,
    bgr: Annotated[bool | None, _option("ONNX files: blue comes first.", "--bgr")] = None,
    option: Annotated[
        str | None, _option("Options of a format that has others than these: NAME=VALUE, comma-separated.", "--option")
    ] = None,
    timeout: Timeout = None,
    quiet: Annotated[bool, _option("Print errors only.", "--quiet", "-q")] = False,
    json_: Annotated[bool, _option("Print the report as JSON, and nothing else.", "--json")] = False,
    version: Annotated[bool, _option("Print the version and stop.", "--version")] = False,
) -> int:
    """Turn a YOLO checkpoint into a verified edge artifact, with a report of what it gained and lost.

    qexport yolo26n.pt --format tflite --int8 --data coco8.yaml
    """
    if version:
        say(__version__)
        return 0
    given = dict(locals(), format=format_)
    from qexport.job.options import FIELDS, make_job

    return _run(make_job({name: given[name] for name in FIELDS}, config), quiet, json_, timeout)


@verbs_app.command()
def demo(
    task: Annotated[str, typer.Option(help=f"{alternatives(tuple(SCORING))}.")] = "detect",
    out: Annotated[Path | None, _option("Folder for all files. Default: qexport_out/demo.", "--out")] = None,
    timeout: Timeout = None,
    quiet: Annotated[bool, _option("Print errors only.", "--quiet", "-q")] = False,
    json_: Annotated[bool, _option("Print the report as JSON, and nothing else.", "--json")] = False,
) -> int:
    """Run the main job offline on a small model and data set that come with qexport."""
    from qexport.cli.demo import demo_job

    return _run(demo_job(out, task), quiet, json_, timeout)


@verbs_app.command()
def formats() -> None:
    """List the formats, their precisions, and whether this installation can write them."""
    from qexport.backends.registry import available_formats, find_backend
    from qexport.errors import MissingExtraError, PluginError

    for name in available_formats():
        try:
            say(f"{name}: {', '.join(sorted(find_backend(name).info.precisions))}")
        except PluginError as error:
            say(f"{name}: broken ({error})")
        except MissingExtraError as error:
            say(f"{name}: not installed ({error.remedy})")


def _run(job: ExportJob, quiet: bool, as_json: bool, timeout: float | None) -> int:
    """Run a job, show its report, and return the exit code: that of the first that failed, the gate's, or 0."""
    from qexport.cli.progress import shown_progress
    from qexport.compat.quiet import quiet_libraries
    from qexport.execution.worker_process import worker_process
    from qexport.job.checks import check_paths
    from qexport.job.offload import offloaded_formats

    quiet_libraries()
    check_paths(job)
    with (
        library_output(job.folder) as terminal,
        shown_progress(terminal, quiet or as_json, timeout) as progress,
        worker_process(progress) if offloaded_formats(job) else nullcontext() as worker,
    ):
        from qexport.pipeline import export

        report = export(job, progress, shlex.join(["qexport", *sys.argv[1:]]), worker)
    from qexport.cli.terminal import print_report
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
    lost = *(each.exit_code for each in report.failures), *(each.exit_code for each in report.unmeasured)
    codes = (*lost, *([GateError.exit_code] if broken else []))
    return next(iter(codes), 0)


verbs_app.command("doctor", epilog=DOCTOR)(doctor_command)
verbs_app.command("report")(report_command)
verbs_app.command("sensitivity")(sensitivity_command)
verbs_app.command("snippet", epilog=SNIPPET)(snippet_command)
verbs_app.command("qat", epilog=EXAMPLES)(qat_command)
VERBS = dict.fromkeys(("demo", "doctor", "formats", "qat", "report", "sensitivity", "snippet"), verbs_app)
CHECKS = ("verify", "diff")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every expected error is one line on stderr."""
    words = join_sizes(list(sys.argv[1:] if arguments is None else arguments)) or ["--help"]
    words = with_share(words) if words[0] == "qat" else words
    app = _checks() if words[0] in CHECKS else VERBS.get(words[0], export_app)
    if app is export_app and (meant := _mistyped(words[0])):
        return fail(f"{words[0]} is neither a file nor a verb: did you mean qexport {meant}", 2)
    return ended(lambda: int(app(words, prog_name="qexport", standalone_mode=False) or 0))


def ended(command: Callable[[], int]) -> int:
    """Run what a command does and return its exit code; an error becomes one line on stderr and a code of its own."""
    try:
        return command()
    except typer.TyperException as error:
        return fail(" ".join(error.format_message().split()) or "see qexport --help", 2)
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


def _mistyped(word: str) -> str | None:
    """The verb that a first word nearly is, where it is neither a file's name nor an option."""
    if Path(word).suffix or word.startswith("-") or Path(word).exists():
        return None
    return next(iter(difflib.get_close_matches(word, (*VERBS, *CHECKS), 1, 0.75)), None)


def _checks() -> typer.Typer:
    from qexport.cli.verify import checks_app  # it uses what is in this module

    return checks_app


def join_sizes(words: list[str]) -> list[str]:
    """Let `--imgsz 480 640` mean what it means to `yolo`: click options take one word each."""
    joined: list[str] = []
    for word in words:
        if word.isdigit() and len(joined) > 1 and joined[-2] == "--imgsz" and joined[-1].isdigit():
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined
