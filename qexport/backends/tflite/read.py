"""Read a `.tflite` file's tensors, scales, weights and multiply-accumulates back from its flatbuffer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.tflite.biases import AXES, bias_of, weight_of
from qexport.backends.tflite.file import BARRIER, VALUE, load_file, operator_names, type_names
from qexport.backends.tflite.needs import needs_of
from qexport.errors import VerificationError
from qexport.lowering.stored import StoredGraph, StoredTensor

_MAC_OPERATORS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV"}
_INTEGER_TYPES = {"INT8", "UINT8", "INT16"}
_FLOAT = "FP32"
"""What XNNPACK and the built-in kernels compute floats in unless someone forces FP16: weights stored as FP16 are made
FP32 when the file is loaded."""


def read_file(path: Path) -> StoredGraph:
    """Read types, scales and INT8 weights."""
    model, codes, types = load_file(path), operator_names(), type_names()
    graph = model.subgraphs[0]
    tensors: dict[str, StoredTensor] = {}
    biases: dict[str, StoredTensor] = {}
    operators: Counter[str] = Counter()
    integer_macs = total_macs = 0
    arithmetic: Counter[str] = Counter()
    for operator in graph.operators:
        kind = codes[model.operatorCodes[operator.opcodeIndex].builtinCode]
        inputs = [graph.tensors[i] for i in operator.inputs if i >= 0]
        output = graph.tensors[operator.outputs[0]]
        operators[kind] += 1
        if kind in _MAC_OPERATORS:
            macs = _macs(kind, inputs, output, operator.builtinOptions)
            total_macs += macs
            # A transposed convolution reads its output's shape first.
            given = [types[t.type] for t in (*inputs[kind == "TRANSPOSE_CONV" :][:2], output)]
            integer_macs += macs if all(each in _INTEGER_TYPES for each in given) else 0
            arithmetic[_arithmetic(given)] += macs
        owner = _owner(kind, inputs, output)
        if owner and VALUE.match(output.name.decode()):
            tensors[owner] = _stored(output, types)
        if owner and kind in AXES:
            tensors[f"{owner}.weight"] = _stored(inputs[1], types, weight_of(kind, inputs, model))
            bias = bias_of(kind, inputs, model)
            biases |= {owner: bias} if bias else {}
    return StoredGraph(
        tensors,
        integer_macs,
        total_macs,
        dict(sorted(operators.items())),
        arithmetic={kind: count for kind, count in sorted(arithmetic.items()) if count},
        needs=needs_of(model, _kinds(graph, types, set(arithmetic), integer_macs)),
        biases=biases,
    )


def _kinds(graph: Any, types: dict[int, str], arithmetic: set[str], integer_macs: int) -> list[str]:
    """Entries of `litert_needs.BY_TYPES` that the file has."""
    found = {types[tensor.type] for tensor in graph.tensors} & {"INT16", "FLOAT16"}
    hybrid = "INT8" in arithmetic and not integer_macs
    return sorted(found | ({"INT8 weights of float layers"} if hybrid else set()))


def _arithmetic(types: list[str]) -> str:
    """What a kernel multiplies, from the types of input, weight and result: LiteRT has no graph of its own."""
    if not all(each in _INTEGER_TYPES for each in types[1:2]):
        return _FLOAT
    return "INT16" if "INT16" in types else "INT8"  # floats beside INT8 weights are quantised for each run


def _owner(kind: str, inputs: list[Any], output: Any) -> str:
    """The value that an operator computes, "" where no name is left; behind an output's own name the weight has it.

    What is left of a barrier computes no value of the program.
    """
    if kind in ("DEQUANTIZE", "PAD"):
        return ""
    named = (output, inputs[1]) if kind in AXES else (output,)
    owners = (VALUE.match(tensor.name.decode()) for tensor in named)
    return next((owner[1] for owner in owners if owner and owner[1] != BARRIER), "")


def _stored(tensor: Any, types: dict[int, str], integers: NDArray[np.integer] | None = None) -> StoredTensor:
    quantisation = tensor.quantization
    known = quantisation is not None and quantisation.scale is not None
    scale = tuple(float(s) for s in quantisation.scale) if known else ()
    zero_point = tuple(int(z) for z in quantisation.zeroPoint) if known else ()
    return StoredTensor(types[tensor.type].lower(), scale, zero_point, integers)


def _macs(kind: str, inputs: list[Any], output: Any, options: Any) -> int:
    """Multiply-accumulates of one operator, from its tensors' shapes."""
    elements = int(np.prod(output.shape))
    shape = [int(size) for size in inputs[1].shape]
    if kind == "CONV_2D":
        return elements * shape[1] * shape[2] * shape[3]
    if kind == "DEPTHWISE_CONV_2D":
        return elements * shape[1] * shape[2]
    if kind == "TRANSPOSE_CONV":
        return int(np.prod(inputs[2].shape)) * shape[0] * shape[1] * shape[2]
    if kind == "FULLY_CONNECTED":
        return elements * shape[-1]
    if kind == "BATCH_MATMUL":
        return elements * int(inputs[0].shape[-2 if options.adjX else -1])  # the first matrix may be read transposed
    raise VerificationError(f"multiply-accumulates of {kind} are not known", "report the model")
