"""Fixtures and small hand-made models that several test files share."""

from __future__ import annotations

import copy
import gc
import hashlib
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from once import forget, remember
from refusals import Refusal
from torch import Tensor, nn

from qexport.calibration.calibrate import calibrate
from qexport.calibration.calibration_table import CalibrationTable
from qexport.calibration.statistics import BINS, Statistics
from qexport.checkpoints.checkpoint import Checkpoint, load_checkpoint
from qexport.compat.quiet import quiet_ultralytics
from qexport.compat.torchvision import repair
from qexport.data.evaluation_set import EvaluationSet
from qexport.data.images import letterbox, read_image, to_tensor
from qexport.detections.layout import HeadLayout
from qexport.job import offload
from qexport.lowering.request import Lowering, Target
from qexport.planning.plan import QuantPlan
from qexport.programs.capture import capture
from qexport.programs.heads import split_head
from qexport.programs.program import Program
from qexport.system.cache import VARIABLE as CACHE

# The default looks through a million objects of torch and its like every few hundred allocations: a tenth of the suite.
gc.set_threshold(100_000, 20, 20)
os.environ[CACHE] = os.devnull  # no test takes what another has left, unless it says where
quiet_ultralytics()  # before any test imports ultralytics; nothing above does

DEMO = Path(__file__).resolve().parents[1] / "calibration_data"
SMALL = (96, 96)
"""Image size at which the demo model is captured where its accuracy does not matter: 189 anchors."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests go first, those on real models before all, so that no worker ends alone."""
    real = {item.path for item in items if item.get_closest_marker("real") and item.get_closest_marker("slow")}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in real, item.path not in slow))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws is the same in every run, whichever tests went before: it passes always or never."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _exporters_are_asked_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whole networks are exported once in tests, see `once`: traced in each of their processes, converted in one."""
    folder = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "exported-once")
        yield


@pytest.fixture(scope="session", autouse=True)
def _runs_in_this_process_start_no_second_one() -> Iterator[None]:
    """Which would read, capture and import once more what is here; whole runs of the installed command start it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offload, "cores", lambda: 1)
        yield


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken from other tests: for those that compare two ways to the same file."""
    forget(monkeypatch)


class TinyDecode(nn.Module):
    """Stands in for the real decode: the same place in the program, next to no arithmetic."""

    layout = HeadLayout(strides=(2,), imgsz=(8, 8), classes=2, head="one2many")

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """(1, 4 + classes, anchors)."""
        return torch.cat((boxes.flatten(2), scores.flatten(2).sigmoid()), dim=1)


class TinyDetector(nn.Module):
    """Every constraint of a plan in a few layers: SiLU, split, sum, concatenation, pooling, resizing, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.left = nn.Conv2d(4, 4, 1, groups=2)
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.neck = nn.Conv2d(16, 8, 1)
        self.box = nn.Conv2d(8, 4, 1)
        self.cls = nn.Conv2d(8, 2, 1)
        self.act = nn.SiLU(inplace=True)
        self.decode = TinyDecode()

    def forward(self, images: Tensor) -> Tensor:
        """Return what `TinyDecode` makes of it."""
        first, second = self.act(self.stem(images)).chunk(2, 1)
        second = second + self.act(self.left(second))
        shallow = torch.cat((first, second), 1)
        deep = nn.functional.max_pool2d(self.deep(shallow), 3, 1, 1)
        tokens = deep.reshape(1, 8, -1)
        tokens = tokens @ (tokens.transpose(1, 2) @ tokens).softmax(-1)
        deep = deep + tokens.reshape(deep.shape)
        deep = nn.functional.interpolate(deep, scale_factor=2.0, mode="nearest")
        neck = self.act(self.neck(torch.cat((shallow, deep), 1)))
        decoded: Tensor = self.decode(self.box(neck), self.cls(neck))
        return decoded


class Rectified(nn.Module):
    """A convolution and its ReLU, whose result is joined with another convolution's."""

    def __init__(self, joined_with_negatives: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.box, self.cls = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)
        self.negatives = joined_with_negatives
        self.decode = TinyDecode()

    def forward(self, images: Tensor) -> Tensor:
        second = self.second(images)
        joined = torch.cat((self.first(images).relu(), second if self.negatives else second.relu()), 1)
        decoded: Tensor = self.decode(self.box(joined), self.cls(joined))
        return decoded


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a module's parameters from a seed of their own, so that no other test moves them."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        parameter.requires_grad_(False)
    return module.eval()


