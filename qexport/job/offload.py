"""What of a run is worth a second process: known before anything heavy is imported, so that both import at once."""

from __future__ import annotations

from qexport.backends.registry import find_info
from qexport.job.export_job import ExportJob
from qexport.system.machine import cores


def offloaded_formats(job: ExportJob) -> tuple[str, ...]:
    """Formats of a job that a worker would write, or write the FP32 file of, while this process does the rest."""
    if not job.calibrates or cores() < 2:
        return ()
    offloadable = [name for name in job.format if find_info(name).offloadable]
    return tuple(
        name for name in offloadable[:1] if len(job.format) > 1 or job.needs_float_counterpart(find_info(name).timed)
    )
