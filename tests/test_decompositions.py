"""Exporting directly and decomposing locally gives the very files that the converters' own ways give."""

from __future__ import annotations

from inspect import unwrap
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from conftest import lowering, synthetic_statistics
from small_models import small_model

from qexport.backends.tflite.backend import TFLiteBackend
from qexport.decode.metadata import tflite_metadata
from qexport.lowering import decompositions
from qexport.lowering import direct_export as exports
from qexport.lowering.onnx import export
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.capture import capture
from qexport.programs.heads import split_head
from qexport.programs.program import Program

pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")

pytestmark = [
    pytest.mark.skipif(
        not decompositions.is_tested("litert-torch", "torch"), reason="with other versions converters run as they are"
    ),
    pytest.mark.usefixtures("anew"),
]

converted = unwrap(export._export)  # other tests share its results


def both_ways(
    program: Program, plan: QuantPlan | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[bytes, bytes]:
    """The file written with local decompositions, and with the converter's own."""
    metadata = {"end2end": True}
    calls: list[str] = []
    original, export = decompositions.run_decompositions, exports.exported_program

    def counted(*given: Any, **named: Any) -> object:
        calls.append("")
        return original(*given, **named)

    def directly(*given: Any) -> object:
        calls.append("export")
        return export(*given)

    with monkeypatch.context() as patch:
        patch.setattr(decompositions, "run_decompositions", counted)
        patch.setattr(exports, "exported_program", directly)
        TFLiteBackend().lower(lowering(program, "int8" if plan else "fp32", plan, metadata), folder / "quick.tflite")
    assert calls == ["export", "", "", "", ""]  # it ran, decomposed four times, and came to its end
    with monkeypatch.context() as patch:
        patch.setattr(decompositions, "is_tested", lambda *_: False)
        TFLiteBackend().lower(lowering(program, "int8" if plan else "fp32", plan, metadata), folder / "own.tflite")
    return (folder / "quick.tflite").read_bytes(), (folder / "own.tflite").read_bytes()


@pytest.mark.slow
def test_a_head_that_chooses_in_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end-to-end head has operators that no layer in front of it has; the converter's own way takes its time."""
    size = (64, 64)
    program = capture(split_head(small_model("Detect", end2end=True, reg_max=1), "end2end", size), size)
    plan = make_plan(program, synthetic_statistics(program.values), TFLITE)
    quick, own = both_ways(program, plan, tmp_path, monkeypatch)
    assert quick == own


def test_hand_made_model_in_float(tiny: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, own = both_ways(tiny, None, tmp_path, monkeypatch)
    assert quick == own


def test_attention_in_integers(tiny: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE, "minmax")
    quick, own = both_ways(tiny, plan, tmp_path, monkeypatch)
    assert quick == own


def test_the_converters_own_way_is_taken_where_the_quick_one_fails(
    tiny: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(decompositions, "run_decompositions", broken)
    notes: list[str] = []
    TFLiteBackend().lower(lowering(tiny, "fp32", warn=notes.append), tmp_path / "a.tflite")
    assert notes == ["converted the slow way, because the quick one failed (RuntimeError: planted)"]
    assert tflite_metadata(tmp_path / "a.tflite").items() >= {"precision": "fp32", "end2end": True}.items()


def nodes(model: ir.Model) -> list[Any]:
    """Each node's operator, inputs, results and attributes; of constants, whose names differ, what they hold."""
    held = {name: value.const_value for name, value in model.graph.initializers.items()}

    def named(value: ir.Value | None) -> Any:
        constant = held.get(str(value.name)) if value is not None else None
        if constant is None:
            return value and value.name
        return str(constant.dtype), tuple(constant.shape), constant.numpy().tobytes()

    return [
        (
            *(node.op_type, [named(value) for value in node.inputs]),
            *([value.name for value in node.outputs], sorted(map(str, node.attributes.values()))),
        )
        for node in model.graph
    ]


@pytest.mark.parametrize("half", [False, True])
def test_onnx_graphs_are_those_of_the_exporters_own_way(
    half: bool, tiny: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (64, 64)
    drawn = capture(split_head(small_model("Detect", end2end=True, reg_max=1), "end2end", size), size)
    for program in (tiny, drawn):
        notes: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(export, "batch_shapes", lambda _: pytest.fail("it was traced once more"))
            quick = nodes(converted(program, 18, half, frozenset(), notes.append))
        with monkeypatch.context() as patch:
            patch.setattr(decompositions, "is_tested", lambda *_: False)
            assert quick == nodes(converted(program, 18, half, frozenset(), notes.append))
        assert notes == []


def test_the_exporters_own_way_is_taken_where_the_quick_one_fails(
    tiny: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(decompositions, "run_decompositions", broken)
    notes: list[str] = []
    assert len(converted(tiny, 18, False, frozenset(), notes.append).graph) > 10
    assert notes == ["exported the slow way, because the quick one failed (RuntimeError: planted)"]
