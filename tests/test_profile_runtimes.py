"""What `make bench-profile` makes of profiles: of traces made by hand, with sums that are known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
nodes = pytest.importorskip("profile_nodes")
runtimes = pytest.importorskip("profile_runtimes")
litert = pytest.importorskip("litert_profiler")


def event(name: str, operator: str, microseconds: int, given: list[str], found: str) -> dict[str, Any]:
    """One node of ONNX Runtime's trace."""
    shapes = {"input_type_shape": [{kind: [1, 8]} for kind in given], "output_type_shape": [{found: [1, 8]}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": operator, **shapes}}


def trace(slower: int) -> list[dict[str, Any]]:
    """A run whose nodes take `slower` microseconds more than they have to."""
    return [
        {"cat": "Session", "name": "model_run", "dur": 9999},
        event("stem_conv_nchwc", "Conv", 3000 + slower, ["float"], "float"),
        event("stem.quantised", "QuantizeLinear", 500 + slower, ["float", "float", "uint8"], "uint8"),
        event("a_conv_token_12", "QLinearConv", 2000 + slower, ["uint8", "float"], "uint8"),
        event("a_sigmoid", "QLinearSigmoid", 400 + slower, ["uint8", "float"], "uint8"),
        event("join", "QLinearConcat", 100 + slower, ["float", "uint8"], "uint8"),
        event("b_conv_nchwc_token_3", "FusedConv", 1000 + slower, ["float"], "float"),
        event("best", "TopK", 50 + slower, ["float"], "float"),
        event("rows", "QGemm", 70 + slower, ["uint8"], "uint8"),
    ]


def by_part(found: list[Any]) -> dict[str, Any]:
    """Milliseconds of each part."""
    parts = {node.part for node in found}
    return {part: pytest.approx(sum(n.milliseconds for n in found if n.part == part)) for part in parts}


def test_a_trace_is_summed_by_what_nodes_are_there_for_and_by_their_quickest_run() -> None:
    kernels = {"stem_conv": nodes.FIRST, "a_conv": nodes.WIDE, "b_conv": nodes.DEPTHWISE, "rows": nodes.POINTWISE}
    found = nodes.of_trace([*trace(0), *trace(90), *trace(7)], kernels)
    assert [(n.operator, n.kernel) for n in found if n.part == nodes.LAYERS] == [
        ("Conv", nodes.FIRST),
        ("Conv", nodes.WIDE),
        ("Conv", nodes.DEPTHWISE),
        ("Gemm", nodes.POINTWISE),
    ]
    assert [n.name for n in found if n.integer] == ["a_conv_token_12", "a_sigmoid", "join", "rows"]
    expected = {nodes.LAYERS: 6.07, nodes.CONVERSIONS: 0.5, nodes.ELEMENTS: 0.4, nodes.MOVES: 0.1, nodes.REST: 0.05}
    assert by_part(found) == expected


def test_counters_say_by_their_kernel_what_computes() -> None:
    run = [
        ("image", "Subgraph", "jit_avx2_f32", 0.5),
        ("image_reordered", "Reorder", "jit_uni_I8", 0.6),
        ("stem", "Convolution", "jit_avx2_I8", 4.0),
        ("wide", "Convolution", "jit_avx2_I8", 2.0),
        ("point", "Convolution", "jit_avx2_1x1_I8", 1.0),
        ("point_in_float", "Convolution", "brgconv_avx2_1x1_f32", 0.25),
        ("deep", "GroupConvolution", "jit_avx2_I8", 0.75),
        ("product", "MatMul", "brgemm_avx2_f32", 0.3),
    ]
    slower = [(name, kind, kernel, 2 * milliseconds) for name, kind, kernel, milliseconds in run]
    found = nodes.of_counters([slower, run])
    layers = {n.name: (n.kernel, n.integer, n.milliseconds) for n in found if n.part == nodes.LAYERS}
    assert layers == {
        "stem": (nodes.FIRST, True, 4.0),
        "wide": (nodes.WIDE, True, 2.0),
        "point": (nodes.POINTWISE, True, 1.0),
        "point_in_float": (nodes.POINTWISE, False, 0.25),
        "deep": (nodes.DEPTHWISE, True, 0.75),
    }
    expected = {nodes.LAYERS: 8.0, nodes.CONVERSIONS: 0.6, nodes.ELEMENTS: 0.5, nodes.ATTENTION: 0.3}
    assert by_part(found) == expected


def test_events_of_a_delegate_are_nodes_and_the_delegate_itself_is_none() -> None:
    events = [
        ("Invoke", 1, 9000),
        ("TfLiteXNNPackDelegate", 2, 8000),
        ("Convert (NC)", 8, 100),
        ("Convolution (NHWC, QC8) IGEMM", 8, 4000),
        ("Invalid Unary Op", 8, 200),
        ("Fully Connected (NC, QS8, QC8W) GEMM", 4, 1000),
        ("Fully Connected (NC, F32) GEMM", 8, 30),
        ("Convolution (NHWC, F32) IGEMM", 8, 2000),
        ("Convolution (NHWC, QC8) DWConv", 8, 300),
        ("Slice (ND, X8)", 8, 60),
        ("TOPK_V2", 2, 50),
    ]
    run = litert.operators(events)
    assert len(run) == 9
    found = nodes.of_events([[(tag, milliseconds + 1) for tag, milliseconds in run], run])
    assert [(n.kernel, n.integer) for n in found if n.part == nodes.LAYERS] == [
        (nodes.FIRST, True),
        (nodes.POINTWISE, True),
        (nodes.POINTWISE, False),
        (nodes.WIDE, False),
        (nodes.DEPTHWISE, True),
    ]
    expected = {nodes.LAYERS: 7.33, nodes.CONVERSIONS: 0.1, nodes.ELEMENTS: 0.2, nodes.MOVES: 0.06, nodes.REST: 0.05}
    assert by_part(found) == expected


def test_runs_with_other_operators_are_no_runs_of_one_file() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        nodes.of_events([[("Add (ND)", 1.0)], []])


def test_rates_are_work_by_time_and_stand_beside_the_peak() -> None:
    def side(milliseconds: float) -> Any:
        first = nodes.Node("s", nodes.LAYERS, "Conv", nodes.FIRST, True, milliseconds)
        wide = nodes.Node("w", nodes.LAYERS, "Conv", nodes.WIDE, True, 3 * milliseconds)
        rest = nodes.Node("r", nodes.REST, "TopK", "", False, 2.0)
        return runtimes.Side((first, wide, rest), 6.0)

    peaks = {"FP32": 50e9, "INT8": 200e9}
    macs = {nodes.FIRST: 40_000_000, nodes.WIDE: 360_000_000}
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in runtimes.rate_rows(macs, side(4), side(2), peaks)
    ]
    assert rows[2:] == [
        ["measured peak", "", "50.0", "", "200.0", "", "0.25"],
        [nodes.FIRST, "40", "10.0", "20%", "20.0", "10%", "0.50"],
        [nodes.WIDE, "360", "30.0", "60%", "60.0", "30%", "0.50"],
        ["all", "400", "25.0", "50%", "50.0", "25%", "0.50"],
    ]
    told = " ".join(runtimes.sentences(side(4), side(2), peaks, macs))
    # 400 million at the peaks take 8 and 2 ms, all else 2 ms.
    assert "8.0 and 2.0 ms" in told
    assert "10.0 and 4.0 ms (0.40)" in told
