"""Microcontrollers: does TensorFlow Lite Micro (TFLM) run a file, how much memory does it need, the file as a C array.

Where the package `tflite_micro` is installed, TFLM itself allocates the file's memory and tells what it needs.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qexport.backends.device_fit import DeviceFit, Lacking
from qexport.backends.tflite.file import flatbuffer_of
from qexport.backends.tflite.operators import read_graph
from qexport.backends.tflite_micro.arena import arena_bytes
from qexport.backends.tflite_micro.c_array import write_array
from qexport.errors import VerificationError

SOURCE = "tflite-micro, micro_mutable_op_resolver.h of 2026-08-20"
SPARE = 64 << 20
"""Bytes that TFLM gets on this machine beyond the activations, to find out how many of them it needs."""
_TOTAL = re.compile(rb"Arena allocation total (\d+) bytes")
_HEAD = re.compile(rb"Arena allocation head (\d+) bytes")

_NAMES = (
    "ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS "
    "BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE "
    "DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD "
    "FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS "
    "LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM "
    "MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX REDUCE_MIN RELU "
    "RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX "
    "SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF "
    "TANH TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE"
)
OPERATORS = frozenset(_NAMES.split())
"""Built-in operators that TFLM has a kernel for."""


def fit_microcontroller(file: Path, path: Path) -> DeviceFit:
    """Check a file's operators, plan its arena, and write it as a C++ array beside `path`, where it is going to be.

    Raises:
        VerificationError: TFLM is here, and does not take the file.
    """
    graph = read_graph(file)
    counts = Counter(operator.kind for operator in graph.operators)
    lacking = tuple(Lacking(kind, n, "no kernel") for kind, n in sorted(counts.items()) if kind not in OPERATORS)
    memory = {"model in flash": len(flatbuffer_of(file)), "arena for activations": arena_bytes(graph)}
    measured = allocated(file) if find_spec("tflite_micro") is not None and not lacking else None
    if measured:
        memory["arena as TFLM allocates it on a 64-bit machine"] = measured[1]
    files = write_array(file, path, sorted(counts), memory)
    return DeviceFit("TensorFlow Lite Micro", len(graph.operators), lacking, None, memory, files, SOURCE)


def interpreter(path: Path) -> Any:
    """Load a file into TFLM's interpreter on this machine."""
    from tflite_micro.python.tflite_micro import runtime

    size = arena_bytes(read_graph(path)) + SPARE
    return runtime.Interpreter.from_bytes(flatbuffer_of(path), arena_size=size)


def allocated(path: Path) -> tuple[int, int] | None:
    """(activations, everything): bytes of the arena that TFLM uses for a file on this machine; None if it is silent.

    Raises:
        VerificationError: TFLM does not take the file.
    """
    try:
        printed = _printed(interpreter(path).print_allocations)
        head, total = _HEAD.search(printed), _TOTAL.search(printed)
    except RuntimeError as error:
        raise VerificationError(f"TensorFlow Lite Micro does not take {path.name}: {error}", "report it") from error
    # What it prints is meant for people, and may read otherwise one day.
    return (int(head[1]), int(total[1])) if head and total else None


def _printed(call: Callable[[], object]) -> bytes:
    """What compiled code writes to stdout and stderr during a call: TFLM has no other way to tell."""
    with tempfile.TemporaryFile() as sink:
        saved = [os.dup(descriptor) for descriptor in (1, 2)]
        try:
            for descriptor in (1, 2):
                os.dup2(sink.fileno(), descriptor)
            call()
        finally:
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)
        sink.seek(0)
        return sink.read()
