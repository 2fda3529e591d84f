"""Keep libraries from downloading, installing, reporting and chatting behind the user's back."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_ultralytics() -> None:
    """Set Ultralytics' switches for this process; call it before anything imports `ultralytics`.

    No automatic installs, no telemetry, no log lines. A download that the user asked for by a bare name goes
    through `qexport.data.resolve`, which is the only place that may use the network.
    """
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    logging.getLogger("ultralytics").setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """For the command line, before torch is imported: no warnings, no log lines below errors, one OpenMP thread.

    One OpenMP thread: with two, runs beside other busy processes were slow and erratic (ARCHITECTURE.md). Whole
    images are spread over threads instead. The library use of qexport leaves these switches alone, so that a
    program's own settings hold.
    """
    quiet_ultralytics()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.ERROR)
