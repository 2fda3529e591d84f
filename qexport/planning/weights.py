"""What becomes of weights: a symmetric INT8 scale for each output channel, wide enough for what kernels add up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qexport.errors import InputError
from qexport.planning.arithmetic import (
    INT8_NARROW,
    TYPES,
    WEIGHT_AXIS,
    bias_safe_scales,
    pair_safe_scales,
    weight_scales,
)
from qexport.planning.learned_ranges import LearnedRanges
from qexport.planning.plan import Rule, TensorQuant
from qexport.planning.runtime_profiles import RuntimeProfile
from qexport.programs.program import Program, Value

SYMMETRIC = "symmetric, one scale for each channel"


def stored_weights(
    program: Program, profile: RuntimeProfile, float_values: Mapping[str, str]
) -> dict[str, TensorQuant]:
    """Decide every weight by its path, where all layers compute in float and nothing but weights is stored smaller.

    Args:
        float_values: values whose layer keeps its float weights, with the reason.
    """
    layers = [value for value in program.values.values() if value.weight]
    kept = {layer.weight: float_values[layer.name] for layer in layers if layer.name in float_values}
    decided = {}
    for layer in layers:  # a weight that one layer keeps stays float for all layers that use it
        why = kept.get(layer.weight)
        scales = weight_scales(weight_array(program, layer.weight), WEIGHT_AXIS[layer.operation], profile.weight)
        decided[layer.weight] = TensorQuant("float32", why=why) if why else _tensor(profile, layer, scales, SYMMETRIC)
    return decided


def weight_tensors(
    program: Program,
    profile: RuntimeProfile,
    integer: frozenset[str],
    tensors: Mapping[str, TensorQuant],
    learned: LearnedRanges | None = None,
) -> dict[str, TensorQuant]:
    """Decide every weight by its path. One that several layers share has scales that are wide enough for all of them.

    Args:
        tensors: what was decided of the layers' inputs.
        learned: its scales go before those that span a weight.
    """
    users: dict[str, list[Value]] = {}
    for value in program.values.values():
        if value.weight:
            users.setdefault(value.weight, []).append(value)
    decided = {}
    for path, layers in users.items():
        chosen = [layer for layer in layers if layer.name in integer]
        if not chosen:
            decided[path] = TensorQuant("float32", why=f"{layers[-1].name} stays float")
            continue
        decided[path] = _integer_weight(program, profile, chosen, tensors, learned)
    return decided


def _integer_weight(
    program: Program,
    profile: RuntimeProfile,
    layers: list[Value],
    tensors: Mapping[str, TensorQuant],
    learned: LearnedRanges | None,
) -> TensorQuant:
    array, axis = weight_array(program, layers[0].weight), WEIGHT_AXIS[layers[0].operation]
    scales, why = weight_scales(array, axis, profile.weight), SYMMETRIC
    if learned and layers[0].weight in learned.weights:
        scales, why = _learned_scales(learned, layers[0].weight, scales), learned.source
    rule: Rule = "own"
    if profile.saturating_pair_accumulation and axis == 0:
        scales, why = pair_safe_scales(array, scales), f"{why}, wide enough for 16-bit sums of two products"
        rule = "derived"
    if profile.integer_bias is None:
        return _tensor(profile, layers[0], scales, why, rule)
    narrow = scales
    for layer in layers:
        given, bias = tensors[layer.inputs[0]], bias_array(program, layer, len(scales))
        scale_and_type = given.scale[0], TYPES[given.dtype]
        scales = bias_safe_scales(array, axis, scales, bias, scale_and_type, profile.integer_bias)
    wider = int((scales > narrow).sum())
    if wider:
        why = f"{why}, {wider} of them wider so that their biases fit {profile.integer_bias.name}"
        rule = "derived"
    return _tensor(profile, layers[0], scales, why, rule)


def _learned_scales(learned: LearnedRanges, path: str, spanning: NDArray[np.float32]) -> NDArray[np.float32]:
    scales = np.array(learned.weights[path], dtype=np.float32)
    if scales.shape != spanning.shape:
        raise InputError(
            f"{path} has {len(spanning)} channels, and scales of {len(scales)} were learned",
            "give the model that they were learned for",
        )
    return scales


def _tensor(
    profile: RuntimeProfile, layer: Value, scales: NDArray[np.float32], why: str, rule: Rule = "own"
) -> TensorQuant:
    stored = tuple(profile.stored(float(scale)) for scale in scales)
    return TensorQuant("int8", stored, (0,) * len(stored), WEIGHT_AXIS[layer.operation], why=why, rule=rule)


def weight_array(program: Program, path: str) -> NDArray[np.float32]:
    """Return a parameter of the program as float32."""
    array: NDArray[np.float32] = program.graph.parameter(path).numpy()
    return array


def bias_array(program: Program, layer: Value, channels: int) -> NDArray[np.float32]:
    """Return what a layer adds to each of its output channels as float32, (channels,) or more where it has groups."""
    bias = weight_array(program, layer.bias).reshape(-1) if layer.bias else np.zeros(1, dtype=np.float32)
    return np.broadcast_to(bias, channels) if bias.size == 1 else bias


def quantised_weight(array: NDArray[np.floating], scales: NDArray[np.float32], quant: TensorQuant) -> NDArray[np.int8]:
    """Round a weight to its integers: symmetric, narrow, one scale for each slice along the axis.

    In float32, as the simulation and converters do: where a quotient is a tie in float32, float64 may round elsewhere.
    """
    assert quant.axis is not None
    shape = [1] * array.ndim
    shape[quant.axis] = -1
    rounded = np.clip(np.rint(array.astype(np.float32) / scales.reshape(shape)), INT8_NARROW.low, INT8_NARROW.high)
    integers: NDArray[np.int8] = rounded.astype(np.int8)
    return integers
