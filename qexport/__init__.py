"""qexport: INT8 and FP16 edge artifacts from YOLO checkpoints, with the evidence that they still work.

The names below are its face for Python: verbs on nouns, silent, and imported where they are first used. Those of a
package that adds a format, a range estimator, a pass or a rule are among them, and `qexport.testing` for its tests.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qexport.compat.telemetry import without_telemetry
from qexport.version import __version__

if TYPE_CHECKING:
    from qexport.backends.info import BackendInfo, Option, check_precision
    from qexport.backends.protocol import Backend, Runner
    from qexport.calibration.calibration_table import CalibrationTable, load_table, save_table
    from qexport.calibration.statistics import Statistics
    from qexport.detections.layout import HeadLayout
    from qexport.errors import QexportError
    from qexport.execution.executor import Executor, Inline, Task
    from qexport.execution.worker_process import worker_process
    from qexport.job.options import ExportJob, make_job
    from qexport.lowering.request import Lowering, Target
    from qexport.lowering.stored import StoredGraph, StoredTensor
    from qexport.measurement.measure import measure
    from qexport.optimisation.candidate import Candidate
    from qexport.optimisation.candidate_file import load_candidate, save_candidate
    from qexport.optimisation.distance import Distance
    from qexport.optimisation.pass_record import PassRecord
    from qexport.optimisation.passes import WeightPass
    from qexport.optimisation.sensitivity_record import Sensitivity
    from qexport.pipeline import export
    from qexport.planning.arithmetic import Quantiser
    from qexport.planning.plan import QuantPlan, TensorQuant, check_plan, load_plan, save_plan
    from qexport.planning.runtime_profiles import FixedScale, OwnScale, RuntimeProfile, SharedScale
    from qexport.programs.build import Source
    from qexport.programs.options import CaptureOptions
    from qexport.programs.program import Program
    from qexport.progress import Progress
    from qexport.reporting.load import load_report
    from qexport.reporting.report import ArtifactReport, Report
    from qexport.reporting.rule import NumberFormat, Rule
    from qexport.reporting.sensitivity_file import load_sensitivity
    from qexport.reporting.sweep_report import SweepReport, load_sweep
    from qexport.reporting.training_report import TrainingReport, load_training
    from qexport.steps.lower import lower
    from qexport.steps.model import calibrate, read_model
    from qexport.steps.optimise import optimise
    from qexport.steps.plan import make_target, plan
    from qexport.steps.sensitivity import distance, sensitivity
    from qexport.steps.train import train
    from qexport.steps.verify import Verified, verify
    from qexport.training.loop import Trained
    from qexport.training.recipe import Recipe
    from qexport.training.record import TrainingRecord

__all__ = [
    "ArtifactReport",
    "Backend",
    "BackendInfo",
    "CalibrationTable",
    "Candidate",
    "CaptureOptions",
    "Distance",
    "Executor",
    "ExportJob",
    "FixedScale",
    "HeadLayout",
    "Inline",
    "Lowering",
    "NumberFormat",
    "Option",
    "OwnScale",
    "PassRecord",
    "Program",
    "Progress",
    "QexportError",
    "QuantPlan",
    "Quantiser",
    "Recipe",
    "Report",
    "Rule",
    "Runner",
    "RuntimeProfile",
    "Sensitivity",
    "SharedScale",
    "Source",
    "Statistics",
    "StoredGraph",
    "StoredTensor",
    "SweepReport",
    "Target",
    "Task",
    "TensorQuant",
    "Trained",
    "TrainingRecord",
    "TrainingReport",
    "Verified",
    "WeightPass",
    "__version__",
    "calibrate",
    "check_plan",
    "check_precision",
    "distance",
    "export",
    "load_candidate",
    "load_plan",
    "load_report",
    "load_sensitivity",
    "load_sweep",
    "load_table",
    "load_training",
    "lower",
    "make_job",
    "make_target",
    "measure",
    "optimise",
    "plan",
    "read_model",
    "save_candidate",
    "save_plan",
    "save_table",
    "sensitivity",
    "train",
    "verify",
    "worker_process",
]

_MODULES = {
    "backends.info": ("BackendInfo", "Option", "check_precision"),
    "backends.protocol": ("Backend", "Runner"),
    "calibration.calibration_table": ("CalibrationTable", "load_table", "save_table"),
    "calibration.statistics": ("Statistics",),
    "detections.layout": ("HeadLayout",),
    "errors": ("QexportError",),
    "execution.executor": ("Executor", "Inline", "Task"),
    "execution.worker_process": ("worker_process",),
    "job.options": ("ExportJob", "make_job"),
    "lowering.request": ("Lowering", "Target"),
    "lowering.stored": ("StoredGraph", "StoredTensor"),
    "measurement.measure": ("measure",),
    "optimisation.candidate": ("Candidate",),
    "optimisation.candidate_file": ("load_candidate", "save_candidate"),
    "optimisation.distance": ("Distance",),
    "optimisation.pass_record": ("PassRecord",),
    "optimisation.passes": ("WeightPass",),
    "optimisation.sensitivity_record": ("Sensitivity",),
    "pipeline": ("export",),
    "planning.arithmetic": ("Quantiser",),
    "planning.plan": ("QuantPlan", "TensorQuant", "check_plan", "load_plan", "save_plan"),
    "planning.runtime_profiles": ("FixedScale", "OwnScale", "RuntimeProfile", "SharedScale"),
    "programs.build": ("Source",),
    "programs.options": ("CaptureOptions",),
    "programs.program": ("Program",),
    "progress": ("Progress",),
    "reporting.load": ("load_report",),
    "reporting.report": ("ArtifactReport", "Report"),
    "reporting.rule": ("NumberFormat", "Rule"),
    "reporting.sensitivity_file": ("load_sensitivity",),
    "reporting.sweep_report": ("SweepReport", "load_sweep"),
    "reporting.training_report": ("TrainingReport", "load_training"),
    "steps.lower": ("lower",),
    "steps.model": ("calibrate", "read_model"),
    "steps.optimise": ("optimise",),
    "steps.plan": ("make_target", "plan"),
    "steps.sensitivity": ("distance", "sensitivity"),
    "steps.train": ("train",),
    "steps.verify": ("Verified", "verify"),
    "training.loop": ("Trained",),
    "training.recipe": ("Recipe",),
    "training.record": ("TrainingRecord",),
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
