"""Where a training of Ultralytics ends: export the best weights, score them, and hold them to bounds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.errors import GateError, QexportError
from qexport.job.options import make_job

if TYPE_CHECKING:
    from qexport.reporting.report import Report

FOLDER = "qexport"
"""Below the folder of the training."""
LOGGER = "ultralytics"
"""Where Ultralytics logs, and shows what is logged."""
BY_TRAINING = ("model", "device")
"""Options that the training says: its best weights; and they are exported on the CPU wherever they were trained."""


def quantise_after_training(**options: Any) -> Callable[[Any], None]:
    """Make a callback that exports and scores a training's best weights once they are there.

        model.add_callback("on_train_end", quantise_after_training(format="tflite", max_drop=2))

    Without further options it is INT8 TFLite, calibrated and scored on the data and at the image size of the training,
    and all files go to `qexport/` in the training's folder, with `report.json` for `qexport.load_report`. What came of
    each file is logged in one line by Ultralytics' logger. Weights are on the disk before, whatever is raised.

    Args:
        options: of an export, by the names of `qexport.ExportJob`; they are checked at once, before hours of training.

    Returns:
        What takes the trainer; it can be pickled. It raises `GateError` where a figure breaks a bound, and another
        `QexportError` where a file could not be written or a figure not be had.

    Raises:
        UsageError, MissingExtraError: the options cannot be exported with.
    """
    for name in BY_TRAINING:
        if name in options:
            raise TypeError(f"quantise_after_training() has no option {name!r}: the training says it")
    make_job({"model": "best.pt", "data": "data.yaml", **_precision(options), **options})
    return partial(_quantise, dict(options))


def _precision(options: Mapping[str, Any]) -> dict[str, bool]:
    """INT8 where nothing else is asked for."""
    return {} if any(options.get(name) for name in ("precision", "half", "target")) else {"int8": True}


def _quantise(options: Mapping[str, Any], trainer: Any) -> None:
    """Export what a trainer has trained, log what came of it, and raise where it is not as it must be."""
    said = {
        "model": str(trainer.best if trainer.best.exists() else trainer.last),
        "data": str(trainer.args.data),
        "imgsz": trainer.args.imgsz,
        "out": Path(trainer.save_dir) / FOLDER,
    }
    job = make_job({**said, **_precision(options), **options})
    from qexport.pipeline import export

    with _nondeterministic():
        report = export(job)
    _log(report)
    check_report(report)


@contextmanager
def _nondeterministic() -> Iterator[None]:
    """Torch as it is without a training, which asks for deterministic kernels until it has ended."""
    import torch

    on, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=warn)


def _log(report: Report) -> None:
    from qexport.reporting.verdict import verdicts

    for verdict in verdicts(report, lambda artifact: artifact.file_name):
        logging.getLogger(LOGGER).info("qexport: %s", verdict.text)
    logging.getLogger(LOGGER).info("qexport: the report is %s", report.saved)


def check_report(report: Report) -> None:
    """Raise what a run of the command line would have ended with an exit code for.

    Raises:
        GateError: a figure breaks a bound.
        QexportError: a file could not be written, or a figure not be had.
    """
    lost = [f"{each.format}: {each.reason}" for each in report.failures]
    lost += [f"{each.artifact or 'run'}: {each.text}" for each in report.unmeasured]
    if lost:
        raise QexportError("; ".join(lost), f"the report is {report.saved}")
    broken = [f"{each.rule}: {each.text}" for each in (report.gate.rules if report.gate else ()) if not each.passed]
    if broken:
        raise GateError("; ".join(broken), f"the report is {report.saved}")