def captured(module: Any, imgsz: tuple[int, int] = (8, 8), batch: int = 1) -> Program:
    """Capture a hand-made module that only looks like a `DetectionProgram`."""
    return capture(module, imgsz, batch)


def _quick(note: str) -> None:
    """Converters' own ways give the same files, so that nothing else tells that the quick one has failed."""
    assert "the slow way" not in note, note


def lowering(
    program: Program,
    precision: str,
    plan: QuantPlan | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    float32: frozenset[str] = frozenset(),
    warn: Callable[[str], None] = _quick,
    **options: Any,
) -> Lowering:
    """What a backend is asked for; the least of metadata that runners read unless others are given."""
    if metadata is None:  # hand-made heads give boxes in pixels
        program, metadata = (
            replace(program, layout=replace(program.layout, end2end=True)),
            {"precision": precision, "end2end": True, "imgsz": list(program.input.imgsz), "names": {}},
        )
    return Lowering(program, Target("any", precision), metadata, plan, options, float32, warn)


def validated(artifact: Path, task: str, data: EvaluationSet, scratch: Path) -> Any:
    """Metrics of `YOLO(file).val()`: Ultralytics loads the file itself."""
    from ultralytics.models import YOLO

    model: Any = YOLO(str(artifact), task=task)
    return model.val(
        data=str(data.yaml), device="cpu", plots=False, verbose=False, project=str(scratch), name="val", exist_ok=True
    )


def statistics_of(data: NDArray[np.floating], limit: float) -> Statistics:
    """Statistics of an array, counted by NumPy's own histogram."""
    counts, _ = np.histogram(data, bins=BINS, range=(-limit, limit))
    return Statistics(float(data.min()), float(data.max()), limit, counts.astype(np.int64))


def synthetic_statistics(names: Iterable[str]) -> dict[str, Statistics]:
    """Evenly spread values between bounds that depend on nothing but each name."""
    made = {}
    for name in names:
        digest = hashlib.sha256(name.encode()).digest()
        low, high = -(1 + digest[0] % 12), 2 + digest[1] % 13
        made[name] = statistics_of(np.linspace(low, high, 20_001), 16.0)
    return made


@cache
def _loaded() -> Checkpoint:
    repair()
    return load_checkpoint(DEMO / "shapes26.pt")


def demo_checkpoint() -> Checkpoint:
    """The demo checkpoint with a module of its own: splitting a head fuses it in place."""
    return replace(_loaded(), module=copy.deepcopy(_loaded().module))


def demo_images(split: str, count: int) -> list[Path]:
    """The first images of a split of the demo data set."""
    return sorted((DEMO / "shapes" / "images" / split).glob("*.jpg"))[:count]


def demo_image(imgsz: tuple[int, int], index: int = 0) -> Tensor:
    """A validation image of the demo data set as a batch of one."""
    path = demo_images("val", index + 1)[index]
    return torch.from_numpy(to_tensor(letterbox(read_image(path), imgsz)))[None]


@pytest.fixture(scope="session")
def tiny() -> Program:
    """The program of `TinyDetector` at 8 by 8 pixels."""
    return captured(seeded(TinyDetector()))


@pytest.fixture(scope="session")
def demo_program() -> Program:
    """The demo model with its end-to-end head, small."""
    return capture(split_head(demo_checkpoint().module, "end2end", SMALL), SMALL)


@pytest.fixture(scope="session")
def demo_one2many() -> Program:
    """The demo model with its one-to-many head, at the size that it was trained for."""
    return capture(split_head(demo_checkpoint().module, "one2many", (320, 320)), (320, 320))


@pytest.fixture(scope="session")
def demo_table(demo_one2many: Program) -> CalibrationTable:
    """Statistics of the one-to-many demo program over four training images."""
    return calibrate(demo_one2many, demo_images("train", 4), lambda: None)


@pytest.fixture
def logging_level() -> Iterator[None]:
    """The command line silences the root logger for good, which is right for a process of its own only."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def refused(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logging_level: None
) -> Refusal:
    """Run the command line in a folder of its own, where it has to refuse."""
    monkeypatch.chdir(tmp_path)
    return Refusal(capfd, tmp_path / "out")
