"""What FP16 cannot hold stays FP32, is named, and the file computes what the model does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lowering, synthetic_statistics
from hard_numbers import SIZE, built, layers, picture, seen
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qexport.backends.registry import find_backend
from qexport.calibration.peaks import measured_peaks
from qexport.planning.half_range import peaks_of, unfit_constant, unfit_for_half
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, TENSORRT
from qexport.programs.program import Program

PACKAGES = {"tflite": "litert_torch", "onnx": "onnxruntime", "openvino": "openvino"}


def scaled(factor: float) -> object:
    def change(weight: Tensor, _: Tensor) -> None:
        weight.mul_(factor)

    return change


def hard() -> Program:
    """Weights beyond 65504, weights that would vanish, one faint filter and a bias beyond 65504."""

    def faint(weight: Tensor, _: Tensor) -> None:
        weight[3] *= 1e-7

    def heavy(_: Tensor, bias: Tensor) -> None:
        bias[0] = 2e5

    return layers(first=scaled(3e5), depthwise=scaled(1e-6), point=faint, cls=heavy)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ([65504.0, -1.0], ""),
        ([65520.0, -1.0], "up to 6.55e+04"),
        ([-1e30], "up to 1e+30"),
        ([1e-8, 0.0], "of 1e-08 at most"),
        ([1.0, 1e-8], ""),  # of one filter, and lost beside its largest weight
        ([[1.0, 0.5], [1e-7, 1e-8]], "of 1e-07 at most"),
        ([[1.0, 0.5], [1e-13, 0.0]], ""),  # dead: nothing in FP16 could bring it back
        ([[1.0, 0.5], [0.0, 0.0]], ""),
        ([np.inf, 1.0], ""),  # a limit, and infinite in FP16 too
        (3e38, "up to 3e+38"),
        ([], ""),
    ],
)
def test_what_fp16_can_hold(array: object, words: str) -> None:
    found = unfit_constant(np.array(array, dtype=np.float64))
    assert words in found
    assert bool(words) == bool(found)


@given(st.floats(2.0**-13, 60000, width=32), st.integers(0, 2**32 - 1))
def test_ordinary_weights_fit(peak: float, seed: int) -> None:
    weight = np.random.default_rng(seed).uniform(-1, 1, size=(4, 9))
    weight[:, 0] = 1
    assert unfit_constant(weight * peak) == ""


def test_what_overflows_is_kept_with_what_reads_it() -> None:
    program = layers(first=scaled(500.0), depthwise=scaled(500.0))
    peaks = measured_peaks(program, [picture().numpy()])
    assert peaks["first_conv"] < 65504 / 2 < peaks["depthwise_conv"]
    found = unfit_for_half(program, peaks)
    assert found["depthwise_conv"].startswith("reaches ")
    assert found["depthwise_sigmoid"].startswith("reads depthwise_conv, which reaches ")
    assert "first_conv" not in found
    assert unfit_for_half(program, {}) == {}
    assert unfit_for_half(layers(), measured_peaks(layers(), [picture().numpy()])) == {}


def test_peaks_are_those_of_calibration() -> None:
    program = layers()
    measured, calibrated = measured_peaks(program, [picture(0).numpy(), picture(1).numpy()]), peaks_of(seen(program))
    body = [name for name in calibrated if program.values[name].region == "body"]
    assert len(body) > 8
    for name in body:
        assert measured[name] == pytest.approx(calibrated[name], rel=1e-6), name


@pytest.mark.parametrize("name", list(PACKAGES))
def test_a_half_file_computes_what_the_model_does(name: str, tmp_path: Path) -> None:
    """What FP16 cannot hold is in FP32 and named; what the user wants in FP32 is so, and needs no warning."""
    pytest.importorskip(PACKAGES[name], reason=f"needs the extra qexport[{name}]")
    program = hard()
    written = built(program, tmp_path, name, "fp16", keep_float=("box_conv",))
    path = written.artifact.path
    with torch.no_grad():
        expected = program.graph(picture()).numpy()
    actual = find_backend(name).runner(path, 1)(picture().numpy())[0]
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())  # OpenVINO may compute in BF16
    (warning,) = written.warnings
    largest = float(program.graph.parameter("first.weight").abs().max())
    assert f"first_conv has constants up to {largest:.3g}, and FP16 ends at 65504" in warning
    assert "depthwise_conv has constants of " in warning
    assert "point_conv" in warning
    assert "box_conv" not in warning
    assert ("cls_conv" in warning) == (name != "tflite")  # its biases are FP32
    content = (path / "model.bin" if path.is_dir() else path).read_bytes()
    for layer, stays in (("box", True), ("point", True), ("cls", name != "tflite")):  # 1 by 1: the same in every order
        weight = program.graph.parameter(f"{layer}.weight").numpy()
        if (name, layer) == ("tflite", "box"):
            weight = weight / np.float32(SIZE[0])  # the unit of its boxes is folded into it
        assert (weight.tobytes() in content) == stays, layer
        assert (weight.astype(np.float16).tobytes() in content) != stays, layer


def test_tensorrt_computes_in_fp32_what_fp16_cannot_hold_between_its_integers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    program = layers(first=scaled(3e5), depthwise=scaled(1e-6))
    statistics, backend = seen(program), find_backend("tensorrt")
    plan = make_plan(program, statistics, TENSORRT, "minmax")
    unfit = unfit_for_half(program, peaks_of(statistics))
    assert {"first_conv", "depthwise_conv"} <= set(unfit)
    assert not unfit.keys() & plan.integer
    assert plan.tensors["first_conv"].why == unfit["first_conv"]
    assert "point_conv" in plan.integer
    backend.lower(lowering(program, "int8", plan, float32=frozenset(unfit)), tmp_path / "a.onnx")
    with torch.no_grad():
        expected = program.graph(picture()).numpy()
    actual = backend.runner(tmp_path / "a.onnx", 1)(picture().numpy())[0]
    assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


def test_other_runtimes_hold_any_float() -> None:
    program = layers(first=scaled(3e5), depthwise=scaled(1e-6))
    plan = make_plan(program, seen(program), ONNXRUNTIME, "minmax")
    assert "depthwise_conv" in plan.integer


@given(st.floats(1e-9, 1e-3))
def test_a_scale_in_fp16_never_clips_more_than_rounding(scale: float) -> None:
    assert TENSORRT.stored(scale) >= scale * (1 - 2**-11)
    assert TENSORRT.stored(scale) <= scale * (1 + 2**-11) + 2.0**-24
    assert float(np.float16(TENSORRT.stored(scale))) == TENSORRT.stored(scale)


def test_a_file_of_ordinary_numbers_is_all_fp16(tiny: Program) -> None:
    assert unfit_for_half(tiny, peaks_of(synthetic_statistics(tiny.values))) == {}
