"""A file may call a value "output", as PyTorch calls the last node of every graph."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from conftest import demo_images
from elsewhere import write
from torch import nn

import qexport
from qexport.optimisation.distance import distance, hold_out


class Small(nn.Module):
    """Ends at a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Raw boxes."""
        raw: torch.Tensor = self.last(nn.functional.silu(self.first(images)))
        return raw


def test_a_value_may_be_called_output(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated
        path = write(Small().eval(), tmp_path / "a.onnx")
    proto = onnx.load(path)
    proto.graph.node[-1].name = "output"
    onnx.save(proto, path)
    program = qexport.read_model(path).program
    assert program.raw.all == ("output",)
    images = demo_images("train", 4)
    table = qexport.calibrate(program, images, importance=True)
    assert any(each.importance is not None for each in table.statistics.values())
    plan = qexport.plan(program, table, qexport.make_target("onnx"), ranges="auto")
    assert plan is not None
    candidate = qexport.Candidate(program, plan, program)
    assert 0 < distance(candidate, hold_out(program, images)).mean < 1
    made, (record,) = qexport.optimise(candidate, ["adaptive-rounding"], images)
    assert record.before is not None
    assert np.isfinite(record.before)
    assert made.reference is program
