"""qexport: INT8 and FP16 edge artifacts from YOLO checkpoints, with the evidence that they still work.

The names below are its face for Python: verbs on nouns, silent, and imported where they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qexport.compat.telemetry import without_telemetry
from qexport.version import __version__

if TYPE_CHECKING:
    from qexport.calibration.calibration_table import CalibrationTable, load_table, save_table
    from qexport.detections.layout import HeadLayout
    from qexport.errors import QexportError
    from qexport.execution.executor import Executor, Inline, Task
    from qexport.execution.worker_process import worker_process
    from qexport.job.options import ExportJob, make_job
    from qexport.lowering.request import Target
    from qexport.measurement.measure import measure
    from qexport.pipeline import export
    from qexport.planning.plan import QuantPlan, TensorQuant, check_plan, load_plan, save_plan
    from qexport.programs.build import Source
    from qexport.programs.options import CaptureOptions
    from qexport.programs.program import Program
    from qexport.reporting.load import load_report
    from qexport.steps.lower import lower
    from qexport.steps.model import calibrate, read_model
    from qexport.steps.plan import make_target, plan
    from qexport.steps.verify import Verified, verify

__all__ = [
    "CalibrationTable",
    "CaptureOptions",
    "Executor",
    "ExportJob",
    "HeadLayout",
    "Inline",
    "Program",
    "QexportError",
    "QuantPlan",
    "Source",
    "Target",
    "Task",
    "TensorQuant",
    "Verified",
    "__version__",
    "calibrate",
    "check_plan",
    "export",
    "load_plan",
    "load_report",
    "load_table",
    "lower",
    "make_job",
    "make_target",
    "measure",
    "plan",
    "read_model",
    "save_plan",
    "save_table",
    "verify",
    "worker_process",
]

_MODULES = {
    "calibration.calibration_table": ("CalibrationTable", "load_table", "save_table"),
    "detections.layout": ("HeadLayout",),
    "errors": ("QexportError",),
    "execution.executor": ("Executor", "Inline", "Task"),
    "execution.worker_process": ("worker_process",),
    "job.options": ("ExportJob", "make_job"),
    "lowering.request": ("Target",),
    "measurement.measure": ("measure",),
    "pipeline": ("export",),
    "planning.plan": ("QuantPlan", "TensorQuant", "check_plan", "load_plan", "save_plan"),
    "programs.build": ("Source",),
    "programs.options": ("CaptureOptions",),
    "programs.program": ("Program",),
    "reporting.load": ("load_report",),
    "steps.lower": ("lower",),
    "steps.model": ("calibrate", "read_model"),
    "steps.plan": ("make_target", "plan"),
    "steps.verify": ("Verified", "verify"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

without_telemetry()


def __getattr__(name: str) -> Any:
    """Import a public name where it is first asked for: torch takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
