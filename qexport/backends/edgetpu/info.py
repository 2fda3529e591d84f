"""The format of the Coral Edge TPU: an integer-only TFLite file, and what its compiler makes of it."""

from __future__ import annotations

from dataclasses import replace

from qexport.backends.info import Engine
from qexport.backends.tflite.info import INFO as TFLITE
from qexport.backends.tflite.info import IO, LAYOUT

COMPILER = "edgetpu_compiler"

INFO = replace(
    TFLITE,
    name="edgetpu",
    title="Edge TPU",
    runtime="LiteRT interpreter on the CPU, in place of the Edge TPU",
    precisions=frozenset({"int8-full"}),
    profiles={"int8-full": TFLITE.profiles["int8-full"]},
    options=(IO, LAYOUT),
    engine=Engine("_edgetpu.tflite", None, COMPILER, "https://coral.ai/docs/edgetpu/compiler (Linux on x86 only)"),
    offloadable=False,
    timed=False,
)
