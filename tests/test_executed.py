"""What is in a file and what a runtime makes of it: counted apart, for every way in which layers are fused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import captured, lowering, seeded, synthetic_statistics
from layer_graphs import BLOCKS, block

from qexport.backends.info import profile_for
from qexport.backends.protocol import LowersFloats
from qexport.backends.registry import find_backend
from qexport.errors import VerificationError
from qexport.lowering.stored import StoredGraph
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import FLOAT_AS_ASKED, make_plan
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program
from qexport.system.machine import VNNI, cpu_kind
from qexport.verification.coverage import check_coverage
from qexport.verification.outcome import Verification
from qexport.verification.verify import check_plan

pytest.importorskip("openvino", reason="needs the extra qexport[openvino]")
pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")

RUNTIMES = ("onnx", "openvino", "tensorrt")
FLOATS = {"FP32", "BF16", "FP16"}
LESS = {("openvino", "strided_point")}
"""(runtime, block) where kernels for some of what the file has in integers are missing."""


@cache
def program_of(name: str, folder: Path) -> Program:
    from qexport.programs.onnx.build import read_onnx

    path = block(name, folder / f"{name}.onnx")
    return read_onnx(path, CaptureOptions())[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blocks")


def written(
    program: Program, runtime: str, path: Path, kept: frozenset[str] = frozenset()
) -> tuple[QuantPlan, StoredGraph]:
    backend = find_backend(runtime)
    profile = profile_for(backend.info, "int8", "vnni")
    plan = make_plan(
        program, synthetic_statistics(program.values), profile, "percentile", dict.fromkeys(kept, FLOAT_AS_ASKED)
    )
    backend.lower(lowering(program, "int8", plan), path)
    return plan, backend.read(path)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_files_share_is_the_plans_whatever_the_runtime_fuses(
    name: str, runtime: str, folder: Path, tmp_path: Path
) -> None:
    program = program_of(name, folder)
    plan, stored = written(program, runtime, tmp_path / f"file{find_backend(runtime).info.suffix}")
    every = sum(value.macs for value in program.values.values())
    planned = sum(value.macs for value in program.values.values() if value.name in plan.integer)
    assert (stored.integer_macs, stored.total_macs) == (planned, every)
    assert check_coverage(program, plan, stored) == planned / every > 0.8
    check_plan(program, plan, stored)
    if runtime == "tensorrt":  # nothing here runs it
        assert not stored.arithmetic
    else:
        assert sum(stored.arithmetic.values()) == every
        assert set(stored.arithmetic) <= {"INT8", *FLOATS}
        if cpu_kind() == VNNI:  # others lack a kernel here and there
            assert (stored.arithmetic["INT8"] < planned) is ((runtime, name) in LESS)


def test_what_a_runtime_leaves_out_is_no_fault_of_the_file(folder: Path, tmp_path: Path) -> None:
    program = program_of("strided_point", folder)
    plan, stored = written(program, "openvino", tmp_path / "file")
    # By hand: 16·16 pixels · 16 · 27 and · 16 · 144, then 8·8 · 32 · 16 in another type, 8·8 · 8 · 288.
    strided = 8 * 8 * 32 * 16
    every = 16 * 16 * 16 * (27 + 144) + strided + 8 * 8 * 8 * 288
    assert stored.total_macs == every
    assert stored.coverage == pytest.approx(1 - strided / every)
    share = check_coverage(program, plan, stored)
    assert share == 1.0
    assert Verification(1, 0, 1.0, 1, stored.coverage, planned_coverage=share).runs_less
    assert not Verification(1, 0, 1.0, 1, share, planned_coverage=share).runs_less


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_layer_that_the_file_has_in_floats_is_refused(runtime: str, folder: Path, tmp_path: Path) -> None:
    program = program_of("residual", folder)
    suffix = find_backend(runtime).info.suffix
    plan, _ = written(program, runtime, tmp_path / f"file{suffix}")
    layer = next(value for value in reversed(program.values.values()) if value.weight)
    _, stored = written(program, runtime, tmp_path / f"less{suffix}", frozenset({layer.name}))
    with pytest.raises(VerificationError, match=r"86\.4% of the arithmetic is in integers, 100\.0% was planned"):
        check_coverage(program, plan, stored)


class Scaled(torch.nn.Module):
    """LayerScale and RepVGG's branches in a checkpoint."""

    def __init__(self) -> None:
        from conftest import TinyDecode

        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.deep, self.side = torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.Conv2d(16, 16, 1)
        self.gamma, self.factor = torch.nn.Parameter(torch.ones(16, 1, 1)), torch.nn.Parameter(torch.ones(1))
        self.box, self.cls = torch.nn.Conv2d(16, 4, 1), torch.nn.Conv2d(16, 2, 1)
        self.decode = TinyDecode()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.silu(self.stem(images))
        x = torch.nn.functional.silu(x + self.gamma * self.deep(x) + self.factor * self.side(x))
        decoded: torch.Tensor = self.decode(self.box(x), self.cls(x))
        return decoded


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_scaled_layers_of_a_checkpoint_run_in_integers(runtime: str, tmp_path: Path) -> None:
    program = captured(seeded(Scaled()), (16, 16))
    plan, stored = written(program, runtime, tmp_path / f"file{find_backend(runtime).info.suffix}")
    assert dict(stored.arithmetic) == {"INT8": 16 * 16 * 16 * (27 + 144 + 16 + 4 + 2)}
    assert check_coverage(program, plan, stored) == 1.0


