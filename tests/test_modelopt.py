"""Checkpoints of Ultralytics' quantisation-aware training, made of plain tensors as ModelOpt 0.47 leaves them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import demo_images, synthetic_statistics
from small_models import Call, saved, small_model

import qexport
from qexport import pipeline
from qexport.checkpoints.checkpoint import UNREADABLE, load_checkpoint
from qexport.clock import Clock
from qexport.data.selection import RunImages
from qexport.execution.executor import Inline, Task
from qexport.job.options import ExportJob
from qexport.opening import Run
from qexport.planning.layer_ranges import SOURCE, told, values_of_layers
from qexport.planning.learned_ranges import LearnedRanges
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, OPENVINO, TENSORRT, TFLITE, RuntimeProfile
from qexport.programs.build import Source
from qexport.progress import Silent
from qexport.steps.build import build

BEHIND = ("model.1.conv", "model.2.conv", "model.3.conv")
PEAKS = {"model.0.conv": 1.0, "model.1.conv": 1.5, "model.2.conv": 1.25, "model.3.conv": 1.75}
"""Largest magnitudes of what layers read: each reads the SiLU of the one before, which reaches further."""
WIDTH = 0.75
"""Largest magnitude of every channel of every weight, before normalisation is folded in."""
GAMMA, VARIANCE = -1.5, 0.25
"""Of every normalisation: weights become -1.5 / 0.5 = -3 times what they are."""


def setting(**others: Any) -> dict[str, Any]:
    """What ModelOpt keeps of a quantiser, as far as it says anything of its range."""
    return {
        "_disabled": False,
        "_num_bits": 8,
        "_unsigned": False,
        "_narrow_range": False,
        "_block_sizes": None,
        "_axis": None,
        "_bias": None,
        "_dynamic": False,
        "_rotate": False,
        "_pytorch_state_metadata": {"buffers": {"_amax": {"shape": torch.Size([]), "dtype": torch.float32}}},
        **others,
    }


def trained(settings: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """What Ultralytics keeps under `modelopt`; the first state is from before calibration, when all was disabled."""
    ranges, found = {}, {}
    for path, peak in PEAKS.items():
        channels = 8 if path < "model.2" else 16
        ranges[f"{path}.input_quantizer._amax"] = torch.tensor(peak)
        ranges[f"{path}.weight_quantizer._amax"] = torch.full((channels, 1, 1, 1), WIDTH)
        for kind in ("input", "weight", "output"):
            found[f"{path}.{kind}_quantizer"] = setting(_disabled=kind == "output")
    found |= settings or {}
    before = {name: setting(_disabled=True) for name in found}
    states = [
        ("quantize", {"config": {}, "metadata": {"quantizer_state": before}}),
        ("max_calibrate", {"config": {}, "metadata": {"quantizer_state": found}}),
    ]
    return {"modelopt": {"modelopt_state_dict": states, "modelopt_version": "0.47.0"}, "ranges": ranges}


def normalised() -> Any:
    model = small_model()
    for number in range(4):
        bn = model.model[number].bn
        bn.weight.data.fill_(GAMMA)
        bn.running_var.fill_(VARIANCE)
        bn.eps = 0.0
    return model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = saved(normalised(), tmp_path_factory.mktemp("qat") / "qat.pt", modelopt=trained())
    return qexport.read_model(path, imgsz=64)


@pytest.fixture(scope="module")
def learned(source: Source) -> LearnedRanges:
    assert source.checkpoint.ranges is not None
    return values_of_layers(source.checkpoint.ranges, source.program)


@pytest.mark.parametrize("trust", [False, True])
def test_ranges_are_read_and_weights_are_folded_as_their_layers(trust: bool, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved(normalised(), tmp_path / "qat.pt", modelopt=trained()), trust)
    assert checkpoint.notes == ()
    assert checkpoint.ranges is not None
    assert checkpoint.ranges.inputs == PEAKS
    assert checkpoint.ranges.left_out == ()
    counts = {"model.0.conv": 8, "model.1.conv": 8, "model.2.conv": 16, "model.3.conv": 16}
    assert checkpoint.ranges.weights == {path: (3 * WIDTH,) * count for path, count in counts.items()}


def test_what_is_disabled_or_of_another_kind_is_left_out(tmp_path: Path) -> None:
    """Of layer 1 both are off, layer 2 reads four bits, and the weight of layer 3 is cut into blocks."""
    state = trained(
        {
            "model.1.conv.input_quantizer": setting(_disabled=True),
            "model.1.conv.weight_quantizer": setting(_disabled=True),
            "model.2.conv.input_quantizer": setting(_num_bits=4),
            "model.3.conv.weight_quantizer": setting(_block_sizes={-1: 16}),
        }
    )
    state["ranges"]["model.0.conv.weight_quantizer._amax"] = torch.full((7, 1, 1, 1), WIDTH)
    ranges = load_checkpoint(saved(normalised(), tmp_path / "qat.pt", modelopt=state)).ranges
    assert ranges is not None
    assert ranges.inputs.keys() == {"model.0.conv", "model.3.conv"}
    assert ranges.weights.keys() == {"model.2.conv"}
    assert set(ranges.left_out) == {
        "model.0.conv.weight_quantizer",
        "model.2.conv.input_quantizer",
        "model.3.conv.weight_quantizer",
    }


def test_nothing_that_hides_among_the_ranges_is_run(tmp_path: Path) -> None:
    state = trained()
    state["ranges"]["model.1.conv.input_quantizer._amax"] = Call(os.mkdir, str(tmp_path / "run"))
    checkpoint = load_checkpoint(saved(normalised(), tmp_path / "qat.pt", modelopt=state))
    assert checkpoint.ranges is None
    (note,) = checkpoint.notes
    assert note.startswith(UNREADABLE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("profile", [TFLITE, ONNXRUNTIME, OPENVINO, TENSORRT])
def test_learned_ranges_are_those_of_the_plan(source: Source, learned: LearnedRanges, profile: RuntimeProfile) -> None:
    """A SiLU ends at -0.2785: where integers need not be symmetric, nothing is spent below."""
    program = source.program
    plan = make_plan(program, synthetic_statistics(program.values), profile, learned=learned)
    for path in BEHIND:
        (layer,) = (value for value in program.values.values() if value.weight == f"{path}.weight")
        read, weight = plan.tensors[layer.inputs[0]], plan.tensors[layer.weight]
        span = PEAKS[path] / 127 if profile.symmetric_activations else (PEAKS[path] + 0.2785) / 255
        assert read.scale == pytest.approx((span,), rel=1e-3)
        assert read.why.startswith(SOURCE)
        assert weight.scale == pytest.approx((3 * WIDTH / 127,) * len(weight.scale), rel=1e-3)
    assert told(plan, learned).startswith(f"8 ranges {SOURCE} are used")


def test_what_a_runtime_needs_wider_is_said(source: Source, learned: LearnedRanges) -> None:
    """Of one layer the weight's scale is made wider, and its input reaches further."""
    program = source.program
    plan = make_plan(program, synthetic_statistics(program.values), TENSORRT, learned=learned)
    read = next(value.inputs[0] for value in program.values.values() if value.weight == "model.2.conv.weight")
    tensors = dict(plan.tensors)
    for name in (read, "model.2.conv.weight"):
        known = tensors[name]
        tensors[name] = replace(known, scale=tuple(2 * scale for scale in known.scale), why="it has to fit")
    line = told(replace(plan, tensors=tensors), learned)
    assert line.endswith(
        f"2 have wider ones in their place ({read}: it has to fit; model.2.conv.weight: it has to fit)"
    )
    assert line.startswith(f"6 ranges {SOURCE} are used")


def test_an_export_takes_the_ranges_and_no_pass_takes_them_away(source: Source, tmp_path: Path) -> None:
    images = tuple(demo_images("train", 2))
    table = qexport.calibrate(source.program, images)
    job = ExportJob(str(source.checkpoint.path), ("onnx",), int8=True, cpu="vnni", out=tmp_path)
    here = Inline({}, Silent())
    run = Run(job, source, RunImages(images), Task(len, ()), Clock(Silent()), here)
    asked = pipeline.request(run, "onnx", "int8", table)
    assert asked.passes
    built = build(source, asked)
    assert {record.reason for record in built.result.passes} == {"not run: weights and scales were learned in training"}
    assert built.result.warnings[0].startswith(f"8 ranges {SOURCE} are used as they are")
    plan = qexport.load_plan(asked.plan_path)
    assert np.allclose(plan.tensors["model.1.conv.weight"].scale, 3 * WIDTH / 127)
