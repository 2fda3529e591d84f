"""The calibration table: statistics of every value, bound by fingerprints to the model and the images they are of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.calibration.statistics import BINS, MIN_LIMIT, Statistics
from qexport.errors import InputError
from qexport.system.files import write_whole
from qexport.system.given_files import open_arrays
from qexport.system.json_form import parse_json

SCHEMA = 2
SCALARS = ("minimum", "maximum", "limit", "lowest", "highest", "images")
READABLE = {1: SCALARS[:3], 2: SCALARS}
"""Schema → what it has of every value besides its histogram; the first knew neither mean extremes nor importance."""


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
        made_by: packages that it depends on, with their versions; "" of a table that does not say so.
        views: other pictures of the same images that the statistics are of besides.
    """

    program: str
    preprocess: str
    images: str
    image_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    statistics: Mapping[str, Statistics]
    views: int = 0
    made_by: str = ""

    @property
    def weighted(self) -> bool:
        """Whether importance was measured."""
        return any(each.importance is not None for each in self.statistics.values())


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
        "made_by": table.made_by,
        "views": table.views,
        "values": names,
        "important": [name for name in names if table.statistics[name].importance is not None],
    }
    scalars = [[getattr(table.statistics[name], field) for field in SCALARS] for name in names]
    arrays: dict[str, Any] = {
        "scalars": np.array(scalars, dtype=np.float64),
        "counts": np.stack([table.statistics[name].counts for name in names]),
        "importance": _importance(table.statistics),
    }
    with write_whole(Path(path)) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, head=np.array(json.dumps(head)), **arrays)


def _importance(statistics: Mapping[str, Statistics]) -> NDArray[np.float32]:
    """That of the values that have one; half the bytes, and nothing is lost: see `qexport.calibration.importance`."""
    measured = [each.importance for each in statistics.values() if each.importance is not None]
    return np.array(measured, dtype=np.float32).reshape(-1, BINS)


def load_table(path: str | Path) -> CalibrationTable:
    """Read a saved table.

    Raises:
        InputError: missing, unreadable, or of another schema.
    """
    try:
        with open_arrays(path) as content:
            return _table(parse_json(str(content["head"])), content)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a calibration table ({error})", "give a calibration.npz of qexport") from error


def _table(head: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> CalibrationTable:
    if head["schema"] not in READABLE:
        raise ValueError(f"schema {head['schema']}, this version reads {', '.join(map(str, READABLE))}")
    fields, importance = READABLE[head["schema"]], dict[str, NDArray[np.float64]]()
    if head["schema"] > 1:
        importance = dict(zip(head["important"], arrays["importance"].astype(np.float64), strict=True))
    rows = zip(head["values"], arrays["scalars"], arrays["counts"], strict=True)
    statistics = {name: _statistics(fields, row, counts, importance.get(name)) for name, row, counts in rows}
    table = CalibrationTable(
        program=head["program"],
        preprocess=head["preprocess"],
        images=head["images"],
        image_names=tuple(head["image_names"]),
        skipped=tuple((name, reason) for name, reason in head["skipped"]),
        statistics=statistics,
        made_by=str(head.get("made_by", "")),
        views=int(head.get("views", 0)),
    )
    texts = (
        table.program,
        table.preprocess,
        table.images,
        *table.image_names,
        *(word for pair in table.skipped for word in pair),
    )
    if not all(isinstance(each, str) for each in texts):
        raise ValueError("names that are no texts")
    return table


def _statistics(
    fields: tuple[str, ...],
    scalars: NDArray[np.float64],
    counts: NDArray[np.int64],
    importance: NDArray[np.float64] | None,
) -> Statistics:
    numbers: dict[str, Any] = dict(zip(fields, map(float, scalars), strict=True))
    numbers["images"] = int(numbers.get("images", 0))
    found = Statistics(counts=counts, importance=importance, **numbers)
    _check(found)
    return found


def _check(found: Statistics) -> None:
    """Refuse numbers that no observer leaves: estimators divide by them, and widen histograms until they fit."""
    numbers = (found.minimum, found.maximum, found.limit, found.lowest, found.highest)
    rows = (found.counts, *([] if found.importance is None else [found.importance]))
    if not all(map(math.isfinite, numbers)) or found.minimum > found.maximum or found.images < 0:
        raise ValueError("extremes that no value has")
    if math.frexp(found.limit)[0] != 0.5 or found.limit < MIN_LIMIT:
        raise ValueError(f"a histogram up to {found.limit}, which is no power of two")
    if found.counts.dtype != np.int64 or any(row.shape != (BINS,) for row in rows):
        raise ValueError(f"a histogram of the shape {found.counts.shape}")
    if not all(np.isfinite(row).all() and row.min() >= 0 for row in rows):
        raise ValueError("a histogram with numbers below 0")


def check_table(table: CalibrationTable, program: str, preprocess: str, values: Iterable[str], path: Path) -> None:
    """Refuse a table of another model or preprocessing.

    Args:
        program: fingerprint of the float program.
        values: names of those that have to be in it.

    Raises:
        InputError: with what differs.
    """
    if table.program != program:
        raise InputError(f"{path} was calibrated for another model, head or image size", "calibrate without it")
    if table.preprocess != preprocess:
        raise InputError(
            f"{path} was calibrated with {table.preprocess}, this run uses {preprocess}", "run without --calibration"
        )
    missing = next((name for name in values if name not in table.statistics), "")
    if missing:
        raise InputError(f"{path} says nothing of {missing}", "calibrate without it")
