"""Are a layer's constants in the file what the plan makes of the program's? Biases that are integers, and weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from qexport.errors import VerificationError
from qexport.lowering.stored import StoredGraph, StoredTensor
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.weights import bias_array, weight_array
from qexport.programs.program import Program, Value
from qexport.verification.plan_check import weight_difference
from qexport.verification.tolerances import BIAS_TOLERANCE, HALF_A_STEP, listed

LIMITS = (2**31 - 1, 2**31, 2**63 - 1)
"""Magnitudes of a bias that was cut: AI Edge Quantizer stores INT64 that it has cut at INT32's ends."""
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
    """Compare weights of a plan that has nothing but weights (profile `WEIGHTS`); return how many there were.

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
        planned = plan.tensors[layer.weight]
        difference = _kind_difference(planned, kept)
        if not difference and not planned.is_float:
            difference = weight_difference(planned, kept, weight_array(program, layer.weight))
        wrong += [f"{layer.weight}: {difference}"] if difference else []
    _refuse(plan.profile, "weights", wrong)
    wanted = sum(plan.is_quantised(weight) for weight in {layer.weight for layer in _layers(program)})
    integers = sum(plan.is_quantised(weight) for weight in found)
    fewest = 0 if stored.complete else max(MAX_UNNAMED[0], MAX_UNNAMED[1] * wanted)
    if wanted - integers > fewest:
        raise VerificationError(
            f"{plan.profile}: only {integers} of {wanted} planned weights are in the file", "report the model"
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
    if len(integers) != len(bias) or not np.allclose(
        np.resize(kept.scale, len(bias)), expected, rtol=BIAS_TOLERANCE, atol=0
    ):
        return "its scale is not that of input and weight"
    beyond = np.abs(integers * expected - bias) - HALF_A_STEP * expected - BIAS_TOLERANCE * np.abs(bias)
    # A converter that makes the integers itself is held to cut none: it may round some by way of other steps.
    wrong = beyond > 0 if exact else np.isin(np.abs(integers), LIMITS)
    if not wrong.any():
        return ""
    worst = int(np.where(wrong, beyond, -np.inf).argmax())
    return f"{bias[worst]:.4g} became {integers[worst] * expected[worst]:.4g} in channel {worst}"


def _kind_difference(planned: TensorQuant, kept: StoredTensor) -> str:
    if planned.is_float:
        return f"{kept.dtype}, and was to stay float" if kept.integers is not None else ""
    same = kept.dtype == planned.dtype and kept.integers is not None
    return "" if same else f"{kept.dtype} instead of {planned.dtype}"


def _refuse(profile: str, what: str, wrong: list[str]) -> None:
    if wrong:
        raise VerificationError(
            f"{profile}: {what} in the file are not the program's: {listed(wrong)}",
            "the converter did not obey the plan: report the model and the converter's version",
        )
