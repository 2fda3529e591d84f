"""Biases that are stored as integers keep their value, whatever their filter's weights are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import captured, lowering, seeded, statistics_of
from hard_numbers import UnitDecode, layers, picture, seen
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qexport.backends.registry import find_backend
from qexport.errors import VerificationError
from qexport.lowering.stored import StoredGraph
from qexport.planning.arithmetic import INT8, INT16, INT32, INT64, UINT8, IntegerType, bias_safe_scales, weight_scales
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import (
    ONNXRUNTIME,
    OPENVINO,
    TENSORRT,
    TFLITE,
    TFLITE_INT16,
    TFLITE_INTEGER,
    RuntimeProfile,
    for_saturating_cpus,
)
from qexport.programs.program import Program
from qexport.verification.constants import check_biases

INTEGER_BIASES = [TFLITE, TFLITE_INTEGER, TFLITE_INT16, ONNXRUNTIME, for_saturating_cpus(ONNXRUNTIME)]


def dead(weight: Tensor, bias: Tensor) -> None:
    """One channel of no weights, one of next to none; a bias beside which they are nothing."""
    channels = weight.transpose(0, 1) if weight.shape[0] != len(bias) else weight
    channels[1], channels[2] = 0.0, channels[2] * 1e-9
    bias[1], bias[2] = 3.0, -3.0


def sixteen(weight: Tensor, bias: Tensor) -> None:
    weight.zero_()
    bias.copy_(torch.linspace(-5, 5, len(bias)))


def program_of(kind: str) -> Program:
    changes: dict[str, dict[str, Callable[[Tensor, Tensor], None]]] = {
        "every kind of layer": dict.fromkeys(("first", "depthwise", "up"), dead),
        "sixteen channels": {"point": sixteen},
        "depthwise": {"depthwise": sixteen},
    }
    return layers(**changes[kind])


def real_biases(program: Program, plan: QuantPlan) -> dict[str, np.ndarray]:
    """Every integer layer's bias in steps of input scale times weight scale, by the definition."""
    found = {}
    for value in program.values.values():
        if value.bias and value.name in plan.integer:
            steps = plan.tensors[value.inputs[0]].scale[0] * np.array(plan.tensors[value.weight].scale)
            found[value.name] = program.graph.parameter(value.bias).numpy() / steps
    return found


@pytest.mark.parametrize("kind", ["every kind of layer", "sixteen channels", "depthwise"])
@pytest.mark.parametrize(
    "profile", INTEGER_BIASES, ids=lambda profile: f"{profile.name}{profile.saturating_pair_accumulation}"
)
def test_no_bias_of_a_plan_saturates(kind: str, profile: RuntimeProfile) -> None:
    program = program_of(kind)
    plan = make_plan(program, seen(program), replace(profile, float_stem=0.0, float_boxes=0.0), "minmax")
    most = 2**47 if profile is TFLITE_INT16 else 2**31
    steps = real_biases(program, plan)
    assert len(steps) >= 5
    assert max(abs(each).max() for each in steps.values()) <= most / 2 * 1.0001
    assert plan.integer_bias


@pytest.mark.parametrize("profile", [OPENVINO, TENSORRT], ids=lambda profile: profile.name)
def test_float_biases_need_no_wider_scale(profile: RuntimeProfile) -> None:
    program = program_of("sixteen channels")
    plan = make_plan(program, seen(program), profile, "minmax")
    assert not plan.integer_bias
    assert max(plan.tensors["point.weight"].scale) <= 2.0**-24


@given(
    st.sampled_from([(INT8, INT32), (UINT8, INT32), (INT16, INT64)]),
    st.floats(1e-6, 1.0),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1e-12, 1e-6, 1.0]),
    st.sampled_from([(4, 3, 3, 3), (4, 1, 3, 3), (4, 512, 1, 1), (4, 64)]),
)
def test_whatever_is_added_up_fits(
    types: tuple[IntegerType, IntegerType], input_scale: float, seed: int, size: float, shape: tuple[int, ...]
) -> None:
    """The worst sum by its definition: the bias, and every weight times the furthest that an input is from zero."""
    kind, sums = types
    random = np.random.default_rng(seed)
    weight, bias = random.normal(size=shape).astype(np.float32) * size, random.normal(size=4).astype(np.float32) * 100
    before = weight_scales(weight, 0)
    scales = bias_safe_scales(weight, 0, before, bias, (input_scale, kind), sums).astype(np.float64)
    assert (scales >= before).all()
    integers = np.rint(weight / scales.reshape(-1, *[1] * (weight.ndim - 1)))
    worst = np.abs(np.rint(bias / (input_scale * scales))) + (kind.high - kind.low) * np.abs(integers).reshape(
        4, -1
    ).sum(1)
    assert worst.max() <= sums.high
    roomy = np.abs(bias) / (input_scale * before.astype(np.float64)) < sums.high / 4
    assert (scales[roomy] == before[roomy]).all()


