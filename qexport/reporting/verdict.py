"""What a report comes to: of each artifact that is not FP32 whether it is fit to ship, and what to try where it is not.

It is derived from the report, and shown by all its renderings.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qexport.optimisation.effort import BEST
from qexport.reporting.gate import RULES, accuracy_of
from qexport.reporting.limits import MIN_EVALUATION_IMAGES, MIN_MEANINGFUL_MAP, MIN_RETENTION, STRICT
from qexport.reporting.provenance import stand_in
from qexport.reporting.report import ACCURACY, LATENCY, LIKENESS, ArtifactReport, Outcome, Report
from qexport.reporting.rule import NumberFormat
from qexport.targets import INTEGERS_ONLY
from qexport.vocabulary import alternatives, listed

FIT, DOUBTFUL, UNFIT = "fit", "doubtful", "unfit"
MIN_FACTOR = 1.05
"""What is faster or smaller by less is as fast, or as large."""
CPU_FORMATS = ("tflite", "onnx", "openvino")
"""What runs on CPUs, each with kernels of its own: which is fastest nobody knows before."""
OF_ONE_FORMAT = {"--candidate", "--cpu", "--layout", "--normalised-boxes", "--option", "--plan", "--target"}
"""Options that a run may have with one format and not with others."""
OF_DEMO = ("--format",)
"""Options of `qexport demo` that change what it comes to."""
UNPLANNED = ("fp16", "int8-dynamic")
"""Precisions without scales of activations, which no pass works on."""
OF_ACCURACY = ("max-drop", "min-retention", "min-fidelity", STRICT)
"""Rules that more effort may meet."""
OF_LOSS = {"max-drop", "min-retention"}
"""Those that are asked for in place of `MIN_RETENTION`."""
PERCENT = NumberFormat(1, " %")


@dataclass(frozen=True)
class Verdict:
    """What came of one artifact, or of the run.

    Attributes:
        kind: `FIT`, `DOUBTFUL` or `UNFIT`.
        text: one line: its figures, and what they come to.
        then: what to type next, "" where there is nothing to try.
    """

    kind: str
    text: str
    then: str = ""


def verdicts(report: Report, name: Callable[[ArtifactReport], str]) -> tuple[Verdict, ...]:
    """One for each artifact that is not FP32, and for a run of FP32 files that nobody scored.

    Args:
        name: what a reader knows an artifact by.
    """
    built = {each.format for each in report.artifacts if each.engine}
    asked = [each for each in report.artifacts if each.precision != "fp32"]
    if asked:
        return tuple(_verdict(each, report, name) for each in asked if each.engine or each.format not in built)
    if report.artifacts and report.evaluation is None:
        names = listed(list(dict.fromkeys(map(name, report.artifacts))))
        return (Verdict(DOUBTFUL, f"{names}: accuracy was not measured", _scored(report)),)
    return ()


def _verdict(artifact: ArtifactReport, report: Report, name: Callable[[ArtifactReport], str]) -> Verdict:
    kind, said, then = next(_judgements(artifact, report))
    figures = _figures(artifact, report)
    return Verdict(kind, f"{' '.join([name(artifact), ', '.join(figures)]).strip()}: {said}", then)


def _judgements(artifact: ArtifactReport, report: Report) -> Iterator[tuple[str, str, str]]:
    """Kind, words and what to try, the gravest first."""
    files = _files(artifact, report)
    rules = [each for each in report.gate.rules if each.artifact in files] if report.gate else []
    broken = [each.rule for each in rules if not each.passed]
    if broken:
        of_accuracy = any(rule in OF_ACCURACY for rule in broken)
        words = listed([_option(rule) for rule in dict.fromkeys(broken)])
        yield UNFIT, f"not fit to ship by {words}", _nearer(artifact, report) if of_accuracy else ""
    device = artifact.device
    if device and device.lacking and device.in_front is None:
        yield UNFIT, f"does not run: {device.device} lacks {listed([each.kind for each in device.lacking])}", ""
    if any(each.about == LIKENESS for each in artifact.warnings):
        yield UNFIT, "far from FP32, not fit to ship", _nearer(artifact, report)
    yield from _of_accuracy(artifact, report, {each.rule for each in rules})
    if artifact.speedup is not None and artifact.speedup < 1:
        yield DOUBTFUL, "slower than FP32 here, of use for its size alone", _elsewhere(report)
    if runtime := stand_in(artifact):
        yield DOUBTFUL, f"looks fit to ship as {runtime} runs it: try it where it belongs", ""
    open_ = "; ".join([*_not_ruled_out(artifact, report, rules), *_not_timed(artifact)])
    yield FIT, f"fit to ship ({open_})" if open_ else "fit to ship", ""


def _not_ruled_out(artifact: ArtifactReport, report: Report, rules: Sequence[Outcome]) -> Iterator[str]:
    """Bounds that the figure keeps and the far end of its interval does not: other images may break them."""
    found = artifact.accuracy
    spans = [(each.rule, each.interval, each.bound) for each in rules if each.rule in OF_ACCURACY]
    if found and found.retention is not None and not {rule for rule, *_ in spans} & OF_LOSS:
        spans.append(("min-retention", found.retention_interval, MIN_RETENTION))
    worst = [_worst(rule, span, bound) for rule, span, bound in spans if span and span[0] < bound < span[1]]
    if found and worst:
        yield f"{found.images} images cannot rule out {alternatives(list(dict.fromkeys(worst)))}"


def _worst(rule: str, interval: tuple[float, float], bound: float) -> str:
    """The far end of a figure's interval, in words that it is told by."""
    if rule == "min-fidelity":
        return f"a fidelity of {NumberFormat(3).pair(interval[0], bound)[0]}"
    if rule == "max-drop":
        return f"a loss of {PERCENT.pair(interval[1], bound)[0]}"
    return f"a loss of {PERCENT.pair(100 * (1 - interval[0]), 100 * (1 - bound))[0]}"


