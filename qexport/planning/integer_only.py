"""Files without any float: what in a program has no integer kernel is known before images are read."""

from __future__ import annotations

from qexport.errors import InputError
from qexport.planning.planner import FIXED_APART, chosen_values
from qexport.planning.profile import TFLITE_INTEGER
from qexport.programs.program import Program, Value

REMEDY = "use --precision int8, where it stays float, or --format onnx, openvino or tensorrt"


def check_integer_only(program: Program, kept: frozenset[str]) -> None:
    """Check that everything up to the raw outputs has integer kernels.

    Args:
        kept: values that the user wants in float.

    Raises:
        InputError: something has none; it is named with its layer.
    """
    integer, _, torn = chosen_values(program, TFLITE_INTEGER, kept)
    floats = [value for value in program.values.values() if value.region == "body" and value.inputs]
    floats = [value for value in floats if value.name not in integer]
    causes = [
        value for value in floats if value.operation not in TFLITE_INTEGER.operations or value.name in kept | torn
    ]
    if floats:
        first, alike = causes[0] if causes else floats[0], {value.operation for value in causes}
        more = f" ({len(causes)} layers: {', '.join(sorted(alike))})" if len(causes) > 1 else ""
        raise InputError(f"int8-full holds no float, and {first.name} {_why(first, kept, torn)}{more}", REMEDY)


def _why(value: Value, kept: frozenset[str], torn: frozenset[str]) -> str:
    if value.name in kept:
        return "is to be kept float"
    return FIXED_APART if value.name in torn else f"has no integer kernel in TFLite: {value.operation}"
