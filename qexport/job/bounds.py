"""The gate's bounds of a job, and whether what they are about is measured."""

from __future__ import annotations

from qexport.errors import UsageError
from qexport.job.export_job import ExportJob
from qexport.reporting.gate import RULES
from qexport.reporting.report import ACCURACY, LATENCY


def bounds_of(job: ExportJob) -> dict[str, float]:
    """Rule name → bound, of the rules that the job sets."""
    bounds = {rule.name: getattr(job, rule.name.replace("-", "_")) for rule in RULES}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def check_measured(job: ExportJob) -> None:
    """Refuse rules about figures that the job does not measure.

    Raises:
        UsageError: naming the rule.
    """
    bounds = bounds_of(job)
    for rule in (rule for rule in RULES if rule.name in bounds):
        if rule.compares and job.precision == "fp32":
            raise UsageError(
                f"--{rule.name} compares with FP32, and that is what is asked for", "for example, add --int8"
            )
        if rule.of == ACCURACY and job.no_eval:
            raise UsageError(f"--{rule.name} and --no-eval exclude each other", "leave out one of them")
        if rule.of == ACCURACY and not job.evaluates:
            raise UsageError(f"--{rule.name} needs images to measure accuracy on", "add --data DATA.yaml")
        if rule.of == LATENCY:
            _check_timed(rule.name, job)


def _check_timed(rule: str, job: ExportJob) -> None:
    from qexport.backends.registry import find_info

    if not job.measures_latency:
        option = "--no-latency" if job.no_latency else f"--target {job.target}"
        raise UsageError(f"--{rule} and {option} exclude each other", "leave out one of them")
    for name in job.format:
        info = find_info(name)
        engine = info.engine is not None and info.engine.runtime is not None and not job.no_build
        if not info.timed and not engine:
            raise UsageError(f"--{rule} needs latency, which this run does not measure for {name}", "leave it out")
