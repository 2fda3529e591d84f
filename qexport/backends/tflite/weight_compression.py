"""Store a float `.tflite` file's weights in fewer bits, with AI Edge Quantizer; activations stay float.

No calibration: "fp16" keeps weights as FP16 and computes in float; "int8-dynamic" keeps them as INT8, one scale for
each output channel, and the kernels quantise their input for each run.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from qexport.errors import ConversionError, first_line

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program


def compress_weights(content: bytes, precision: str, kept: frozenset[str] = frozenset()) -> bytes:
    """Return the file with its weights in `precision`, an entry of `RECIPES`.

    Args:
        kept: values whose operators keep their float weights.

    Raises:
        ConversionError: the quantizer refuses the file.
    """
    return quantised(content, RECIPES[precision]() + _exceptions(kept), precision)


def kept_layers(program: Program, plan: QuantPlan | None, float32: frozenset[str]) -> frozenset[str]:
    """Layers that keep float weights, and what reads them alone: a kernel that computes both has the second name.

    Args:
        plan: of weights, where there is one.
    """
    layers = (value for value in program.values.values() if value.weight)
    kept = {each.name for each in layers if each.name in float32 or (plan and not plan.is_quantised(each.weight))}
    alone = {readers[0].name for name in kept if len(readers := program.readers[name]) == 1 and not readers[0].weight}
    return frozenset(kept | alone)


def quantised(
    content: bytes, recipe: list[dict[str, Any]], precision: str, ranges: dict[str, dict[str, Any]] | None = None
) -> bytes:
    """Return what AI Edge Quantizer makes of a file by a recipe.

    Args:
        ranges: tensor name → "min" and "max", where the recipe quantises activations.

    Raises:
        ConversionError: the quantizer refuses the file.
    """
    from ai_edge_quantizer import quantizer

    engine = quantizer.Quantizer(bytearray(content), quantization_recipe=recipe)
    try:
        # Its progress bar knows no switch, and it warns of what it does itself.
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = engine.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    except Exception as error:  # the quantizer raises whatever its passes do
        raise ConversionError(
            f"ai-edge-quantizer cannot write {precision} ({first_line(error)})", "try another precision"
        ) from error
    assert result.quantized_model is not None
    return bytes(result.quantized_model)


def _exceptions(kept: frozenset[str]) -> list[dict[str, Any]]:
    """The last recipe that fits an operator counts."""
    if not kept:
        return []
    names = "|".join(map(re.escape, sorted(kept)))
    return [{"regex": rf"qexport_({names});", "operation": "*", "algorithm_key": "no_quantize", "op_config": {}}]


def _in_half() -> list[dict[str, Any]]:
    weights = {"num_bits": 16, "symmetric": True, "granularity": "TENSORWISE", "dtype": "FLOAT"}
    settings = {"weight_tensor_config": weights, "compute_precision": "FLOAT", "explicit_dequantize": True}
    return [{"regex": ".*", "operation": "*", "algorithm_key": "float_casting", "op_config": settings}]


def _in_int8() -> list[dict[str, Any]]:
    from ai_edge_quantizer import recipe

    dynamic: list[dict[str, Any]] = recipe.dynamic_wi8_afp32()
    return dynamic


RECIPES: Mapping[str, Callable[[], list[dict[str, Any]]]] = {"fp16": _in_half, "int8-dynamic": _in_int8}
"""Precision → AI Edge Quantizer's recipe for it."""
