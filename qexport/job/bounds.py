"""The gate's bounds of a job, and whether what they are about is measured."""

from __future__ import annotations

from qexport.errors import UsageError
from qexport.job.export_job import ExportJob
from qexport.reporting.gate import RULES, rules_for
from qexport.reporting.report import ACCURACY, LATENCY
from qexport.reporting.rule import find_rule


def bounds_of(job: ExportJob) -> dict[str, float]:
    """Rule name → bound, of the rules that the job sets.

    Raises:
        UsageError, PluginError: a rule of another package is none, or has another bound: see `find_rule`.
    """
    bounds = {rule.name: getattr(job, rule.name.replace("-", "_")) for rule in RULES}
    return {name: bound for name, bound in bounds.items() if bound is not None} | dict(map(_bound, job.rule))


def _bound(text: str) -> tuple[str, float]:
    """Name and bound of another package's rule, given as NAME=BOUND."""
    name, _, bound = text.partition("=")
    if any(name == rule.name for rule in RULES):
        raise UsageError(f"--rule {text} has an option of its own", f"give --{name} {bound or 'BOUND'}")
    shown = find_rule(name).shown
    try:
        return name, shown.parsed(bound)
    except ValueError as error:
        unit = f", or one with {shown.unit.strip()} behind it" if shown.unit else ""
        raise UsageError(f"--rule {text} has no bound", f"give {name}=NUMBER{unit}") from error


def check_measured(job: ExportJob) -> None:
    """Refuse rules about figures that the job does not measure, and `--tune` where nothing is timed.

    Raises:
        UsageError: naming the rule.
    """
    own = {rule.name for rule in RULES}
    for rule in rules_for(bounds_of(job)):
        option = f"--{rule.name}" if rule.name in own else f"--rule {rule.name}"
        if rule.compares and job.precision == "fp32":
            raise UsageError(f"{option} compares with FP32, and that is what is asked for", "for example, add --int8")
        if rule.of == ACCURACY and job.no_eval:
            raise UsageError(f"{option} and --no-eval exclude each other", "leave out one of them")
        if rule.of == ACCURACY and not job.evaluates:
            raise UsageError(f"{option} needs images to measure accuracy on", "add --data DATA.yaml")
        if rule.of == LATENCY:
            _check_timed(option, job)
    if job.tune:
        _check_tuned(job)


def _check_tuned(job: ExportJob) -> None:
    from qexport.backends.registry import find_info

    untimed = [name for name in job.format if not find_info(name).timed]
    if not job.measures_latency:
        _check_timed("--tune", job)
    if untimed:
        raise UsageError(
            f"--tune times files as they are written, which this machine cannot for {untimed[0]}", "leave it out"
        )


def _check_timed(asked: str, job: ExportJob) -> None:
    from qexport.backends.registry import find_info

    if not job.measures_latency:
        option = "--no-latency" if job.no_latency else f"--target {job.target}"
        raise UsageError(f"{asked} and {option} exclude each other", "leave out one of them")
    for name in job.format:
        info = find_info(name)
        engine = info.engine is not None and info.engine.runtime is not None and not job.no_build
        if not info.timed and not engine:
            raise UsageError(f"{asked} needs latency, which this run does not measure for {name}", "leave it out")
