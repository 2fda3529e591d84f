"""Which images a job uses, known before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from qexport.checkpoints.identify import holds_learned
from qexport.data.selection import ImageChoice
from qexport.job.export_job import ExportJob


def image_choice(job: ExportJob) -> ImageChoice:
    """Which images a job calibrates with and evaluates on."""
    return ImageChoice(
        data=job.data,
        eval_data=job.eval_data,
        calibrates=job.calibrates,
        evaluates=job.evaluates,
        fraction=job.fraction,
        count=job.calib_images,
        calibrated=bool(job.calibration or job.plan or job.candidate) or holds_learned(Path(job.model)),
        compares=job.precision != "fp32",
    )


def has_task_metadata(job: ExportJob) -> bool:
    """Whether the model says what its outputs mean, so that labels can be compared with them.

    Raises:
        InputError: it is a file that cannot be quantised, whatever the data are.
    """
    if not job.from_onnx or not Path(job.model).is_file():
        return True
    from qexport.programs.onnx import file

    return file.described(file.read_file(Path(job.model)).metadata) is not None