def _not_timed(artifact: ArtifactReport) -> Iterator[str]:
    if artifact.latency_ms is None and artifact.speedup is None:
        yield "not timed here"


def _option(rule: str) -> str:
    """What a rule was asked for by; other packages' have no option of their own."""
    own = rule == STRICT or rule.startswith("baseline-") or any(rule == each.name for each in RULES)
    return f"--{rule}" if own else f"--rule {rule}"


def _files(artifact: ArtifactReport, report: Report) -> set[str]:
    """Its name, and of an engine that of its graph, too: rules are of both, and the graph has no verdict of its own."""
    kind = artifact.format, artifact.precision
    return {each.file_name for each in report.artifacts if (each.format, each.precision) == kind}


def _of_accuracy(artifact: ArtifactReport, report: Report, rules: set[str]) -> Iterator[tuple[str, str, str]]:
    found, retention = artifact.accuracy, accuracy_of("retention")(artifact)
    if found is None and artifact.outputs:
        yield DOUBTFUL, "near FP32; nobody knows what its outputs mean, so that nothing was scored", ""
    elif found is None:
        tried = any(each.what == "accuracy" for each in report.unmeasured if each.artifact == artifact.file_name)
        said = "could not be measured" if tried else "was not measured"
        yield DOUBTFUL, f"whether it is fit is not known: accuracy {said}", "" if tried else _scored(report)
    elif found.map_float is not None and found.map_float < MIN_MEANINGFUL_MAP:
        yield DOUBTFUL, "FP32 itself finds next to nothing in these images: is it trained, on such data?", ""
    elif retention is None and accuracy_of("fidelity")(artifact) is None:
        yield DOUBTFUL, "whether it is fit is not known: there is nothing of FP32's to compare it with", ""
    elif retention is None:
        yield DOUBTFUL, "near FP32; without labels nobody knows how good that is", ""
    elif retention < MIN_RETENTION and not rules & OF_LOSS:
        yield (
            DOUBTFUL,
            f"loses more than {100 * (1 - MIN_RETENTION):.0f} % of FP32's accuracy",
            _nearer(artifact, report),
        )
    elif doubts := _doubts(artifact, report):
        yield DOUBTFUL, f"looks fit to ship, but {doubts}", _again(report, "--eval-data", None)
    elif any(each.about == ACCURACY for each in (*report.warnings, *artifact.warnings)):
        yield DOUBTFUL, "looks fit to ship, but there is a warning about its accuracy", ""


def _doubts(artifact: ArtifactReport, report: Report) -> str:
    """Why a good figure may not be one."""
    images = artifact.accuracy.images if artifact.accuracy else 0
    seen = len(report.evaluation.also_calibrated_on) if report.evaluation else 0
    parts = [f"{images} images say little"] if images < MIN_EVALUATION_IMAGES else []
    parts += [f"{seen} of the {images} images were calibrated on"] if seen else []
    return " and ".join(parts)


