"""Heads of every task: the split program gives what Ultralytics' own export mode gives, untrained or not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from qexport.errors import InputError
from qexport.programs.capture import capture
from qexport.programs.classifier import classifier
from qexport.programs.heads import split_head
from qexport.programs.program import Program, every_output

SIZE = (64, 96)
BUILDERS = {
    "seg": "SegmentationModel",
    "pose": "PoseModel",
    "obb": "OBBModel",
}
EXTRAS = {"seg": ("coefficients", 32), "pose": ("keypoints", 51), "obb": ("angles", 1)}
HEADS = (("yolo26n", "end2end"), ("yolo26n", "one2many"), ("yolov8n", "one2many"))
CASES = [(family, task, head) for task in BUILDERS for family, head in HEADS]


def built(name: str, builder: str) -> Any:
    """A model of Ultralytics with seeded weights."""
    from ultralytics.nn import tasks

    torch.manual_seed(0)
    model = getattr(tasks, builder)(f"{name}.yaml", verbose=False).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def exported(model: Any, images: Tensor, head: str) -> tuple[Tensor, ...]:
    """What the model gives in Ultralytics' own export mode."""
    twin = copy.deepcopy(model)
    if head != "classifier":
        twin.model[-1].end2end = head == "end2end"
    twin.fuse(verbose=False)
    twin.model[-1].export = True
    with torch.no_grad():
        return every_output(twin.eval()(images))


def images() -> Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("family", "task", "head"), CASES, ids=["-".join(case) for case in CASES])
def test_the_program_is_what_ultralytics_exports(family: str, task: str, head: str) -> None:
    model = built(f"{family}-{task}", BUILDERS[task])
    expected = exported(model, images(), head)
    program: Program = capture(split_head(model, head, SIZE), SIZE)
    with torch.no_grad():
        actual = every_output(program.graph(images()))
    assert len(actual) == len(expected) == (2 if task == "seg" else 1)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    kind, channels = EXTRAS[task]
    assert program.layout.extras == kind
    assert [program.values[name].shape[1] for name in program.raw.extras] == [channels] * 3
    assert bool(program.raw.prototypes) == (task == "seg")
    assert program.layout.classes == model.model[-1].nc
    outputs = {name for name in program.raw.all if program.values[name].weight or name == program.raw.prototypes}
    assert outputs == set(program.raw.all)  # convolutions, each with a scale of its own


@pytest.mark.parametrize("family", ["yolo26n", "yolov8n"])
def test_a_classifier_is_what_ultralytics_exports(family: str) -> None:
    model = built(f"{family}-cls", "ClassificationModel")
    (expected,) = exported(model, images(), "classifier")
    program = capture(classifier(model, None, nms=False), SIZE)
    with torch.no_grad():
        actual = program.graph(images())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert (program.layout.head, program.raw.boxes, program.layout.end2end) == ("classifier", (), False)
    assert program.input.preprocess == "centre crop"
    assert program.values[program.raw.scores[0]].operation == "linear"


def test_detectors_options_are_refused_for_a_classifier() -> None:
    model = built("yolo26n-cls", "ClassificationModel")
    with pytest.raises(InputError, match="one head and no NMS"):
        classifier(model, "one2many", nms=False)


def test_nms_is_refused_where_rows_have_more_than_a_box() -> None:
    with pytest.raises(InputError, match="for detection, not for head Segment26"):
        split_head(built("yolo26n-seg", "SegmentationModel"), "one2many", SIZE, nms=True)


def test_a_head_that_cannot_be_split_names_itself() -> None:
    model = built("yolov8n", "DetectionModel")
    model.model[-1].__class__ = type("Unheard", (type(model.model[-1]),), {})
    with pytest.raises(InputError, match=r"head Unheard is not supported: use one of Detect, v10"):
        split_head(model, None, SIZE)
