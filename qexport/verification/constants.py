"""Are a layer's constants in the file what the plan makes of the program's? Biases that are integers, and weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from qexport.errors import VerificationError
from qexport.lowering.stored import StoredGraph, StoredTensor
from qexport.planning.plan import QuantPlan
from qexport.planning.weights import WEIGHT_AXIS, bias_array, weight_array
from qexport.programs.program import Program, Value
from qexport.verification.plan_check import HALF_A_STEP, listed

LIMITS = (2**31 - 1, 2**31, 2**63 - 1)
"""Magnitudes of a bias that was cut: AI Edge Quantizer stores INT64 that it has cut at INT32's ends."""
ROUNDING = 1e-5
"""Of a scale, or of a bias that fills its integers, in float32."""
MAX_UNNAMED = 2, 0.15
"""Weights that a converter may have merged with a neighbour's constant: so many, or this share of all."""


def check_biases(program: Program, plan: QuantPlan, stored: StoredGraph) -> int:
    """Compare integer biases with the program's; return how many there were.

    A bias that the file's integers cannot hold saturates, and with it every value of its channel.

    Raises:
        VerificationError: one is clipped, or otherwise not the program's.
    """
    if not plan.integer_bias:
        return 0
    found, wrong = 0, []
    for layer in _layers(program):
        if layer.name not in plan.integer or not layer.bias:
            continue
        kept = _of_layer(program, layer, stored.biases)
        steps = plan.tensors[layer.inputs[0]].scale[0] * np.array(plan.tensors[layer.weight].scale)
        bias = bias_array(program, layer, len(steps))
        if kept is None:  # exporters leave out a bias of zeros
            wrong += [f"{layer.bias}: missing"] if stored.complete and bias.any() else []
            continue
        found += 1
        difference = _bias_difference(bias, steps, kept, stored.complete)
        wrong += [f"{layer.bias}: {difference}"] if difference else []
    _refuse(plan.profile, "biases", wrong)
    return found


def check_weights(program: Program, plan: QuantPlan, stored: StoredGraph) -> int:
    """Compare weights of a plan that has nothing but weights (`weights_only`); return how many there were.

    Raises:
        VerificationError: one is not what the plan makes of the program's, or too few are in the file.
    """
    found, wrong = set(), []
    for layer in _layers(program):
        named = {
            name.removesuffix(".weight"): kept for name, kept in stored.tensors.items() if name.endswith(".weight")
        }
        kept = _of_layer(program, layer, named) or stored.tensors.get(layer.weight)
        if kept is None:
            continue
        found.add(layer.weight)
        difference = _weight_difference(program, plan, layer, kept)
        wrong += [f"{layer.weight}: {difference}"] if difference else []
    _refuse(plan.profile, "weights", wrong)
    planned = sum(plan.is_quantised(weight) for weight in {layer.weight for layer in _layers(program)})
    integers = sum(plan.is_quantised(weight) for weight in found)
    fewest = 0 if stored.complete else max(MAX_UNNAMED[0], MAX_UNNAMED[1] * planned)
    if planned - integers > fewest:
        raise VerificationError(
            f"{plan.profile}: only {integers} of {planned} planned weights are in the file", "report the model"
        )
    return integers


def _layers(program: Program) -> Iterator[Value]:
    return (value for value in program.values.values() if value.weight)


def _of_layer(program: Program, layer: Value, kept: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """A layer's constant: a kernel that computes the activation, too, goes by the activation's name."""
    readers = program.readers[layer.name]
    alone = len(readers) == 1 and readers[0].region == layer.region and not readers[0].weight
    return kept.get(layer.name) or (kept.get(readers[0].name) if alone else None)


def _bias_difference(bias: NDArray[np.float32], steps: NDArray[np.float64], kept: StoredTensor, exact: bool) -> str:
    assert kept.integers is not None
    groups = len(bias) // len(steps)
    expected, integers = np.tile(steps, groups), kept.integers.reshape(-1).astype(np.float64)
    if len(integers) != len(bias) or not np.allclose(np.resize(kept.scale, len(bias)), expected, rtol=ROUNDING, atol=0):
        return "its scale is not that of input and weight"
    beyond = np.abs(integers * expected - bias) - HALF_A_STEP * expected - ROUNDING * np.abs(bias)
    # A converter that makes the integers itself is held to cut none: it may round some by way of other steps.
    wrong = beyond > 0 if exact else np.isin(np.abs(integers), LIMITS)
    if not wrong.any():
        return ""
    worst = int(np.where(wrong, beyond, -np.inf).argmax())
    return f"{bias[worst]:.4g} became {integers[worst] * expected[worst]:.4g} in channel {worst}"


def _weight_difference(program: Program, plan: QuantPlan, layer: Value, kept: StoredTensor) -> str:
    planned = plan.tensors[layer.weight]
    if planned.is_float:
        return f"{kept.dtype}, and was to stay float" if kept.integers is not None else ""
    if kept.dtype != planned.dtype or kept.integers is None:
        return f"{kept.dtype} instead of {planned.dtype}"
    weight = weight_array(program, layer.weight)
    shape = [1] * weight.ndim
    shape[WEIGHT_AXIS[layer.operation]] = -1
    steps, scales = (np.array(each, dtype=np.float64).reshape(shape) for each in (planned.scale, kept.scale))
    error = np.abs(kept.integers.reshape(weight.shape) * scales - weight) / steps
    return f"weights are {error.max():.2f} steps away" if error.max() > HALF_A_STEP else ""


def _refuse(profile: str, what: str, wrong: list[str]) -> None:
    if wrong:
        raise VerificationError(
            f"{profile}: {what} in the file are not the program's: {listed(wrong)}",
            "the converter did not obey the plan: report the model and the converter's version",
        )
