"""Small models whose numbers do not fit: dead channels, weights that FP16 cannot hold, values that overflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import TinyDecode, captured, demo_checkpoint, seeded
from torch import Tensor, nn

from qexport.backends.registry import find_backend
from qexport.calibration.observer import Observer
from qexport.calibration.statistics import Statistics
from qexport.programs.build import Source
from qexport.programs.captured_graph import module_of
from qexport.programs.program import Program
from qexport.steps.build import BuildRequest, build
from qexport.steps.plan import make_target
from qexport.verification.result import ArtifactResult

SIZE = (8, 8)


class UnitDecode(TinyDecode):
    """The same with the buffer that one-to-many heads have for their boxes' unit."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unit", torch.ones(1, 4, 1))

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        unit: Any = self.unit
        return torch.cat((boxes.flatten(2) * unit, scores.flatten(2).sigmoid()), dim=1)


class Layers(nn.Module):
    """A convolution, a depthwise one, a transposed one and the last ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.box, self.cls = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)
        self.act = nn.SiLU()
        self.decode = UnitDecode()

    def forward(self, images: Tensor) -> Tensor:
        deep = self.act(self.point(self.act(self.depthwise(self.first(images)))))
        up = self.up(deep)
        decoded: Tensor = self.decode(self.box(up), self.cls(up))
        return decoded


def layers(**changes: Any) -> Program:
    """Capture `Layers` after `change(weight, bias)` was applied to the layers named."""
    module: Any = seeded(Layers())
    for name, change in changes.items():
        layer = getattr(module, name)
        change(layer.weight.data, layer.bias.data)
    return captured(module, SIZE)


def seen(program: Program, count: int = 2) -> dict[str, Statistics]:
    """What every float value looks like for random images, by an interpreter of torch's own."""
    observers: dict[str, Observer] = {}

    class Watching(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if n.name in program.values and isinstance(result, Tensor):
                observers.setdefault(n.name, Observer(4096)).update(result)
            return result

    with torch.no_grad():
        for number in range(count):
            Watching(module_of(program)).run(picture(number))
    return {name: observer.statistics() for name, observer in observers.items()}


def picture(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def built(program: Program, out: Path, name: str, precision: str, **changes: Any) -> ArtifactResult:
    """Build a file of a format, without an image to compare on."""
    source, target = Source(demo_checkpoint(), program), make_target(name, precision)
    path = out / f"hard_{precision}{find_backend(name).info.suffix}"
    model = source.checkpoint.fingerprint
    return build(source, BuildRequest(target, path, out / "plan.json", (), model, **changes)).result
