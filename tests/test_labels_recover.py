"""Training by labels wins back what weights of four bits lose, as a test of the training itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import DEMO, SMALL, demo_checkpoint, demo_images

from qexport.calibration.calibrate import calibrate
from qexport.data.dataset import load_dataset
from qexport.data.evaluation_set import EvaluationSet, make_evaluation_set
from qexport.measurement.accuracy import evaluate
from qexport.measurement.simulated import SimulatedRunner
from qexport.optimisation.candidate import Candidate
from qexport.planning.arithmetic import IntegerType
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import OPENVINO
from qexport.programs.captured_graph import shared_copy
from qexport.programs.program import Program
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert
from qexport.steps.train import train
from qexport.training.images import Images
from qexport.training.labelled_images import labelled
from qexport.training.recipe import Recipe

SHAPES = DEMO / "shapes" / "shapes.yaml"
pytestmark = pytest.mark.slow


class FourBits(TensorQuant):
    """A weight of 15 integers."""

    @property
    def kind(self) -> IntegerType:
        """See `TensorQuant`."""
        return IntegerType("int4", -7, 7)


def four_bits(plan: QuantPlan) -> QuantPlan:
    def fewer(tensor: TensorQuant) -> TensorQuant:
        if tensor.axis is None:
            return tensor
        scales = tuple(float(np.float32(scale * 127 / 7)) for scale in tensor.scale)
        return FourBits("int8", scales, tensor.zero_point, tensor.axis)

    return replace(plan, tensors={name: fewer(tensor) for name, tensor in plan.tensors.items()})


def accuracy(program: Program, plan: QuantPlan | None, data: EvaluationSet) -> float:
    """mAP50-95 on images that are neither trained nor judged on."""
    graph = insert(program, plan, Fused) if plan else shared_copy(program)
    found = evaluate(SimulatedRunner(graph), program.layout, "detect", data, batch=program.input.batch).map
    assert found is not None
    return found


def test_labels_win_back_what_four_bits_lose(demo_program: Program, tmp_path: Path) -> None:
    program, images, data = demo_program, demo_images("train", 64), load_dataset(SHAPES)
    assert program.input.imgsz == SMALL
    names = dict(enumerate(data.names.values()))
    unseen = make_evaluation_set(data, demo_images("val", 100), tmp_path / "val", names)
    plan = make_plan(program, calibrate(program, images[:16], lambda: None).statistics, OPENVINO)
    start = Candidate(program, four_bits(plan), program)

    def with_labels(chosen: Sequence[Path], needed: bool) -> Images:
        folder = tmp_path / ("train" if needed else "held-out")
        return labelled(data, chosen, demo_checkpoint().task_spec, program, 8, 0, folder, needed=needed)

    recipe = Recipe(epochs=6, rate_weights=0.01, labels=0.5)
    trained = train(start, images, recipe=recipe, labelled=with_labels)
    whole, before = accuracy(program, None, unseen), accuracy(program, start.plan, unseen)
    after = accuracy(trained.candidate.program, trained.candidate.plan, unseen)
    assert before < 0.95 * whole
    assert after - before >= 0.5 * (whole - before), (whole, before, after, trained.record)
    assert (trained.record.end_labelled or 9) < (trained.record.start_labelled or 0)
