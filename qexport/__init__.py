"""qexport: INT8 and FP16 edge artifacts from YOLO checkpoints, with the evidence that they still work."""

from qexport.compat.telemetry import without_telemetry

__version__ = "0.1.0"

without_telemetry()
