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
from qexport.decode.metadata import as_values
from qexport.decode.model_info import ModelInfo, info_of
from qexport.errors import InputError
from qexport.inspection.difference import find_format, read_artifact
from qexport.inspection.manifest import samples_of
from qexport.inspection.samples import load_samples
from qexport.tasks import SCORING

LOADED = "YOLO(file) of Ultralytics runs it"


@dataclass(frozen=True, kw_only=True)
class Facts(ModelInfo):
    """What a program has to know of an artifact.

    Attributes:
        model: where it is, as it was given.
        format: its name in the registry.
        exact: floats are computed in FP32 also where the runtime prefers less, as it was compared and measured.
    """

    model: str
    format: str
    exact: bool = False


def facts_of(artifact: Path) -> Facts:
    """Read what a program has to know.

    Raises:
        InputError: the file cannot be read, or nobody could say for certain how to run it.
        MissingExtraError: the packages that read the format are not installed.
    """
    check_artifact(artifact)
    _check_plain(artifact)
    name = find_format(artifact)
    metadata = as_values(read_artifact(find_backend(name), artifact).metadata)
    if metadata.get("task") not in SCORING:
        raise InputError(f"{artifact} does not say its task", "what its outputs mean is not known: use its own program")
    try:
        info = info_of(metadata, tflite=name == "tflite")
    except ValueError as error:
        what = f"the metadata of {artifact} are not as qexport writes them ({error})"
        raise InputError(what, "export it again") from error
    _check_input(artifact, metadata, info.channels)
    return Facts(model=str(artifact), format=name, exact=metadata.get("precision") == "fp32", **vars(info))


def _check_plain(artifact: Path) -> None:
    """Refuse what is built for one device: how its runtime is called there cannot be tried here."""
    for info in infos():
        engine = info.engine
        if engine and artifact.name.endswith(engine.suffix):
            device = f"made for {'the Edge TPU' if info.name == EDGETPU.name else display_name(info.name)}"
            raise InputError(f"{artifact} is {device}, which there is no program for", LOADED)
    if not artifact.is_dir() and find_format(artifact) == "tensorrt":
        raise InputError(f"{artifact} is a graph to build an engine from, not to run", f"build it; {LOADED}")


def _check_input(artifact: Path, metadata: Mapping[str, Any], channels: int) -> None:
    """Refuse what wants other pixels than RGB in 0..1; the samples beside a file say so, where there are any."""
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
