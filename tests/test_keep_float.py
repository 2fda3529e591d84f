"""`--keep-float` in TFLite files with integer activations: the converter makes integers of what lies between some."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lowering, synthetic_statistics
from hard_numbers import layers, picture, seen

from qexport.backends.registry import find_backend
from qexport.errors import UsageError
from qexport.job.options import make_job
from qexport.planning.planner import FLOAT_AS_ASKED, make_plan
from qexport.planning.runtime_profiles import TFLITE, TFLITE_INT16, RuntimeProfile
from qexport.programs.program import INPUT, Program, Region
from qexport.simulation.rewrite import simulated
from qexport.steps.plan import make_target
from qexport.verification.coverage import check_coverage


def float_kernels(path: Path) -> set[str]:
    """Names of what operators compute of floats alone, by the schema and nothing of ours."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    tensors = model.subgraphs[0].tensors
    floats = schema.TensorType.FLOAT32
    return {
        tensors[operator.outputs[0]].name.decode().split(";")[0].removeprefix("qexport_")
        for operator in model.subgraphs[0].operators
        if all(tensors[index].type == floats for index in (*operator.inputs, *operator.outputs))
    }


@pytest.mark.parametrize(
    ("precision", "profile", "kept"),
    [("int8", TFLITE, ("point_conv",)), ("w8a16", TFLITE_INT16, ("first_conv",))],
)
def test_a_layer_between_integers_computes_in_float(
    precision: str, profile: RuntimeProfile, kept: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    program, backend, path = layers(), find_backend("tflite"), tmp_path / "a.tflite"
    plan = make_plan(program, seen(program), profile, "minmax", dict.fromkeys(kept, FLOAT_AS_ASKED))
    backend.lower(lowering(program, precision, plan), path)
    check_coverage(program, plan, backend.read(path))
    assert set(kept) <= float_kernels(path)
    assert "depthwise_conv" not in float_kernels(path)
    weight = program.graph.parameter("point.weight").numpy().tobytes()
    assert (weight in path.read_bytes()) == ("point_conv" in kept)
    with torch.no_grad():
        expected = simulated(program, plan)(picture()).numpy()
    actual = backend.runner(path, 1)(picture().numpy())[0]
    assert np.abs(actual - expected).max() < 0.03 * np.abs(expected).max()


def test_a_sum_between_integers_computes_in_float(tiny: Program, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    plan = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE, "minmax", {"program_add": FLOAT_AS_ASKED})
    find_backend("tflite").lower(lowering(tiny, "int8", plan), tmp_path / "a.tflite")
    assert "program_add" in float_kernels(tmp_path / "a.tflite")
    assert "program_add_2" not in float_kernels(tmp_path / "a.tflite")


@pytest.mark.parametrize(
    ("name", "package", "seed"),
    [
        *(("tflite", "litert_torch", seed) for seed in range(4)),
        ("onnx", "onnxruntime", 4),
        ("openvino", "openvino", 5),
    ],
)
def test_any_set_of_values_in_float_gives_what_the_plan_says(
    name: str, package: str, seed: int, tiny: Program, tmp_path: Path
) -> None:
    pytest.importorskip(package, reason=f"needs the extra qexport[{name}]")
    drawn, backend, profile = random.Random(seed), find_backend(name), make_target(name).profile
    assert profile is not None
    body = [value.name for value in tiny.values.values() if value.region is Region.BODY and value.name != INPUT]
    kept = dict.fromkeys(drawn.sample(body, len(body) * (2 + seed % 2) // 5), FLOAT_AS_ASKED)
    plan = make_plan(tiny, seen(tiny), profile, "minmax", kept)
    assert plan.integer
    assert not plan.integer & kept.keys()
    path = tmp_path / f"a{backend.info.suffix}"
    backend.lower(lowering(tiny, "int8", plan), path)
    check_coverage(tiny, plan, backend.read(path))
    with torch.no_grad():
        expected = simulated(tiny, plan)(picture()).numpy()
    actual = backend.runner(path, 1)(picture().numpy())[0]
    assert np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("fp32", "--keep-float and --precision fp32 exclude each other: all of it is float already"),
        ("int8-full", "--keep-float and --precision int8-full exclude each other: it has no float"),
    ],
)
def test_where_nothing_could_be_kept_it_is_refused(precision: str, words: str) -> None:
    options = {"model": "a.pt", "precision": precision, "data": "coco8.yaml", "keep_float": "x"}
    with pytest.raises(UsageError, match=words):
        make_job(options)
