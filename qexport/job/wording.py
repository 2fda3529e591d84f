"""A job in words: what it is going to do, and a line to type in place of one that lacks something."""

from __future__ import annotations

import shlex
from pathlib import Path

from qexport.backends.registry import display_name
from qexport.job.export_job import ExportJob
from qexport.reporting.names import precision_name
from qexport.vocabulary import listed

SAMPLES = {"-seg": "coco8-seg.yaml", "-pose": "coco8-pose.yaml", "-obb": "dota8.yaml", "": "coco8.yaml"}
"""End of a model's name → the smallest data set of its task that Ultralytics knows by name."""


def announced(job: ExportJob) -> str:
    """What a run is going to do: of which model, to which formats and precision, by which data, into which folder."""
    formats = listed([display_name(name) for name in job.format])
    parts = [f"{formats} in {precision_name(job.precision)}", *_ranges(job), _scored(job)]
    return f"{Path(job.model).name} to {'; '.join(parts)}; files go to {job.folder}"


def _ranges(job: ExportJob) -> list[str]:
    """What integers have their scales from."""
    given = {"candidate": job.candidate, "plan": job.plan, "calibration": job.calibration}
    if not job.calibrates:
        return []
    obeyed = next((f"by the {name} {path}" for name, path in given.items() if path), "")
    return [obeyed or f"calibrated on {job.data}"] if obeyed or job.data else []


def _scored(job: ExportJob) -> str:
    if job.evaluates:
        return f"scored on {job.eval_data or job.data}"
    return "not scored (--no-eval)" if job.no_eval else "not scored: there is no --data"


def example(job: ExportJob) -> str:
    """The same export with a data set."""
    words = ["qexport", job.model]
    if job.target:
        words += ["--target", job.target]
    elif job.format != ("tflite",):
        words += ["--format", ",".join(job.format)]
    short = next((name for name, precision in job.short_forms.items() if precision == job.precision), "")
    if not job.target:
        words += [f"--{short}"] if short else ["--precision", job.precision]
    return shlex.join([*words, "--data", _sample(Path(job.model))])


def _sample(model: Path) -> str:
    """A data set that suits a model which Ultralytics knows by name."""
    known = model.stem.startswith(("yolo", "rtdetr")) and not model.stem.endswith("-cls")
    return next(data for end, data in SAMPLES.items() if model.stem.endswith(end)) if known else "DATA.yaml"
