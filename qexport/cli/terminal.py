"""The report as a table on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from qexport.lowering.cpu import ANY
from qexport.lowering.device_fit import DeviceFit
from qexport.reporting.honesty import caveats
from qexport.reporting.report import ArtifactReport, Report
from qexport.verification.output_fidelity import OutputFidelity
from qexport.verification.verify import Verification

NOTHING = "–"
UNBOUNDED = 1000
"""Columns that no table needs."""
MARK = "*"
"""Behind a figure that one of the warnings below the table concerns."""


def render(report: Report, saved: Path, console: Console) -> RenderableType:
    """Return the table, what it is of, and its warnings; intervals where the console has room for them."""
    table = _table(report, changes=any(_change(artifact) for artifact in report.artifacts))
    wide = console.options.update(max_width=UNBOUNDED)
    if Measurement.get(console, wide, table).maximum > console.width:
        table = _table(report, changes=False)
    return Group(table, *_notes(report, saved))


def _table(report: Report, changes: bool) -> Table:
    """The figures; with `changes` how far INT8 is from FP32, and how far that would move with other images."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, title=_title(report), title_justify="left")
    table.add_column("artifact", no_wrap=True)
    for heading in (
        "MB",
        *_metrics(report),
        *(["change\n95 %"] if changes else []),
        "reten-\ntion",
        "fide-\nlity",
        "ms\np50",
        "speed-\nup",
        "INT8\nMACs",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for artifact in report.artifacts:
        table.add_row(*_row(artifact, changes))
    for failure in report.failures:
        table.add_row(f"{failure.format} ✗", *[NOTHING] * (len(table.columns) - 1))
    return table


def _metrics(report: Report) -> list[str]:
    """Headings of the task's two figures, in two lines each."""
    names = (report.evaluation or {}).get("metrics") or ["mAP50-95", "mAP50"]
    return [name.removeprefix("mask ").removeprefix("pose ").replace("mAP", "mAP\n") for name in names]


def _title(report: Report) -> str:
    model, size = report.model, "×".join(map(str, report.model["imgsz"]))
    head = "outputs of unknown meaning" if model["head"] == "unknown" else f"{model['head']} head"
    parts = [f"{Path(model['path']).name}, {head}, {size}"]
    if report.calibration:
        parts.append(f"calibrated on {report.calibration['images']} images")
    if report.evaluation:
        parts.append(f"scored on {report.evaluation['images']}")
    return ", ".join(parts)


def _row(artifact: ArtifactReport, changes: bool) -> tuple[str, ...]:
    accuracy = artifact.accuracy or {}
    latency = artifact.latency_ms or {}
    of_accuracy, of_latency = (MARK if caveats(vars(artifact), kind) else "" for kind in ("accuracy", "latency"))
    return (
        f"{'engine' if artifact.engine else artifact.format} {artifact.precision}",
        f"{artifact.bytes / 1e6:.2f}",
        _figure(accuracy.get("map"), ".4f", of_accuracy),
        _figure(accuracy.get("map50"), ".4f"),
        *([_change(artifact) or NOTHING] if changes else []),
        _figure(accuracy.get("retention"), ".1%"),
        _figure(accuracy.get("fidelity"), ".3f"),
        _figure(latency.get("p50"), ".1f", of_latency),
        _figure(artifact.speedup, ".2f", "×"),
        _figure(artifact.int8_mac_coverage, ".1%"),
    )


def _change(artifact: ArtifactReport) -> str:
    """The first metric minus FP32's in points, and half the width of its 95 % interval: −0.5 ±0.9; "" for none."""
    accuracy = artifact.accuracy or {}
    bounds = accuracy.get("drop_interval")
    if bounds is None:
        return ""
    change = f"{-100 * accuracy['drop']:+.1f}".replace("-", "−")
    return f"{change} ±{50 * (bounds[1] - bounds[0]):.1f}"


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return NOTHING if value is None else f"{value:{form}}{unit}"


def _notes(report: Report, saved: Path) -> list[Text]:
    """Warnings, each once, and where the evidence is. What failed or is broken are error lines, which end the run."""
    warnings = dict.fromkeys((*report.warnings, *(w for a in report.artifacts for w in a.warnings)))
    lines = [Text(f"warning: {warning}", style="yellow") for warning in warnings]
    lines += [Text(_verified(artifact), style="green") for artifact in report.artifacts if artifact.verification]
    lines += [Text(line) for line in _planned(report)]
    lines += [Text(_likeness(artifact, each)) for artifact in report.artifacts for each in artifact.outputs]
    lines += [Text(_device(artifact.device)) for artifact in report.artifacts if artifact.device]
    rules = report.gate.rules if report.gate else ()
    lines += [Text(f"passed: {rule.rule}: {rule.text}", "green") for rule in rules if rule.passed]
    lines.append(Text(f"wrote {', '.join(Path(a.path).name for a in report.artifacts)} to {saved_in(report)}"))
    lines.append(Text(f"report: {saved}"))
    return lines


def saved_in(report: Report) -> Path:
    """The folder that the artifacts are in."""
    return Path(report.artifacts[0].path).parent


def _device(fit: DeviceFit) -> str:
    """What a device that is not here was checked for, and what it needs."""
    runs = f"has {fit.operators - sum(each.count for each in fit.lacking)} of"
    needs = "".join(f"; {what} {size / 1e6:.2f} MB" for what, size in fit.memory.items())
    files = "".join(f"; wrote {path.name}" for path in fit.files)
    return f"{fit.device}: {runs} {fit.operators} operators by its documentation{needs}{files}"


def _verified(artifact: ArtifactReport) -> str:
    checked = artifact.verification
    if checked is None:
        return ""
    return f"verified: {Path(artifact.path).name} holds {checked.tensors} tensors as planned, and {_shared(checked)}"


def _planned(report: Report) -> list[str]:
    """For which kind of CPU each file with a plan was planned."""
    here = report.environment.get("cpu_kind", "")
    kinds = {ANY: "any CPU", here: f"{here}, as this machine is"}
    lines = []
    for artifact in report.artifacts:
        cpu = (artifact.quantisation or {}).get("cpu")
        if cpu and not artifact.engine:
            kind = kinds.get(cpu, f"{cpu}, which this machine ({here or 'unknown'}) is not")
            lines.append(f"planned: {Path(artifact.path).name} for {kind}")
    return lines


def _likeness(artifact: ArtifactReport, output: OutputFidelity) -> str:
    """One output beside the FP32 file's."""
    figures = (
        ("SQNR", _figure(output.sqnr_db, ".1f", " dB")),
        ("cosine", _figure(output.cosine, ".4f")),
        ("columns", _figure(output.columns, ".4f")),
    )
    listed = ", ".join(f"{name} {figure}" for name, figure in figures)
    return f"{Path(artifact.path).name} {output.name} against FP32 on {output.images} images: {listed}"


def _shared(checked: Verification) -> str:
    if checked.cosine is not None:
        return f"its outputs on {checked.images} images are {checked.cosine:.4f} like the simulated program's (cosine)"
    if checked.agreement is None:
        return f"finds nothing on {checked.images} images, like the simulated program"
    return f"{checked.agreement:.0%} of what it finds on {checked.images} images is the simulated program's"


def print_report(report: Report, saved: Path, console: Console) -> None:
    """Show the report."""
    console.print(render(report, saved, console))
