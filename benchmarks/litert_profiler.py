"""LiteRT's own profiler, through the C interface of the library that its Python wheel brings.

The wheel's Python classes have no way to it. What is called here is public (litert/c/*.h, symbols of version VERS_1.0);
structures are as in those headers of LiteRT 2. The kernels are those of the interpreter that qexport runs files with:
the same delegate, XNNPACK, which tells its nodes to this profiler.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, byref, c_char_p, c_int, c_int32, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CPU = 1
MOST_DIMENSIONS = 8
OPERATOR, OF_DELEGATES = 1 << 1, (1 << 2, 1 << 3)
"""Kinds of events: an operator that LiteRT runs itself, those that a delegate runs."""
WRITE = 1
TYPES = {"float32": 1, "int32": 2, "uint8": 3, "int8": 9}


class _Layout(Structure):
    _fields_ = [("rank", c_uint), ("sizes", c_int32 * MOST_DIMENSIONS), ("strides", c_uint32 * MOST_DIMENSIONS)]


class _TensorType(Structure):
    _fields_ = [("element", c_int), ("layout", _Layout)]


class _Memory(Structure):
    _fields_ = [("total", c_size_t), ("used", c_size_t), ("private", c_size_t)]


class _Event(Structure):
    _fields_ = [
        ("tag", c_char_p),
        ("kind", c_int),
        ("start", c_uint64),
        ("microseconds", c_uint64),
        ("before", _Memory),
        ("after", _Memory),
        ("first", c_uint64),
        ("second", c_uint64),
        ("source", c_int),
    ]


class LiteRTProfiler:
    """A `.tflite` file, compiled for the CPU with XNNPACK, whose operators are timed."""

    def __init__(self, path: Path, threads: int) -> None:
        import ai_edge_litert
        from ai_edge_litert.interpreter import Interpreter

        self._library = ctypes.CDLL(str(Path(ai_edge_litert.__file__).with_name("libLiteRt.so")))
        self._environment = self._made("LiteRtCreateEnvironment", 0, None)
        model = self._made("LiteRtCreateModelFromFile", self._environment, str(path).encode())
        self._compiled = self._made("LiteRtCreateCompiledModel", self._environment, model, self._options(threads))
        described = Interpreter(str(path))
        self._inputs = [self._buffer("Input", i, each) for i, each in enumerate(described.get_input_details())]
        self._outputs = [self._buffer("Output", i, each) for i, each in enumerate(described.get_output_details())]
        self._profiler = self._made("LiteRtCompiledModelGetProfiler", self._compiled)
        if not self._profiler.value:
            raise RuntimeError("this LiteRT has no profiler")

    def fill(self, batch: NDArray[Any]) -> None:
        """Write what goes in, as the file wants it."""
        address = c_void_p()
        self._call("LiteRtLockTensorBuffer", self._inputs[0], byref(address), c_int(WRITE))
        ctypes.memmove(address, np.ascontiguousarray(batch).ctypes.data, batch.nbytes)
        self._call("LiteRtUnlockTensorBuffer", self._inputs[0])

    def run(self) -> None:
        """Run once."""
        given, found = self._inputs, self._outputs
        self._call(
            *("LiteRtRunCompiledModel", self._compiled, c_size_t(0)),
            *(c_size_t(len(given)), (c_void_p * len(given))(*given)),
            *(c_size_t(len(found)), (c_void_p * len(found))(*found)),
        )

    def profiled(self) -> list[tuple[str, float]]:
        """Run once, and return each operator's tag and milliseconds in the order in which they ran."""
        self._call("LiteRtStartProfiler", self._profiler)
        self.run()
        self._call("LiteRtStopProfiler", self._profiler)
        count = c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, byref(count))
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, events)
        return operators([(each.tag.decode(), each.kind, each.microseconds) for each in events])

    def _options(self, threads: int) -> c_void_p:
        options = self._made("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, c_int(CPU))
        system = ctypes.CDLL(None)
        system.strdup.restype, free = c_void_p, ctypes.cast(system.free, c_void_p)
        for name, text in (
            ("runtime_options_string", "enable_profiling = true\n"),
            ("xnnpack", f"num_threads = {threads}\n"),
        ):
            text_of_its_own = c_void_p(system.strdup(text.encode()))
            given = self._made("LiteRtCreateOpaqueOptions", name.encode(), text_of_its_own, free)
            self._call("LiteRtAddOpaqueOptions", options, given)
        return options

    def _buffer(self, side: str, index: int, details: dict[str, Any]) -> c_void_p:
        needs = self._made(
            f"LiteRtGetCompiledModel{side}BufferRequirements", self._compiled, c_size_t(0), c_size_t(index)
        )
        kind, shape = _TensorType(), details["shape"]
        kind.element, kind.layout.rank = TYPES[np.dtype(details["dtype"]).name], len(shape)
        for dimension, size in enumerate(shape):
            kind.layout.sizes[dimension] = size
        return self._made("LiteRtCreateManagedTensorBufferFromRequirements", self._environment, byref(kind), needs)

    def _made(self, function: str, *arguments: Any) -> c_void_p:
        """What a function writes into its last argument."""
        handle = c_void_p()
        self._call(function, *arguments, byref(handle))
        return handle

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            raise RuntimeError(f"{function} of LiteRT failed with status {status}")


def operators(events: Sequence[tuple[str, int, int]]) -> list[tuple[str, float]]:
    """Tag and milliseconds of what computes: delegates' operators, and LiteRT's own but for a delegate as a whole.

    Args:
        events: tag, kind and microseconds of each.
    """
    kept = (
        (tag, microseconds / 1e3)
        for tag, kind, microseconds in events
        if kind in OF_DELEGATES or (kind == OPERATOR and not tag.endswith("Delegate"))
    )
    return list(kept)
