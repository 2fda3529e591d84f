"""Profiles are data: their words must be words of the program."""

from __future__ import annotations

from qexport.planning.runtime_profiles import ATTENTION, LOGISTIC, TFLITE, FixedScale, OwnScale, SharedScale
from qexport.programs.naming import ACTIVATIONS, OPERATION_NAMES
from qexport.programs.program import MOVES_DATA


def test_every_operation_of_the_profile_is_one_that_programs_have() -> None:
    known = ACTIVATIONS.union(OPERATION_NAMES.values())
    assert set(TFLITE.operations) <= known
    assert set(TFLITE.kept_float) <= known
    assert known >= MOVES_DATA


def test_an_operation_is_integer_or_kept_float_but_not_both() -> None:
    assert not set(TFLITE.operations) & set(TFLITE.kept_float)
    assert set(TFLITE.kept_float.values()) == {ATTENTION}


def test_the_scales_that_litert_documents() -> None:
    """Https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec."""
    rules = TFLITE.operations
    assert rules["sigmoid"] == LOGISTIC == FixedScale(1 / 256, -128)
    same = ("cat", "max_pool", "avg_pool", "resize", "reshape", "transpose")
    assert all(isinstance(rules[name], SharedScale) for name in same)
    own = ("conv", "conv_transpose", "linear", "mul", "add", "sub")
    assert all(isinstance(rules[name], OwnScale) for name in own)
    assert (TFLITE.weight.low, TFLITE.weight.high) == (-127, 127)
    assert (TFLITE.activation.low, TFLITE.activation.high) == (-128, 127)
    assert not TFLITE.symmetric_activations


def test_what_only_moves_data_never_gets_a_scale_of_its_own() -> None:
    """Calibration does not watch such values, so a range of their own could not be known."""
    for name, rule in TFLITE.operations.items():
        if name in MOVES_DATA:
            assert isinstance(rule, SharedScale), name