def test_a_weight_that_two_layers_share_is_wide_enough_for_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.box, self.cls = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
            self.decode = UnitDecode()

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.decode(self.box(self.two(self.one(images))), self.cls(images))
            return found

    module: Any = seeded(Twice())
    module.one.weight.data.zero_()
    module.one.bias.data.fill_(8.0)
    module.two.bias.data.fill_(0.1)
    module.two.weight = module.one.weight
    program = captured(module, (8, 8))
    plan = make_plan(program, seen(program), TFLITE, "minmax")
    steps = real_biases(program, plan)
    one, two = (value.name for value in program.values.values() if value.bias in ("one.bias", "two.bias"))
    assert program.values[one].weight == program.values[two].weight
    assert 2**29 < steps[one].max() <= 2**30 * 1.0001  # the larger bias decides
    assert steps[two].max() < steps[one].max()


def stored_biases(path: Path) -> dict[str, np.ndarray]:
    """Integer biases of an ONNX file as real numbers, by the onnx package alone."""
    import onnx

    graph = onnx.load(path).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    found = {}
    for node in graph.node:
        pair = made.get(node.input[2]) if node.op_type == "Conv" and len(node.input) > 2 else None
        if pair is not None:
            found[node.output[0]] = constants[pair.input[0]] * constants[pair.input[1]].astype(np.float64)
    return found


