"""The calibration table: statistics of every value, bound by fingerprints to the model and the images they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from qexport.calibration.statistics import Statistics
from qexport.errors import InputError
from qexport.system.files import write_whole

SCHEMA = 1
SCALARS = ("minimum", "maximum", "limit")


@dataclass(frozen=True)
class CalibrationTable:
    """What one calibration pass has seen.

    Attributes:
        program: fingerprint of the float program.
        preprocess: how images became inputs, such as "letterbox 640x640".
        images: fingerprint of the images that were asked for, unusable ones included: names and bytes.
        image_names: file names in the order in which they passed.
        skipped: file name and reason for each image that could not be used.
        statistics: by value name.
    """

    program: str
    preprocess: str
    images: str
    image_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    statistics: Mapping[str, Statistics]


def save_table(table: CalibrationTable, path: str | Path) -> None:
    """Write the table as a compressed `.npz`; the file appears whole or not at all."""
    names = list(table.statistics)
    head = {
        "schema": SCHEMA,
        "program": table.program,
        "preprocess": table.preprocess,
        "images": table.images,
        "image_names": table.image_names,
        "skipped": table.skipped,
        "values": names,
    }
    scalars = [[getattr(table.statistics[name], field) for field in SCALARS] for name in names]
    counts = np.stack([table.statistics[name].counts for name in names])
    with write_whole(Path(path)) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, head=np.array(json.dumps(head)), scalars=np.array(scalars), counts=counts)


def load_table(path: str | Path) -> CalibrationTable:
    """Read a saved table.

    Raises:
        InputError: missing, unreadable, or of another schema.
    """
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return _table(json.loads(str(content["head"])), content["scalars"], content["counts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is not a calibration table ({error})", "give a calibration.npz of qexport") from error


def _table(head: dict[str, Any], scalars: NDArray[np.float64], counts: NDArray[np.int64]) -> CalibrationTable:
    if head["schema"] != SCHEMA:
        raise ValueError(f"schema {head['schema']}, this version reads {SCHEMA}")
    statistics = {name: _statistics(*pair) for name, *pair in zip(head["values"], scalars, counts, strict=True)}
    return CalibrationTable(
        program=head["program"],
        preprocess=head["preprocess"],
        images=head["images"],
        image_names=tuple(head["image_names"]),
        skipped=tuple((name, reason) for name, reason in head["skipped"]),
        statistics=statistics,
    )


def _statistics(scalars: NDArray[np.float64], counts: NDArray[np.int64]) -> Statistics:
    minimum, maximum, limit = (float(value) for value in scalars)
    return Statistics(minimum=minimum, maximum=maximum, limit=limit, counts=counts)


def check_table(table: CalibrationTable, program: str, preprocess: str, path: Path) -> None:
    """Refuse a table of another model or preprocessing.

    Raises:
        InputError: with what differs.
    """
    if table.program != program:
        raise InputError(f"{path} was calibrated for another model, head or image size", "calibrate without it")
    if table.preprocess != preprocess:
        raise InputError(
            f"{path} was calibrated with {table.preprocess}, this run uses {preprocess}", "run without --calibration"
        )
