"""ONNX files for ONNX Runtime: written from a plan, read back, run, and loaded by Ultralytics."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import SMALL, demo_checkpoint, demo_image, demo_images, lowering, synthetic_statistics

from qexport.backends.info import profile_for
from qexport.backends.onnxruntime.backend import OnnxBackend, integer_kernels, optimised
from qexport.backends.registry import available_formats, find_backend
from qexport.calibration.calibrate import calibrate
from qexport.errors import ConversionError, MissingExtraError, VerificationError
from qexport.lowering.metadata import artifact_metadata
from qexport.lowering.stored import StoredGraph
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME
from qexport.programs.onnx.session import OnnxRunner
from qexport.programs.program import Program
from qexport.programs.sample_inputs import sample_inputs
from qexport.system.machine import ARM, AVX2, VNNI, cpu_kind
from qexport.verification.coverage import check_coverage
from qexport.verification.verify import check_plan, verify

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
pytest.importorskip("onnxscript", reason="needs the extra qexport[onnx]")

CLEAR = 3
"""Validation image in which the model is sure of several objects, small as it is here."""


@dataclass(frozen=True)
class Lowered:
    path: Path
    plan: QuantPlan
    stored: StoredGraph
    metadata: dict[str, Any]


@pytest.fixture(scope="module")
def lowered(demo_program: Program, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """The end-to-end demo model at 96 pixels, calibrated on four images, for this machine."""
    backend = OnnxBackend()
    table = calibrate(demo_program, demo_images("train", 4), lambda: None)
    plan = make_plan(demo_program, table.statistics, profile_for(backend.info, "int8", cpu_kind()))
    path = tmp_path_factory.mktemp("onnx") / "demo_int8.onnx"
    metadata = artifact_metadata(demo_checkpoint(), demo_program, "int8", plan)
    backend.lower(lowering(demo_program, "int8", plan, metadata), path)
    return Lowered(path, plan, backend.read(path), metadata)


@pytest.fixture(scope="module")
def small(tiny: Program, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantPlan]:
    """The tiny detector, with the weights that any CPU computes with."""
    plan = make_plan(tiny, synthetic_statistics(tiny.values), profile_for(OnnxBackend.info, "int8", AVX2), "minmax")
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    OnnxBackend().lower(lowering(tiny, "int8", plan), path)
    return path, plan


def planned_share(program: Program, plan: QuantPlan) -> float:
    """Share of the multiply-accumulates that the plan gives to integer kernels."""
    total = sum(value.macs for value in program.values.values())
    return sum(value.macs for value in program.values.values() if value.name in plan.integer) / total


def quantised(plan: QuantPlan) -> int:
    return sum(not tensor.is_float for tensor in plan.tensors.values())


def test_the_backend_is_found_by_name() -> None:
    assert "onnx" in available_formats()
    backend = find_backend("onnx")
    assert (backend.info.name, backend.info.suffix, backend.info.dynamic, backend.info.timed) == (
        "onnx",
        ".onnx",
        True,
        True,
    )
    assert backend.info.precisions == {"fp32", "fp16", "int8", "int8-dynamic"}


def test_the_profile_depends_on_the_cpu() -> None:
    backend = OnnxBackend()
    assert profile_for(backend.info, "int8", VNNI) == ONNXRUNTIME
    of_arm = profile_for(backend.info, "int8", ARM)
    assert replace(of_arm, alternatives=ONNXRUNTIME.alternatives) == ONNXRUNTIME  # it only has more to try
    assert profile_for(backend.info, "int8", AVX2).saturating_pair_accumulation
    assert not profile_for(backend.info, "int8", VNNI).saturating_pair_accumulation


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_the_remedy(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qexport.plugins.find_spec", lambda name: None if name == package else object())
    with pytest.raises(MissingExtraError, match=rf"format onnx needs {package}: pip install 'qexport\[onnx\]'"):
        find_backend("onnx")


def test_the_small_file_holds_its_plan(tiny: Program, small: tuple[Path, QuantPlan]) -> None:
    path, plan = small
    stored = OnnxBackend().read(path)
    assert stored.complete
    assert check_plan(tiny, plan, stored) == quantised(plan)
    assert stored.tensors["images"].dtype == "uint8"
    assert stored.tensors["left_conv.weight"].dtype == "int8"


def test_multiply_accumulates_of_the_small_file_by_hand(small: tuple[Path, QuantPlan]) -> None:
    stored = OnnxBackend().read(small[0])
    stem, deep, left = 8 * 4 * 4 * 27, 8 * 2 * 2 * 72, 4 * 4 * 4 * 2
    neck, box, cls = 8 * 4 * 4 * 16, 4 * 4 * 4 * 8, 2 * 4 * 4 * 8
    attention = 2 * 4 * 4 * 8
    assert stored.integer_macs == stem + deep + left + neck + box + cls
    assert stored.total_macs == stored.integer_macs + attention
    assert stored.operators["Conv"] == 6
    assert stored.operators["MatMul"] == 2


def test_integer_kernels_are_named_by_their_values(small: tuple[Path, QuantPlan]) -> None:
    kernels = integer_kernels(optimised(small[0])[0])
    assert {f"{layer}_conv" for layer in ("stem", "left", "deep", "neck", "box", "cls")} <= kernels
    assert {"stem_sigmoid", "stem_mul", "program_add"} <= kernels
    assert not {"program_matmul", "program_matmul_2", "program_softmax", "decode_sigmoid", "output0"} & kernels


def test_a_float_file_has_no_integer_kernel(tiny: Program, tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    OnnxBackend().lower(lowering(tiny, "fp32"), path)
    stored = OnnxBackend().read(path)
    assert (stored.tensors, stored.integer_macs, stored.coverage) == ({}, 0, 0.0)
    assert stored.total_macs == sum(value.macs for value in tiny.values.values())
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = tiny.graph(image).numpy()
    np.testing.assert_allclose(OnnxRunner(path, 1)(image.numpy())[0], expected, atol=1e-4)


Tamper = Callable[[dict[str, np.ndarray[Any, Any]]], None]


def other_scale(constants: dict[str, np.ndarray[Any, Any]]) -> None:
    constants["deep_conv.scale"] = constants["deep_conv.scale"] * np.float32(1.001)


def other_zero_point(constants: dict[str, np.ndarray[Any, Any]]) -> None:
    constants["deep_conv.zero_point"] = constants["deep_conv.zero_point"] + np.uint8(1)


def signed(constants: dict[str, np.ndarray[Any, Any]]) -> None:
    constants["deep_conv.zero_point"] = constants["deep_conv.zero_point"].astype(np.int8)


def other_weight(constants: dict[str, np.ndarray[Any, Any]]) -> None:
    integers = constants["left.weight.quantised"].copy()
    integers[1, 0] += 1 if integers[1, 0] < 0 else -1
    constants["left.weight.quantised"] = integers


def other_channel(constants: dict[str, np.ndarray[Any, Any]]) -> None:
    scales = constants["left.weight.scale"].copy()
    scales[-1] *= 1.001
    constants["left.weight.scale"] = scales


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        (other_scale, r"deep_conv: scale"),
        (other_zero_point, r"deep_conv: zero point"),
        (signed, r"deep_conv: int8 instead of uint8"),
        (other_weight, r"left\.weight: weights are [01]\.\d\d steps away"),
        (other_channel, r"left\.weight: scale"),
    ],
)
def test_a_file_that_was_changed_is_found(
    tiny: Program, small: tuple[Path, QuantPlan], tmp_path: Path, tamper: Tamper, found: str
) -> None:
    model = onnx.load(small[0])
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    tamper(constants)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(constants[tensor.name], tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    stored = OnnxBackend().read(tmp_path / "changed.onnx")
    with pytest.raises(VerificationError, match=f"the file differs from the plan in {found}"):
        check_plan(tiny, small[1], stored)


def test_equal_inputs_give_equal_files(tiny: Program, small: tuple[Path, QuantPlan], tmp_path: Path) -> None:
    afresh = replace(tiny)  # keeps no export: that must be repeatable, not only what is done with it
    OnnxBackend().lower(lowering(afresh, "int8", small[1]), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == small[0].read_bytes()


def test_a_file_that_is_no_graph_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(ConversionError, match="ONNX Runtime cannot load the graph"):
        OnnxRunner(tmp_path / "broken.onnx", 1)


@pytest.mark.slow
def test_the_file_holds_its_plan_and_runs_in_integers(demo_program: Program, lowered: Lowered) -> None:
    assert check_plan(demo_program, lowered.plan, lowered.stored) == quantised(lowered.plan)
    assert lowered.stored.coverage == pytest.approx(planned_share(demo_program, lowered.plan), abs=1e-9)
    assert lowered.stored.coverage > 0.9
    assert lowered.stored.total_macs == sum(value.macs for value in demo_program.values.values())
    check_coverage(demo_program, lowered.plan, lowered.stored)
    convolutions = {v.name for v in demo_program.values.values() if v.weight and v.name in lowered.plan.integer}
    assert len(convolutions) == lowered.stored.operators["Conv"] - 3  # raw boxes
    assert convolutions <= integer_kernels(optimised(lowered.path)[0])


@pytest.mark.slow
def test_input_and_output_are_float(lowered: Lowered) -> None:
    model = onnx.load(lowered.path)
    shapes = [
        (v.type.tensor_type.elem_type, [d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [(onnx.TensorProto.FLOAT, [1, 3, *SMALL]), (onnx.TensorProto.FLOAT, [1, 189, 6])]


@pytest.mark.slow
def test_the_runtime_agrees_with_the_simulation_on_real_images(demo_program: Program, lowered: Lowered) -> None:
    inputs = sample_inputs(demo_images("val", 4), demo_program)
    found = verify(demo_program, lowered.plan, lowered.stored, OnnxBackend().runner(lowered.path, 2), inputs)
    assert (found.tensors, found.unnamed, found.images) == (quantised(lowered.plan), 0, 4)
    assert found.agreement is not None
    assert found.coverage == lowered.stored.coverage


@pytest.mark.slow
def test_metadata_are_what_ultralytics_reads(lowered: Lowered) -> None:
    from ultralytics.nn.backends.base import BaseBackend

    read = BaseBackend.read_metadata(lowered.path)
    assert set(read) == set(lowered.metadata)
    assert ast.literal_eval(read["names"]) == demo_checkpoint().names
    assert ast.literal_eval(read["imgsz"]) == [96, 96]
    assert (read["stride"], read["task"], read["batch"], read["channels"]) == ("32", "detect", "1", "3")
    assert (read["end2end"], read["dynamic"], read["precision"]) == ("True", "False", "int8")
    assert read["plan"] == lowered.plan.fingerprint


@pytest.mark.slow
def test_ultralytics_predicts_with_the_file(lowered: Lowered) -> None:
    from ultralytics.engine.results import Results
    from ultralytics.models import YOLO

    rows = OnnxRunner(lowered.path, 1)(demo_image(SMALL, CLEAR).numpy())[0][0]
    rows = rows[rows[:, 4] >= 0.25]
    assert len(rows) >= 1
    (result,) = YOLO(str(lowered.path), task="detect").predict(
        demo_images("val", CLEAR + 1)[CLEAR], imgsz=SMALL, conf=0.25, verbose=False, device="cpu"
    )
    assert isinstance(result, Results)
    assert result.names == demo_checkpoint().names
    assert result.boxes is not None
    np.testing.assert_allclose(result.boxes.conf.tolist(), rows[:, 4], atol=1e-3)
    assert result.boxes.cls.tolist() == rows[:, 5].tolist()
