"""A small detector that has what backends find hard, and pictures for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qexport.detections.layout import HeadLayout, raw_outputs_of
from qexport.programs.capture import capture
from qexport.programs.program import Program
from qexport.programs.torch_decode import Decode

SIZE = (64, 64)
STRIDE, CLASSES = 8, 2


class Detector(nn.Module):
    """SiLU, split, sum, concatenation, pooling, resizing, groups, attention, and a one-to-many head of one level."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.left = nn.Conv2d(4, 4, 1, groups=2)
        self.deep = nn.Conv2d(8, 8, 3, stride=4, padding=1)
        self.neck = nn.Conv2d(16, 8, 3, stride=2, padding=1)
        self.box, self.cls = nn.Conv2d(8, 4, 1), nn.Conv2d(8, CLASSES, 1)
        self.act = nn.SiLU()
        self.decode = Decode(HeadLayout((STRIDE,), SIZE, CLASSES, head="one2many"))

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 4 + classes, anchors), boxes in pixels."""
        first, second = self.act(self.stem(images)).chunk(2, 1)
        shallow = torch.cat((first, second + self.act(self.left(second))), 1)
        deep = nn.functional.max_pool2d(self.deep(shallow), 3, 1, 1)
        tokens = deep.flatten(2)
        tokens = tokens @ (tokens.transpose(1, 2) @ tokens).softmax(-1)
        deep = nn.functional.interpolate(deep + tokens.reshape(deep.shape), scale_factor=4.0, mode="nearest")
        neck = self.act(self.neck(torch.cat((shallow, deep), 1)))
        decoded: Tensor = self.decode([self.box(neck)], [self.cls(neck)])
        return decoded


@cache
def program(dynamic: bool = False) -> Program:
    """The detector as a program, with weights from a seed."""
    module, generator = Detector(), torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        parameter.requires_grad_(False)
    captured: Any = module.eval()
    return capture(captured, SIZE, dynamic=dynamic)


def metadata(made_of: Program, precision: str) -> Mapping[str, Any]:
    """What Ultralytics and runners read from a file of it."""
    return {
        **({"raw_outputs": raw_outputs_of(made_of.layout)} if precision == "int8-full" else {}),
        "description": "the detector of qexport.testing",
        "stride": STRIDE,
        "task": "detect",
        "batch": made_of.input.batch,
        "imgsz": list(SIZE),
        "names": {str(number): f"class {number}" for number in range(CLASSES)},
        "channels": 3,
        "end2end": False,
        "precision": precision,
    }


def pictures(folder: Path, count: int = 2) -> list[Path]:
    """Write smooth pictures from a seed."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC))
    return paths


def batches(count: int = 2) -> Sequence[NDArray[np.float32]]:
    """Inputs (1, 3, height, width) in 0..1 from a seed."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    smooth = nn.functional.interpolate(coarse, SIZE, mode="bilinear").numpy()
    return [smooth[number : number + 1] for number in range(count)]
