"""What a program has to know of a file to run it, read from the file's own metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qexport.decode.metadata import as_values, engine_metadata, onnx_metadata, openvino_metadata, tflite_metadata
from qexport.detections.detections import Floats
from qexport.detections.file_form import form_of
from qexport.detections.layout import HeadLayout, layout_of
from qexport.detections.matching import CONFIDENCE
from qexport.errors import InputError, first_line
from qexport.system.whole import whole
from qexport.tasks import SCORING

MAX_SIDE, MAX_BATCH = 2**14, 2**14
"""Pixels of an image's side, and images in one run."""
READERS = {".onnx": onnx_metadata, ".engine": engine_metadata}
"""How a file's name ends → what reads its metadata; all others are TFLite's."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a program has to know of a file.

    Attributes:
        task: "detect", "segment", "pose", "obb" or "classify".
        names: of the classes, by number.
        batch: images in one run.
        channels: of an image; `qexport.decode.prepared` takes those of colour, which have three.
        integers: it takes integers and gives the raw outputs of each level as integers.
        channels_last: it takes images as (n, height, width, channels), and gives prototypes of masks alike.
        normalised: coordinates in its output are shares of the input's width and height.
        threshold: the score from which a detection counts, 0..1.
        class_thresholds: those of classes that have another one, by number.
    """

    task: str
    layout: HeadLayout
    names: tuple[str, ...]
    batch: int = 1
    channels: int = 3
    integers: bool = False
    channels_last: bool = False
    normalised: bool = False
    threshold: float = CONFIDENCE
    class_thresholds: Mapping[int, float] = field(default_factory=dict)

    @property
    def unit(self) -> tuple[int, int]:
        """(x, y) pixels of the input that a coordinate of one in the output stands for."""
        return self.layout.imgsz[::-1] if self.normalised else (1, 1)

    @property
    def least_scores(self) -> Floats:
        """(classes,) the score from which a detection counts."""
        each = [self.class_thresholds.get(number, self.threshold) for number in range(len(self.names))]
        return np.array(each, np.float32)


def read_model_info(path: str | Path) -> ModelInfo:
    """Read what has to be known of a `.tflite` or `.onnx` file, an `.engine`, or a folder of OpenVINO.

    Only a folder of OpenVINO needs a further package, PyYAML.

    Raises:
        InputError: the file cannot be read, or does not say what qexport writes.
    """
    path = Path(path)
    read = openvino_metadata if path.is_dir() else READERS.get(path.suffix.lower(), tflite_metadata)
    try:
        metadata = read(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except ImportError as error:
        raise InputError(f"the metadata of {path} are YAML", "pip install pyyaml") from error
    except Exception as error:  # of a damaged archive zipfile and zlib raise anything
        raise InputError(f"{path} has no metadata ({first_line(error)})", "give a file that qexport wrote") from error
    try:
        return info_of(metadata, tflite=read is tflite_metadata)
    except ValueError as error:
        raise InputError(
            f"the metadata of {path} are not as qexport writes them ({error})", "export it again"
        ) from error


def info_of(metadata: Mapping[str, Any], tflite: bool = False) -> ModelInfo:
    """Read what has to be known from metadata, as a runtime gives them, too.

    Args:
        metadata: values, or texts of them, as ONNX Runtime has them.
        tflite: they are of a `.tflite` file, which earlier versions did not let say its form.

    Raises:
        ValueError: they are not of the form that qexport writes.
    """
    try:
        return _info(as_values(metadata), tflite)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(first_line(error)) from error


def _info(metadata: Mapping[str, Any], tflite: bool) -> ModelInfo:
    names, batch, integers = _names(metadata["names"]), whole(metadata.get("batch", 1)), "raw_outputs" in metadata
    layout = layout_of({**metadata, "names": names})
    if metadata["task"] not in SCORING:
        raise ValueError(f"its task is {metadata['task']!r}")
    if not names or not 0 < min(layout.imgsz) <= max(layout.imgsz) <= MAX_SIDE or not 0 < batch <= MAX_BATCH:
        raise ValueError(f"{len(names)} classes, {layout.imgsz} pixels, {batch} images")
    if layout.extras == "keypoints" and not 0 < layout.shape[0] <= MAX_SIDE > layout.shape[1] >= 2:
        raise ValueError(f"{layout.shape} keypoints")
    scores = metadata.get("thresholds") or {}
    form = form_of(metadata, layout, tflite)
    everything = _score(scores.get("everything", CONFIDENCE))
    own = {whole(number): _score(score) for number, score in scores.get("classes", {}).items()}
    return ModelInfo(
        task=metadata["task"],
        layout=layout,
        names=names,
        batch=batch,
        channels=whole(metadata.get("channels", 3)),
        integers=integers,
        channels_last=form.channels_last,
        normalised=form.normalised,
        threshold=everything,
        class_thresholds={number: score for number, score in sorted(own.items()) if score != everything},
    )


def _names(given: Any) -> tuple[str, ...]:
    """Names by number, whatever they are kept as."""
    numbered = dict(enumerate(given)) if isinstance(given, list | tuple) else {whole(key): given[key] for key in given}
    if sorted(numbered) != list(range(len(numbered))):
        raise ValueError("classes are not numbered from 0")
    return tuple(str(numbered[number]) for number in range(len(numbered)))


def _score(given: Any) -> float:
    if not 0 <= float(given) <= 1:
        raise ValueError(f"a threshold of {given}")
    return float(given)
