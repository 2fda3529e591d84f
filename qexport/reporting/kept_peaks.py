"""What `qexport doctor` measured of this machine, kept for the reports of exports.

Its file is named after the machine, the versions of all runtimes and the number of threads: whatever changes of those,
nothing that was measured before is found any more.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path

from qexport.backends.registry import reported_packages
from qexport.errors import InputError
from qexport.measurement.peaks import Peaks
from qexport.reporting.record_file import load_record, save_record
from qexport.system.cache import cache_folder
from qexport.system.capabilities import control_group_limits
from qexport.system.json_form import to_plain
from qexport.system.machine import cores, cpu_flags, environment
from qexport.version import __version__

SCHEMA = 1
REMEDY = "run qexport doctor again"


def keep_peaks(peaks: Peaks) -> Path | None:
    """Write what was measured, whole or not at all; return the file, None where no folder for it can be written."""
    path = _path(peaks.threads)
    if path is None:
        return None
    with suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_record(peaks, SCHEMA, path)
        return path
    return None


def kept_peaks(threads: int) -> Peaks | None:
    """What was measured of this machine with so many threads; None where nothing was, or it cannot be read."""
    path = _path(threads)
    if path is None:
        return None
    with suppress(OSError, InputError):
        found = load_record(Peaks, SCHEMA, path, "record of peaks", REMEDY)
        figures = [figure for each in found.runtimes for figure in each.peaks.values()]
        return found if all(0 < figure < math.inf for figure in figures) else None
    return None


def _path(threads: int) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    machine = to_plain(environment(reported_packages()))
    known = [__version__, machine, sorted(cpu_flags() or ()), cores(), control_group_limits()[0], threads]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return folder / "doctor" / f"{digest[:32]}.json"
