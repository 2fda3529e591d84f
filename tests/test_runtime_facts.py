"""What is said of files and runtimes: versions, types of arithmetic, latency by default, and nothing twice."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import lowering, synthetic_statistics
from layer_graphs import block
from onnx import helper

from qexport.backends.artifact import Artifact
from qexport.backends.info import profile_for
from qexport.backends.registry import find_backend
from qexport.errors import VerificationError
from qexport.measurement.latency import Latency
from qexport.measurement.measure import Figures
from qexport.measurement.peaks import RuntimePeaks
from qexport.planning.planner import make_plan
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program
from qexport.reporting.assemble import artifact_report, failure_of
from qexport.reporting.load import report_of
from qexport.reporting.report import ArtifactReport, DefaultRun, LatencyInfo, Warning
from qexport.verification.outcome import Verification
from qexport.verification.output_fidelity import Comparison
from qexport.verification.result import ArtifactResult, Summary

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")

FP32 = Artifact(Path("m_fp32_openvino_model"), "openvino", "fp32", "0", 4_000_000)
INT8 = Artifact(Path("m_int8_openvino_model"), "openvino", "int8", "1", 1_000_000)
LOADS = """
import sys, onnxruntime
for path in sys.argv[1:]:
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
"""


def lowered(program: Program, name: str, precision: str, path: Path, opset: int | None = None) -> Path:

    backend = find_backend(name)
    plan = None
    if precision in backend.info.profiles:
        profile = profile_for(backend.info, precision, "vnni")
        plan = make_plan(program, synthetic_statistics(program.values), profile, "minmax")
    backend.lower(lowering(program, precision, plan, {"precision": precision, "end2end": False}, opset=opset), path)
    return path


def from_file(name: str, folder: Path) -> Program:
    from qexport.programs.onnx.build import read_onnx

    path = block(name, folder / f"{name}.onnx")
    return read_onnx(path, CaptureOptions())[1]


def test_no_file_makes_onnx_runtime_talk(tiny: Program, tmp_path: Path) -> None:
    """Upsampling, biases, classifiers: whatever was replaced leaves nothing behind that is removed on each load."""
    programs = {"tiny": tiny, **{name: from_file(name, tmp_path) for name in ("classifier", "squeeze_excite")}}
    kinds = [("onnx", each) for each in ("fp32", "fp16", "int8", "int8-dynamic")]
    kinds += [("tensorrt", "fp32"), ("tensorrt", "fp16")]
    shared = kinds[2:4]  # FP16 and another operator set of a checkpoint are exports of their own, which take seconds
    files = [
        lowered(program, name, precision, tmp_path / f"{model}_{name}_{precision}.onnx")
        for model, program in programs.items()
        for name, precision in (shared if model == "tiny" else kinds)
    ]
    for file in files:
        graph = onnx.load(file).graph
        read = {name for node in graph.node for name in node.input}
        assert not [tensor.name for tensor in graph.initializer if tensor.name not in read], file.name
    found = subprocess.run(
        [sys.executable, "-c", LOADS, *map(str, files)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (found.stderr, found.returncode) == ("", 0)


def test_the_lowest_operator_set_that_is_needed_is_written(tiny: Program, tmp_path: Path) -> None:
    # Split and Resize are those of 18, Identity is that of 16, Q/DQ with an axis of 13, a convolution of 11.
    cases = [
        (tiny, "fp32", None, 18, 8, "1.14"),
        (from_file("classifier", tmp_path), "int8", None, 16, 8, "1.11"),
        (from_file("unbiased", tmp_path), "fp32", None, 16, 8, "1.11"),
        (from_file("unbiased", tmp_path), "fp32", 21, 21, 10, "1.18"),
    ]
    for number, (program, precision, asked, opset, ir_version, runtime) in enumerate(cases):
        path = lowered(program, "onnx", precision, tmp_path / f"{number}.onnx", asked)
        proto = onnx.load(path)
        assert [(each.domain, each.version) for each in proto.opset_import] == [("", opset)]
        assert proto.ir_version == ir_version
        needs = find_backend("onnx").read(path).needs
        assert needs == {"ONNX Runtime": runtime, "operator set": str(opset), "IR version": str(ir_version)}


def test_lower_labels_change_no_operator() -> None:
    from qexport.lowering.onnx.needs import label_lowest

    for kind, opset, expected in (("Relu", 20, 14), ("Gelu", 20, 20), ("Conv", 18, 11), ("Split", 18, 18)):
        node = helper.make_node(kind, ["a"], ["b"])
        proto = helper.make_model(
            helper.make_graph([node], "g", [], []), opset_imports=[helper.make_opsetid("", opset)]
        )
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        label_lowest(proto)
        assert proto.opset_import[0].version == expected
        schemas = [onnx.defs.get_schema(kind, version, "").since_version for version in (opset, expected)]
        assert schemas[0] == schemas[1]
        assert proto.opset_import[1].version == 1


def test_what_other_files_need(tiny: Program, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra qexport[openvino]")
    from qexport.backends.openvino.read import needs_of

    path = lowered(tiny, "openvino", "int8", tmp_path / "m_openvino_model")
    needs = find_backend("openvino").read(path).needs
    assert needs["IR version"] == "11"
    assert needs["OpenVINO"] == {"opset11": "2023.0", "opset13": "2023.2"}.get(
        needs["operation set"], needs["OpenVINO"]
    )
    xml = '<net name="m" version="11"><layer version="opset1"/><layer version="{}"/>'
    for newest, release in (("opset4", "2022.1"), ("opset10", "2022.3"), ("opset15", "2024.5")):
        found = needs_of(xml.format(newest))
        assert found == {"OpenVINO": release, "operation set": newest, "IR version": "11"}
    assert needs_of(xml.format("opset99")) == {"operation set": "opset99", "IR version": "11"}
    program = from_file("unbiased", tmp_path)
    graph = find_backend("tensorrt").read(lowered(program, "tensorrt", "int8", tmp_path / "t.onnx"))
    assert graph.needs == {"TensorRT": "10.0", "operator set": "19", "IR version": "9"}


@pytest.mark.parametrize(
    ("noted", "kinds", "expected"),
    [
        (b"2.12.0", [], "2.12.0"),
        (b"2.3.0", ["INT16"], "2.6.0"),
        (b"1.14.0", ["FLOAT16"], "1.15.0"),
        (b"1.9.0", ["INT8 weights of float layers", "FLOAT16"], "2.4.0"),
        (b"2.10.0", ["INT16"], "2.10.0"),  # as numbers: 10 is more than 6
        (None, ["INT16"], None),
    ],
)
def test_the_version_that_a_tflite_file_needs(noted: bytes | None, kinds: list[str], expected: str | None) -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="needs the extra qexport[tflite]")
    from qexport.backends.tflite.needs import NOTE, needs_of

    model = schema.ModelT()
    model.version, model.metadata, model.buffers, model.operatorCodes = 3, [], [], []
    for builtin, version in ((schema.BuiltinOperator.CONV_2D, 3), (schema.BuiltinOperator.ADD, 2)):
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = builtin, version
        model.operatorCodes.append(code)
    if noted:
        entry, data = schema.MetadataT(), schema.BufferT()
        entry.name, entry.buffer, data.data = NOTE, 0, np.frombuffer(noted.ljust(16, b"\0"), np.uint8)
        model.metadata, model.buffers = [entry], [data]
    needs = needs_of(model, kinds)
    assert needs.get("TFLite") == expected
    assert (needs["schema"], needs["operators"]) == ("3", "ADD 2, CONV_2D 3")


def entries(
    int8_ms: float, lowered_ms: float | None = 5.0, peaks: RuntimePeaks | None = None
) -> tuple[ArtifactReport, ArtifactReport]:
    """A run of 200 million multiply-accumulates where FP32 takes 20 ms and the runtime would take BF16 by itself."""
    backend = find_backend("onnx")
    exact = Figures(
        latency=Latency(20.0, 21.0, 19.0, 36),
        by_default=None if lowered_ms is None else ("BF16", Latency(lowered_ms, 6.0, 4.5, 36)),
    )
    small = Figures(latency=Latency(int8_ms, int8_ms + 0.1, int8_ms, 36))
    checked = Verification(10, 0, 0.99, 4, 0.91, planned_coverage=1.0)
    mixed = {"INT8": 0.91, "BF16": 0.09}
    written = [
        ArtifactResult(INT8, backend, checked, stored=Summary(mixed, {"OpenVINO": "2023.0"}, 200_000_000)),
        ArtifactResult(FP32, backend, stored=Summary({"FP32": 1.0}, {"OpenVINO": "2022.1"})),
    ]
    return artifact_report(written[0], small, exact, peaks=peaks), artifact_report(written[1], exact, peaks=peaks)


def test_a_file_beside_the_peak_of_what_it_is_computed_in() -> None:
    peaks = RuntimePeaks("openvino", {"FP32": 2e10, "BF16": 5e10, "INT8": 1e11})
    small, exact = entries(4.0, peaks=peaks)
    # 182 million at 100 a microsecond and 18 million at 50: 1.82 and 0.36 ms of 4
    assert (small.peak_share, exact.peak_share) == (0.545, None)  # nobody counted the other's
    without = RuntimePeaks("openvino", {"FP32": 2e10, "INT8": 1e11})
    assert entries(4.0, peaks=without)[0].peak_share is None
    assert entries(4.0)[0].peak_share is None


def test_where_int8_loses_the_warning_says_what_doctor_measured() -> None:
    peaks = RuntimePeaks("openvino", {"FP32": 2e10, "INT8": 2.2e10})
    (told,) = [each.text for each in entries(40.0, None, peaks)[0].warned("latency")]
    assert told == (
        "openvino runs float32 files faster than int8 on this CPU; bare convolutions in INT8 are 1.10× as fast as "
        "in FP32 there, by qexport doctor"
    )
    (told,) = [each.text for each in entries(40.0, None)[0].warned("latency")]
    assert told == "openvino runs float32 files faster than int8 on this CPU"


def test_speed_up_is_against_fp32_and_beside_it_against_what_the_runtime_takes() -> None:
    small, exact = entries(4.0)
    assert (small.speedup, small.speedup_by_default) == (5.0, 1.25)
    assert exact.by_default == DefaultRun("BF16", LatencyInfo(5.0, 6.0, 4.5))
    assert (small.by_default, exact.speedup_by_default) == (None, None)
    assert small.arithmetic == {"INT8": 0.91, "BF16": 0.09}
    assert not [warning for warning in small.warnings if "faster" in warning.text]
    slow, _ = entries(8.0)
    assert (slow.speedup, slow.speedup_by_default) == (2.5, 0.625)
    told = "openvino runs float32 files faster than int8 on this CPU if nobody asks for FP32: in BF16"
    assert slow.warned("latency") == (Warning("latency", told),)
    same, alone = entries(4.0, None)
    assert (same.speedup_by_default, alone.by_default) == (None, None)


def test_what_a_runtime_leaves_out_is_a_warning_with_its_figure() -> None:
    small, _ = entries(4.0)
    (warning,) = [each for each in small.warned("artifact") if "integers" in each.text]
    assert "openvino runs 91.0% of the arithmetic in integers on this CPU, the file has 100.0%" in warning.text


def test_an_fp16_file_that_runs_in_fp32_says_so() -> None:
    backend = find_backend("onnx")
    half = Artifact(Path("m_fp16.onnx"), "onnx", "fp16", "2", 2_000_000)
    for kind, told in (("FP32", True), ("FP16", False), ("BF16", False)):
        item = ArtifactResult(half, backend, stored=Summary({kind: 1.0}, {}))
        found = artifact_report(item, Figures())
        assert any("computes FP16 files in FP32" in each.text for each in found.warnings) is told


def test_terminal_and_page_show_it() -> None:
    from sample_report import sample_report

    from qexport.cli.terminal import _runs
    from qexport.reporting.page.render import render

    small, exact = entries(4.0)
    assert _runs(small) == (
        "m_int8_openvino_model: computed in INT8 91.0 %, BF16 9.0 %; "
        "1.25× as fast as FP32 where nobody asks for FP32; needs OpenVINO 2023.0"
    )
    assert "computed in FP32; 5.0 ms in BF16, which the runtime takes where nobody asks for FP32" in _runs(exact)
    listed = replace(small, needs={"TFLite": "2.3.0", "operators": "ADD 2"})
    assert _runs(listed).endswith("needs TFLite 2.3.0")
    page = render(replace(report_of(sample_report()), artifacts=(small, exact)))
    for shown in ("Computed in BF16", "9.0", "where nobody asks for FP32", "Needs OpenVINO", "2023.0"):
        assert shown in page


@pytest.mark.parametrize(
    ("format_", "reason", "expected"),
    [
        ("openvino", "openvino: only 38% agree", "only 38% agree"),
        ("openvino", "openvino: openvino: twice", "twice"),
        ("tflite", "tflite_int8-full: the file differs", "the file differs"),
        ("onnx", "onnx cannot do this: that", "onnx cannot do this: that"),
        ("onnx", "openvino: of another", "openvino: of another"),
    ],
)
def test_a_failures_format_is_said_once(format_: str, reason: str, expected: str) -> None:
    failure = failure_of(format_, VerificationError(reason, "report it"))
    assert (failure.format, failure.reason, failure.exit_code) == (format_, f"{expected}: report it", 6)


@pytest.mark.parametrize("shape", [(1, 5), (8400, 6), (1, 16, 8, 8), (537600,), ()])
def test_images_are_counted_by_what_went_in(shape: tuple[int, ...]) -> None:
    comparison = Comparison("out")
    for _ in range(3):
        comparison.add(np.ones(shape), np.ones(shape), 2)
    assert comparison.fidelity.images == 6
    assert comparison.fidelity.cosine == pytest.approx(1.0)