def test_an_onnx_file_has_the_biases_of_dead_channels(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    program, backend = program_of("every kind of layer"), find_backend("onnx")
    plan = make_plan(program, seen(program), replace(ONNXRUNTIME, float_stem=0.0, float_boxes=0.0), "minmax")
    backend.lower(lowering(program, "int8", plan), tmp_path / "a.onnx")
    biases = stored_biases(tmp_path / "a.onnx")
    for name in ("first_conv", "depthwise_conv"):
        assert biases[name][1:3] == pytest.approx([3.0, -3.0], rel=1e-6)
    assert check_biases(program, plan, backend.read(tmp_path / "a.onnx")) == 5  # all but the transposed one


@pytest.mark.parametrize(("precision", "profile"), [("int8", TFLITE), ("w8a16", TFLITE_INT16)])
def test_a_tflite_file_computes_the_biases_of_dead_channels(
    precision: str, profile: RuntimeProfile, tmp_path: Path
) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    program, backend = program_of("every kind of layer"), find_backend("tflite")
    plan = make_plan(program, seen(program), replace(profile, float_boxes=0.0), "minmax")
    path = tmp_path / "a.tflite"
    backend.lower(lowering(program, precision, plan), path)
    stored = backend.read(path)
    assert check_biases(program, plan, stored) == len(stored.biases) == 6
    with torch.no_grad():
        expected = program.graph(picture()).numpy()
    actual = backend.runner(path, 1)(picture().numpy())[0]
    assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()  # clipped biases cost a third
    for name, kept in stored.biases.items():
        if name in ("first_conv", "depthwise_conv", "up_conv_transpose"):
            assert kept.integers is not None
            assert kept.integers[1:3] * np.array(kept.scale)[1:3] == pytest.approx([3.0, -3.0], rel=1e-5)


def test_a_classifiers_linear_layer_in_an_onnx_file_of_others(tmp_path: Path) -> None:
    """Three classes of no weights at all: their logits are their biases, by the file alone."""
    onnx = pytest.importorskip("onnx", reason="needs the extra qexport[onnx]")
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    from qexport.programs.onnx.build import read_onnx
    from qexport.programs.options import CaptureOptions

    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[1, 3, 32, 32] images) => (float[1, 5] logits) {
        deep = Conv <strides = [4, 4]> (images, w, b)
        act = Relu (deep)
        pooled = GlobalAveragePool (act)
        flat = Flatten (pooled)
        logits = Gemm <transB = 1> (flat, v, c)
        }"""
    )
    random = np.random.default_rng(0)
    arrays = {"w": random.normal(size=(8, 3, 4, 4)), "b": random.normal(size=8), "v": random.normal(size=(5, 8))}
    arrays |= {"c": np.array([2.5, -7.0, 0.25, 0.1, -0.2])}
    arrays["v"][:3] = 0
    tensors = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    model.graph.initializer.extend(tensors)
    onnx.save(model, tmp_path / "of_others.onnx")
    program = read_onnx(tmp_path / "of_others.onnx", CaptureOptions(imgsz=(32, 32)))[1]
    layer = next(value for value in program.values.values() if value.operation == "linear")
    assert layer.bias
    statistics = {name: statistics_of(np.linspace(-8, 8, 999), 8.0) for name in program.values}
    plan = make_plan(program, statistics, replace(ONNXRUNTIME, float_stem=0.0, float_boxes=0.0), "minmax")
    assert layer.name in plan.integer
    backend = find_backend("onnx")
    backend.lower(lowering(program, "int8", plan), tmp_path / "a.onnx")
    assert check_biases(program, plan, backend.read(tmp_path / "a.onnx")) == 2
    picture = np.full((1, 3, 32, 32), 0.5, dtype=np.float32)
    logits = backend.runner(tmp_path / "a.onnx", 1)(picture)[0]
    np.testing.assert_allclose(logits[0, :3], [2.5, -7.0, 0.25], atol=16 / 255)


def test_a_clipped_bias_is_found_in_the_file(tmp_path: Path) -> None:
    """Scales as they were before: the file holds what INT32 can, and nothing else says that it is wrong."""
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    program, backend = program_of("sixteen channels"), find_backend("onnx")
    good = make_plan(program, seen(program), replace(ONNXRUNTIME, float_stem=0.0, float_boxes=0.0), "minmax")
    narrow = replace(good.tensors["point.weight"], scale=(1e-9,) * 16)
    plan = replace(good, tensors={**good.tensors, "point.weight": narrow})
    backend.lower(lowering(program, "int8", plan), tmp_path / "a.onnx")
    with pytest.raises(VerificationError, match=r"point\.bias: 5 became 0\.\d+ in channel 15"):
        check_biases(program, plan, backend.read(tmp_path / "a.onnx"))


@pytest.mark.parametrize("format_name", ["onnx", "tflite"])
def test_biases_of_zeros_that_an_exporter_leaves_out_are_not_missed(format_name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    program = layers(**dict.fromkeys(("first", "point", "box"), lambda _weight, bias: bias.zero_()))
    profile = replace({"onnx": ONNXRUNTIME, "tflite": TFLITE}[format_name], float_stem=0.0, float_boxes=0.0)
    plan, backend = make_plan(program, seen(program), profile, "minmax"), find_backend(format_name)
    backend.lower(lowering(program, "int8", plan), tmp_path / f"a.{format_name}")
    assert check_biases(program, plan, backend.read(tmp_path / f"a.{format_name}")) >= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda kept: replace(kept, integers=kept.integers + 2), r"first\.bias: .* became .* in channel"),
        (lambda kept: replace(kept, scale=tuple(2 * s for s in kept.scale)), r"first\.bias: its scale is not"),
        (None, r"first\.bias: missing"),
    ],
)
def test_other_biases_than_the_programs_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    program, backend = layers(), find_backend("onnx")
    plan = make_plan(program, seen(program), replace(ONNXRUNTIME, float_stem=0.0), "minmax")
    backend.lower(lowering(program, "int8", plan), tmp_path / "a.onnx")
    stored: StoredGraph = backend.read(tmp_path / "a.onnx")
    others = {name: kept for name, kept in stored.biases.items() if name != "first_conv"}
    changed = others if change is None else {**others, "first_conv": change(stored.biases["first_conv"])}
    with pytest.raises(VerificationError, match=words):
        check_biases(program, plan, replace(stored, biases=changed))
