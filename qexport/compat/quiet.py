"""Keep libraries from downloading, installing and chatting behind the user's back."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from pathlib import Path

from qexport.compat.patches import LITERT_PROGRESS, OFFLINE, ONE_THREAD, TENSORFLOW_LOG, set_variables
from qexport.errors import InputError
from qexport.system.scratch import folder_until_exit

FOLDERS = {
    "MPLCONFIGDIR": (".cache/matplotlib", ".config/matplotlib", ".matplotlib"),
    "KERAS_HOME": (".keras",),
    "TORCHINDUCTOR_CACHE_DIR": (),
}
"""Variable → where matplotlib and Keras keep what they write on import, below the home folder. torch's is for compiled
code, in /tmp by a name that anybody can take first: nothing here compiles with it, and it is given another."""

SELDOM = (100_000, 20, 20)
"""Thresholds of Python's garbage collector. Tracing and conversion make objects by the million that stay: with its own
thresholds it goes through all of them again and again, which is a tenth of the CPU time of an export."""


def quiet_ultralytics() -> None:
    """Set Ultralytics' switches for this process; call it before anything imports `ultralytics`.

    A download that the user asked for by a bare name goes through `qexport.data.resolve`, which is the only place
    that may use the network. Settings that the user has are read; where there are none, none are left behind.
    """
    set_variables(*OFFLINE)
    _have_home()
    if "ultralytics" not in sys.modules and not _ultralytics_settings().is_file():
        _scratch("YOLO_CONFIG_DIR")
    logging.getLogger("ultralytics").setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """For the command line, before torch is imported: no warnings, no log lines below errors, one OpenMP thread, and
    garbage that is collected seldom.

    One OpenMP thread: with two, runs beside other busy processes were slow and erratic (docs/decisions/007). Whole
    images are spread over threads instead. The library use of qexport leaves these switches alone, so that a
    program's own settings hold.
    """
    quiet_ultralytics()
    _scratch(*(name for name, own in FOLDERS.items() if not any((Path.home() / each).exists() for each in own)))
    set_variables(ONE_THREAD, TENSORFLOW_LOG, LITERT_PROGRESS)
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    gc.set_threshold(*SELDOM)


def _have_home() -> None:
    """Libraries look for a home folder when they are imported; a user without one, as in containers, has another.

    Raises:
        InputError: there is no folder for temporary files either.
    """
    try:
        Path.home()
    except RuntimeError as error:
        _scratch("HOME")
        if "HOME" not in os.environ:
            raise InputError("there is neither a home folder nor one for temporary files", "set HOME") from error


def _ultralytics_settings() -> Path:
    """Where Ultralytics looks for settings when no variable says so."""
    if sys.platform == "darwin":
        place = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        place = Path.home() / "AppData" / "Roaming"
    else:
        place = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return place / "Ultralytics" / "settings.json"


def _scratch(*variables: str) -> None:
    """Point variables that nobody has set to folders that go with this process; those it starts use them, too."""
    missing = [name for name in variables if name not in os.environ]
    if not missing:
        return
    try:
        place = folder_until_exit()
    except OSError:  # no temporary folder: libraries do as they always do
        return
    for name in missing:
        os.environ[name] = str(place / name)
        Path(os.environ[name]).mkdir()
