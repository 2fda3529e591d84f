"""What a program has to know of an artifact to run it, read from the file alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.backends.artifact import check_artifact
from qexport.backends.edgetpu.info import INFO as EDGETPU
from qexport.backends.registry import display_name, find_backend, infos
from qexport.data.images import COLOURS
from qexport.detections.layout import HeadLayout, layout_of
from qexport.detections.matching import CONFIDENCE
from qexport.errors import InputError, first_line
from qexport.inspection.difference import find_format, read_artifact
from qexport.inspection.manifest import samples_of
from qexport.inspection.samples import load_samples
from qexport.programs.onnx.file import literal_value
from qexport.tasks import SCORING

MAX_SIDE, MAX_BATCH = 2**14, 2**14
"""Pixels of an image's side, and images in one run."""
LOADED = "YOLO(file) of Ultralytics runs it"


@dataclass(frozen=True)
class Facts:
    """What a program has to know of an artifact.

    Attributes:
        model: where it is, as it was given.
        format: its name in the registry.
        names: of the classes, by number.
        batch: images in one run.
        integers: it takes integers, channels last, and gives the raw outputs of each level as integers.
        threshold: the score from which a detection counts, 0..1.
        class_thresholds: those of classes that have another one, by number.
        exact: floats are computed in FP32 also where the runtime prefers less, as it was compared and measured.
        unit: (x, y) pixels of the input that a coordinate of one in the output stands for.
    """

    model: str
    format: str
    task: str
    layout: HeadLayout
    names: tuple[str, ...]
    batch: int = 1
    integers: bool = False
    threshold: float = CONFIDENCE
    class_thresholds: Mapping[int, float] | None = None
    exact: bool = False
    unit: tuple[int, int] = (1, 1)


def facts_of(artifact: Path) -> Facts:
    """Read what a program has to know.

    Raises:
        InputError: the file cannot be read, or nobody could say for certain how to run it.
        MissingExtraError: the packages that read the format are not installed.
    """
    check_artifact(artifact)
    _check_plain(artifact)
    name = find_format(artifact)
    metadata = _values(read_artifact(find_backend(name), artifact).metadata)
    if metadata.get("task") not in SCORING:
        raise InputError(f"{artifact} does not say its task", "what its outputs mean is not known: use its own program")
    try:
        facts = _facts(artifact, name, metadata)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        what = f"the metadata of {artifact} are not as qexport writes them ({first_line(error)})"
        raise InputError(what, "export it again") from error
    _check_input(artifact, metadata)
    return facts


def _check_plain(artifact: Path) -> None:
    """Refuse what is built for one device: how its runtime is called there cannot be tried here."""
    for info in infos():
        engine = info.engine
        if engine and artifact.name.endswith(engine.suffix):
            device = f"made for {'the Edge TPU' if info.name == EDGETPU.name else display_name(info.name)}"
            raise InputError(f"{artifact} is {device}, which there is no program for", LOADED)
    if not artifact.is_dir() and find_format(artifact) == "tensorrt":
        raise InputError(f"{artifact} is a graph to build an engine from, not to run", f"build it; {LOADED}")


def _values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as values: an ONNX file has texts of them."""
    found = {}
    for key, value in metadata.items():
        try:
            found[key] = literal_value(value) if isinstance(value, str) else value
        except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError):
            found[key] = value
    return found


def _facts(artifact: Path, name: str, metadata: Mapping[str, Any]) -> Facts:
    names, batch, integers = _names(metadata["names"]), int(metadata.get("batch", 1)), "raw_outputs" in metadata
    layout = layout_of({**metadata, "names": names})
    if not names or not 0 < min(layout.imgsz) <= max(layout.imgsz) <= MAX_SIDE or not 0 < batch <= MAX_BATCH:
        raise ValueError(f"{len(names)} classes, {layout.imgsz} pixels, {batch} images")
    if layout.extras == "keypoints" and not 0 < layout.shape[0] <= MAX_SIDE > layout.shape[1] >= 2:
        raise ValueError(f"{layout.shape} keypoints")
    scores = metadata.get("thresholds") or {}
    everything = _score(scores.get("everything", CONFIDENCE))
    own = {int(number): _score(score) for number, score in scores.get("classes", {}).items()}
    # Consumers of one-to-many TFLite files multiply coordinates by the size of the input.
    normalised = name == "tflite" and not (layout.end2end or integers or layout.classifier)
    return Facts(
        model=str(artifact),
        format=name,
        task=metadata["task"],
        layout=layout,
        names=names,
        batch=batch,
        integers=integers,
        threshold=everything,
        class_thresholds={number: score for number, score in sorted(own.items()) if score != everything},
        exact=metadata.get("precision") == "fp32",
        unit=layout.imgsz[::-1] if normalised else (1, 1),
    )


def _names(given: Any) -> tuple[str, ...]:
    """Names by number, whatever they are kept as."""
    numbered = dict(enumerate(given)) if isinstance(given, list | tuple) else {int(key): given[key] for key in given}
    if sorted(numbered) != list(range(len(numbered))):
        raise ValueError("classes are not numbered from 0")
    return tuple(str(numbered[number]) for number in range(len(numbered)))


def _score(given: Any) -> float:
    if not 0 <= float(given) <= 1:
        raise ValueError(f"a threshold of {given}")
    return float(given)


def _check_input(artifact: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse what wants other pixels than RGB in 0..1; the samples beside a file say so, where there are any."""
    channels = int(metadata.get("channels", COLOURS))
    if channels != COLOURS:
        raise InputError(f"{artifact} takes {channels} channels", "programs are for colour images: use qexport's API")
    path = samples_of(artifact)
    samples = load_samples(path) if path.exists() else None
    queries = metadata.get("head") == "RTDETRDecoder" or (samples and samples.layout.head == "queries")
    if queries:
        raise InputError(f"{artifact} is an RT-DETR model, which there is no program for", LOADED)
    if samples and artifact.name in samples.found and samples.input.form.description != "RGB, 0..1":
        form = samples.input.form.description
        raise InputError(f"{artifact} takes pixels as {form}", "programs give RGB in 0..1: use the model's own one")
