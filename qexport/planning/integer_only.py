"""Files without any float: activations that have no integer kernel are named before images are read."""

from __future__ import annotations

from qexport.errors import InputError
from qexport.planning.coverage import chosen_values
from qexport.planning.planner import FIXED_APART
from qexport.planning.runtime_profiles import TFLITE_INTEGER
from qexport.programs.naming import ACTIVATIONS
from qexport.programs.program import Program, Region, Value

REMEDY = "use --precision int8, where it stays float, or --format onnx, openvino or tensorrt"


def check_integer_only(program: Program, kept: frozenset[str]) -> None:
    """Check that every activation in front of the raw outputs has an integer kernel.

    Args:
        kept: values that the user wants in float.

    Raises:
        InputError: some have none; the first is named with its layer. RT-DETR has none at all.
    """
    if program.layout.head == "queries":
        raise InputError(
            "RT-DETR cannot be integer-only: its choice of queries and its coordinates stay float",
            "use --precision int8 with --format tflite, onnx, openvino or tensorrt",
        )
    *_, torn = chosen_values(program, TFLITE_INTEGER, kept)
    why = dict.fromkeys(torn, FIXED_APART) | dict.fromkeys(kept, "is to be kept float")
    for value in program.values.values():
        if value.region is Region.BODY and value.operation in ACTIVATIONS - TFLITE_INTEGER.operations.keys():
            why[value.name] = f"has no integer kernel in TFLite: {value.operation}"
    found = [value for value in program.values.values() if value.name in why]
    if found:
        first = found[0].name
        raise InputError(f"int8-full holds no float, and {first} {why[first]}{_more(found)}", REMEDY)


def _more(found: list[Value]) -> str:
    words = ", ".join(sorted({value.operation for value in found}))
    return f" ({len(found)} such layers: {words})" if len(found) > 1 else ""