def test_kernels_are_told_apart_by_their_names() -> None:
    from qexport.backends.openvino.read import _arithmetic

    for kernel, precision, expected in (
        ("brgconv_avx512_amx_I8", "u8", "INT8"),
        ("jit_avx512_dw_I8", "i8", "INT8"),
        ("brgconv_avx512_amx_1x1_bf16", "bf16", "BF16"),
        ("brgemm_avx512_f16", "f16", "FP16"),
        ("jit_gemm_f32", "f32", "FP32"),
        ("gemm_acl_any", "f16", "FP16"),
        ("ref_any", "f32", "FP32"),
    ):
        assert _arithmetic({"primitiveType": kernel, "runtimePrecision": precision}) == expected


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-dynamic"])
def test_fp32_files_are_computed_in_fp32_and_others_as_the_plugin_has_it(
    folder: Path, tmp_path: Path, precision: str
) -> None:
    from qexport.backends.openvino.backend import OpenVINOBackend, OpenVINORunner, compiled

    backend, path = OpenVINOBackend(), tmp_path / "file_openvino_model"
    backend.lower(lowering(program_of("residual", folder), precision), path)
    (every,) = {sum(value.macs for value in program_of("residual", folder).values.values())}
    preferred = OpenVINORunner(path, 1, exact=False).float_type
    expected = "FP32" if precision == "fp32" else preferred
    assert dict(backend.read(path).arithmetic) == {expected: every}
    assert backend.runner(path, 1).float_type == expected
    hint = compiled(path, 1).get_property("INFERENCE_PRECISION_HINT").get_type_name()
    assert hint == {"FP32": "f32", "BF16": "bf16", "FP16": "f16"}[expected]
    assert isinstance(backend, LowersFloats)
    if precision == "fp32":
        found = backend.by_default(path, 1)
        assert (found[0] if found else "FP32") == preferred


@pytest.mark.parametrize(
    ("precision", "expected"), [("fp32", {"FP32"}), ("fp16", {"FP32"}), ("int8-dynamic", {"FP32"})]
)
def test_onnx_runtime_computes_floats_in_fp32_on_x86_whatever_the_file_stores(
    folder: Path, tmp_path: Path, precision: str, expected: set[str]
) -> None:
    import platform

    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("other CPUs have FP16 kernels")
    backend, path = find_backend("onnx"), tmp_path / "file.onnx"
    backend.lower(lowering(program_of("residual", folder), precision), path)
    assert set(backend.read(path).arithmetic) == expected


def test_tensorrt_takes_outputs_that_are_indices() -> None:
    import onnx_ir as ir

    from qexport.backends.tensorrt.rules import broken_rules

    for kind, good in ((ir.DataType.INT64, True), (ir.DataType.BOOL, True), (ir.DataType.FLOAT16, False)):
        given = ir.Value(name="x", type=ir.TensorType(kind), shape=ir.Shape([1]))
        model = ir.Model(ir.Graph([given], [given], nodes=[], opset_imports={"": 19}), ir_version=9)
        assert (not broken_rules(model)) is good


def test_shares_and_their_words() -> None:
    from qexport.reporting.runtime_facts import listed_arithmetic

    assert listed_arithmetic({"FP32": 1.0}) == "FP32"
    assert listed_arithmetic({"BF16": 0.037, "INT8": 0.963}) == "INT8 96.3 %, BF16 3.7 %"
    assert listed_arithmetic({"INT8": 0.99999, "FP32": 0.00001}) == "INT8"
    assert np.isclose(StoredGraph({}, 5, 10, {}, arithmetic={"INT8": 3, "INT16": 1, "FP32": 6}).coverage, 0.4)
    assert StoredGraph({}, 5, 10, {}).coverage == 0.5
