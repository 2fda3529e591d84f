"""INT8 weights with INT16 activations: AI Edge Quantizer writes the operators, the scales are the plan's.

litert-torch's converter has no INT16 concatenation, so that the float file is quantised instead. Every range that the
quantizer would calibrate itself comes from the plan, and what the plan leaves float is left alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from qexport.backends.tflite.biases import store_planned
from qexport.backends.tflite.file import VALUE, load_file, operator_names, save_file
from qexport.backends.tflite.weight_compression import quantised
from qexport.planning.arithmetic import INT16
from qexport.planning.plan import QuantPlan
from qexport.programs.program import INPUT, Program

MOVERS = frozenset({"PAD", "PADV2", "TRANSPOSE", "RESHAPE", "SLICE"})
"""Operators that only move integers: their result has its input's scale, whatever value it helps to compute."""


def quantise_activations_to_int16(path: Path, program: Program, plan: QuantPlan) -> None:
    """Write over a float file one with the plan's values as INT16 and their weights as INT8.

    Raises:
        ConversionError: the quantizer refuses the file.
    """
    path.write_bytes(quantised(path.read_bytes(), _recipe(plan), "w8a16", _ranges(path, plan)))
    model = load_file(path)
    if store_planned(model, program, plan):
        save_file(model, path)


def _recipe(plan: QuantPlan) -> list[dict[str, Any]]:
    """INT16 for operators that compute a value which the plan has in integers, for no other."""
    from ai_edge_quantizer.recipe_manager import RecipeManager

    names = "|".join(map(re.escape, sorted(plan.integer)))
    recipes = RecipeManager()
    recipes.add_static_config(
        regex=rf"^qexport_({names});", operation_name="*", activation_num_bits=16, weight_num_bits=8
    )
    found: list[dict[str, Any]] = recipes.get_quantization_recipe()
    return found


def _ranges(path: Path, plan: QuantPlan) -> dict[str, dict[str, Any]]:
    """Tensor name → the range that gives the plan's scale, operator by operator."""
    model, codes = load_file(path), operator_names()
    graph = model.subgraphs[0]
    given = plan.tensors[INPUT].scale
    scales = {int(index): given[0] for index in graph.inputs if given}  # none where what reads it stays float
    for operator in graph.operators:
        kind = codes[model.operatorCodes[operator.opcodeIndex].builtinCode]
        for output in operator.outputs:
            owner = VALUE.match(graph.tensors[output].name.decode())
            if kind in MOVERS and operator.inputs[0] in scales:
                scales[output] = scales[operator.inputs[0]]
            elif owner and owner[1] in plan.tensors and plan.is_quantised(owner[1]):
                scales[output] = plan.tensors[owner[1]].scale[0]
    return {
        graph.tensors[index].name.decode(): {
            "min": np.array([-scale * INT16.high], dtype=np.float32),
            "max": np.array([scale * INT16.high], dtype=np.float32),
        }
        for index, scale in scales.items()
    }
