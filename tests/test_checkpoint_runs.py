"""What becomes of a checkpoint's own settings, and of models that cannot be run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import saved, small_model
from torch import nn

from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.errors import ConversionError, InputError
from qexport.programs import build as source
from qexport.programs.build import read_source
from qexport.programs.options import CaptureOptions


def test_a_heads_own_max_det_is_obeyed(tmp_path: Path) -> None:
    from qexport.programs.heads import split_head

    model = small_model("v10Detect")
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    for said, rows in ((1000, 1000), (7, 7), (5000, 32 * 32 + 16 * 16 + 8 * 8)):
        model.model[-1].max_det = said
        loaded = load_checkpoint(saved(model, tmp_path / "model.pt"))
        program = split_head(loaded.module, "end2end", (256, 256))
        assert program(images).shape == (1, rows, 6)


@pytest.mark.parametrize("said", [0, -1, True, 2.5, "many"])
def test_a_max_det_that_is_none_is_refused(said: Any, tmp_path: Path) -> None:
    from qexport.programs.heads import split_head

    model = small_model("v10Detect")
    model.model[-1].max_det = said
    loaded = load_checkpoint(saved(model, tmp_path / "model.pt"))
    with pytest.raises(InputError, match="max_det"):
        split_head(loaded.module, "end2end", (64, 64))


@pytest.mark.parametrize("single", [True, False])
def test_a_single_cls_model_is_scored_as_it_was_trained(single: bool, tmp_path: Path) -> None:
    """On its own YAML of three classes, all of whose labels count as the one that it knows."""
    from qexport.data.dataset import Dataset
    from qexport.data.evaluation_set import make_evaluation_set
    from qexport.data.selection import RunImages
    from qexport.detections.layout import HeadLayout
    from qexport.measurement.dataset_check import as_trained, mismatch
    from qexport.measurement.validator import make_validator
    from qexport.tasks import SCORING

    model = small_model(nc=1)
    model.names = {0: "item"}
    path = saved(model, tmp_path / "model.pt", train_args={"single_cls": single, "imgsz": 64})
    spec = load_checkpoint(path).task_spec
    (tmp_path / "data.yaml").write_text("")
    data = Dataset(tmp_path / "data.yaml", tmp_path, {}, {0: "a", 1: "b", 2: "c"}, 3, None)
    assert ("3 classes" in mismatch(spec, data)) != single
    images = as_trained(spec, RunImages(evaluation_data=data))
    assert images.evaluation_data is not None
    assert images.evaluation_data.names == ({0: "item"} if single else data.names)
    linked = make_evaluation_set(images.evaluation_data, (), tmp_path / "linked")
    validator = make_validator(SCORING["detect"], "detect", linked, HeadLayout((8,), (64, 64), 1), 1, tmp_path)
    assert validator.args.single_cls is single


def _weight_of_another_shape(model: Any) -> None:
    model.model[0].conv.weight = nn.Parameter(torch.zeros(1, 1, 1, 1))


def _stride_that_is_text(model: Any) -> None:
    model.model[0].conv.stride = "x"


def _source_that_is_not_there(model: Any) -> None:
    model.model[1].f = 7


@pytest.mark.parametrize("spoil", [_weight_of_another_shape, _stride_that_is_text, _source_that_is_not_there])
def test_a_model_that_cannot_be_run_is_said_to_be_one(spoil: Callable[[Any], None], tmp_path: Path) -> None:
    model = small_model()
    spoil(model)
    path = saved(model, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt holds a model that Ultralytics [\d.]+ cannot run \(\w+Error: "):
        read_source(path, CaptureOptions(imgsz=(64, 64)))


def test_what_fails_in_a_model_that_runs_is_not_blamed_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("ours")

    path = saved(small_model(), tmp_path / "model.pt")
    monkeypatch.setattr(source, "capture_program", fail)
    with pytest.raises(ConversionError, match=r"cannot be captured \(RuntimeError: ours\)"):
        read_source(path, CaptureOptions(imgsz=(64, 64)))


@pytest.mark.parametrize(("said", "head"), [(7, "v10Detect"), (2, "Segment"), (5, "Pose")])
def test_a_head_that_says_another_number_of_classes_than_it_computes_is_refused(
    said: int, head: str, tmp_path: Path
) -> None:
    model = small_model(head)
    model.model[-1].nc = said
    path = saved(model, tmp_path / "model.pt")
    with pytest.raises(InputError, match=rf"model\.pt says that it has {said} classes, and its head computes \d"):
        read_source(path, CaptureOptions(imgsz=(64, 64)))
