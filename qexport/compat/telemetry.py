"""What the runtimes report to their makers is off in every process of ours."""

import os
import sys
from typing import Any

SWITCHES = {"ORT_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
"""ONNX Runtime's switch, whose library reports from compiled code once it is imported, and the one that many heed."""


def without_telemetry() -> None:
    """Switch it off; `import qexport` does it, before any runtime is imported, and costs nothing.

    OpenVINO has no switch, but a stub of its own where its telemetry package is missing.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    modules: dict[str, Any] = sys.modules  # None there makes an import fail
    modules.setdefault("openvino_telemetry", None)
