"""Ultralytics models of a few layers, and what pickles calls, for the tests of what comes in."""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

HEADS: dict[str, tuple[str, list[Any]]] = {
    "Detect": ("DetectionModel", ["nc"]),
    "v10Detect": ("DetectionModel", ["nc"]),
    "Segment": ("SegmentationModel", ["nc", 8, 16]),
    "Pose": ("PoseModel", ["nc", [5, 3]]),
    "OBB": ("OBBModel", ["nc", 1]),
    "Segment26": ("SegmentationModel", ["nc", 8, 16]),
    "Pose26": ("PoseModel", ["nc", [5, 3]]),
    "OBB26": ("OBBModel", ["nc", 1]),
    "Classify": ("ClassificationModel", ["nc"]),
    "RTDETRDecoder": ("RTDETRDetectionModel", ["nc", 32, 20, 4, 2, 2]),
}
"""Class of a head → that of its model, and the head's arguments in a YAML."""


class Call:
    """Pickled, it asks the reader to call something."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def small_model(head: str = "Detect", channels: int = 3, **keys: Any) -> Any:
    """A model with seeded weights and an output of every stride."""
    return copy.deepcopy(_built(head, channels, tuple(sorted(keys.items()))))


@cache
def _built(head: str, channels: int, keys: tuple[tuple[str, Any], ...]) -> Any:
    from ultralytics.nn import tasks

    kind, arguments = HEADS[head]
    sources = [-1] if head == "Classify" else [2, 3, 4]
    architecture = {
        "nc": 4,
        "kpt_shape": [5, 3],
        "backbone": [
            *([-1, 1, "Conv", [width, 3, 2]] for width in (8, 8, 16, 16)),
            [-1, 1, "C2f", [16, True]] if head == "Classify" else [-1, 1, "Conv", [16, 3, 2]],
        ],
        "head": [[sources if len(sources) > 1 else -1, 1, head, [*arguments]]],
        **dict(keys),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(tasks, kind)(architecture, ch=channels, verbose=False).eval()


def saved(model: Any, path: Path, **extras: Any) -> Path:
    """Write a checkpoint as a training does."""
    torch.save({"model": model, "train_args": {"imgsz": 64}, **extras}, path)
    return path


def archive(path: Path, content: bytes) -> Path:
    """A file as torch.save writes one, around another pickle."""
    stream = io.BytesIO()
    torch.save({}, stream)
    with zipfile.ZipFile(stream) as plain, zipfile.ZipFile(path, "w") as made:
        for item in plain.infolist():
            made.writestr(item.filename, content if item.filename.endswith("data.pkl") else plain.read(item))
    return path