def _figures(artifact: ArtifactReport, report: Report) -> list[str]:
    """What was kept of FP32, and what was won."""
    found, retention, fidelity = artifact.accuracy, *(accuracy_of(name)(artifact) for name in ("retention", "fidelity"))
    parts = []
    if found and retention is not None and (found.map_float or 0) >= MIN_MEANINGFUL_MAP:
        parts.append(f"keeps {100 * retention:.1f} % of {report.metrics[0]}")
    elif fidelity is not None:
        parts.append(f"has a fidelity of {fidelity:.3f}")
    if artifact.speedup is not None:
        warned = " (see the warning)" if artifact.warned(LATENCY) and artifact.speedup >= 1 else ""
        parts.append(_factor(artifact.speedup, "{:.1f}× faster", "as fast", "{:.2f}× as fast") + warned)
    if size := _float_bytes(artifact, report):
        parts.append(_factor(size / artifact.bytes, "{:.1f}× smaller", "as large", "no smaller"))
    return parts


def _factor(factor: float, more: str, same: str, less: str) -> str:
    return more.format(factor) if factor >= MIN_FACTOR else same if factor > 1 / MIN_FACTOR else less.format(factor)


def _float_bytes(artifact: ArtifactReport, report: Report) -> int:
    """The size of the FP32 file that it stands beside; 0 where there is none."""
    same = (each for each in report.artifacts if (each.format, each.engine) == (artifact.format, artifact.engine))
    return next((each.bytes for each in same if each.precision == "fp32"), 0) if artifact.bytes else 0


def _nearer(artifact: ArtifactReport, report: Report) -> str:
    """What brings an artifact nearer to FP32 that the run has not tried; "" for what nothing is chosen of."""
    if artifact.precision in UNPLANNED:
        return ""
    tried, given = {each.name for each in artifact.passes}, {word.partition("=")[0] for word in _words(report.command)}
    if not report.training and not tried.issuperset(BEST) and not given & {"--candidate"}:
        return _again(report, "--effort", "best")
    if artifact.repair is None and artifact.precision != INTEGERS_ONLY and not given & {"--candidate", "--plan"}:
        return _again(report, "--max-drop", f"{100 * (1 - MIN_RETENTION):.0f}", "--repair")
    data = report.calibration.data if report.calibration else None
    words = ["qexport", "sensitivity", report.model.path, "--data", data or "DATA.yaml"]
    return shlex.join([*words, "--format", artifact.format, "--precision", artifact.precision])


def _scored(report: Report) -> str:
    given = (value for name, value in pairwise(_words(report.command)) if name == "--data")
    return _again(report, "--data", next(given, report.calibration.data if report.calibration else None))


def _elsewhere(report: Report) -> str:
    """The other runtimes that are timed here, where the run had one format and no option that others lack."""
    given = {word.partition("=")[0] for word in _words(report.command)}
    if given & OF_ONE_FORMAT or len({each.format for each in report.artifacts}) != 1:
        return ""
    from qexport.backends.registry import known  # it brings NumPy, which most reports are rendered without

    precisions = {each.precision for each in report.artifacts} - {"fp32"}
    from_onnx = report.model.path.lower().endswith(".onnx")
    able = [info.name for info in known(CPU_FORMATS) if precisions <= info.precisions and info.from_onnx >= from_onnx]
    others = [name for name in CPU_FORMATS if name in able]
    return _again(report, "--format", ",".join(others)) if len(others) > 1 else ""


def _again(report: Report, name: str, value: str | None, *flags: str) -> str:
    """The run's own command with another option; the option alone where the run was not of the command line.

    What `qexport demo` does not take is for the export that it stands for.
    """
    added = [name, value or "DATA.yaml", *flags]
    words = _words(report.command)
    if words[:1] != ["qexport"] or not words[1:]:
        return shlex.join(added)
    if words[1] == "demo" and name not in OF_DEMO:
        words = _as_export(report)
    options, dashes, last = words, [], []
    if "--" in words:
        place = words.index("--")
        options, dashes, last = words[:place], ["--"], words[place + 1 :]
    return shlex.join([*_without(options, name), *added, *dashes, *last])


def _as_export(report: Report) -> list[str]:
    """The export that a run of `qexport demo` was, with what it has of its own spelled out."""
    formats = dict.fromkeys(each.format for each in report.artifacts)
    data = (report.calibration and report.calibration.data) or "DATA.yaml"
    size = ",".join(map(str, report.model.imgsz))
    words = ["--format", ",".join(formats), "--int8", "--data", data, "--imgsz", size]
    return ["qexport", report.model.path, *words]


def _without(words: list[str], name: str) -> list[str]:
    """Words of a command line without an option and its value; what is scored on is not left out."""
    kept: list[str] = []
    skipped = False
    for word in words:
        if not skipped and word != name and not word.startswith(f"{name}=") and word != "--no-eval":
            kept.append(word)
        skipped = not skipped and word == name
    return kept


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a report of somebody else's
        return []
