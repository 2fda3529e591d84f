"""What differs between two artifacts, or between two reports, as rows of a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.artifact import check_artifact, describe_artifact
from qexport.backends.protocol import Backend
from qexport.backends.registry import find_backend, infos
from qexport.data.images import stream
from qexport.detections.agreement import Findings, compare_all
from qexport.detections.layout import HeadLayout
from qexport.detections.matching import CONFIDENCE
from qexport.errors import InputError, first_line
from qexport.inspection.manifest import read_manifest, recorded_names, samples_of
from qexport.inspection.run_folder import report_beside
from qexport.inspection.samples import Samples, batches_of, detect, load_samples
from qexport.lowering.stored import StoredGraph, StoredTensor
from qexport.reporting.gate import accuracy_of
from qexport.reporting.load import load_report
from qexport.reporting.report import ArtifactReport, Report
from qexport.reporting.rule import NumberFormat
from qexport.verification.plan_check import furthest, own_names, scales_differ
from qexport.verification.tolerances import MAX_LISTED, listed

UNSEEN = 0.005
"""Difference of scores, and of the overlap of boxes from one, that is taken for none."""
NOTHING = "–"


@dataclass(frozen=True)
class Figure:
    """One figure of an artifact: how it is read and shown, and whether it counts: times are never the same twice."""

    name: str
    read: Callable[[ArtifactReport], float | None]
    shown: NumberFormat
    counts: bool = True


OF_ACCURACY = (
    Figure("map", accuracy_of("map"), NumberFormat(4)),
    Figure("retention", accuracy_of("retention"), NumberFormat(2, "%", 100)),
    Figure("fidelity", accuracy_of("fidelity"), NumberFormat(3)),
)
FIGURES = (
    *OF_ACCURACY,
    Figure("p50", lambda each: each.latency_ms.p50 if each.latency_ms else None, NumberFormat(1, " ms"), False),
    Figure("speedup", lambda each: each.speedup, NumberFormat(2, "×"), False),
    Figure("int8_mac_coverage", lambda each: each.int8_mac_coverage, NumberFormat(2, "%", 100)),
)


@dataclass(frozen=True)
class Row:
    """One thing compared.

    Attributes:
        same: None for what is only shown: times differ from run to run.
    """

    what: str
    same: bool | None
    a: str
    b: str


def are_equal(rows: Sequence[Row]) -> bool:
    """Whether nothing that counts differs."""
    return all(row.same is not False for row in rows)


BOTH = "give two artifacts, or two report.json"


def difference(a: Path, b: Path, images: Sequence[Path], threads: int) -> list[Row]:
    """Compare two artifacts, or two reports.

    Args:
        images: to run two artifacts on; without any, the samples beside one of them.

    Raises:
        InputError: one of them cannot be read, or they are not of a kind.
    """
    for path in (a, b):
        check_artifact(path, BOTH)
    reports = [path.suffix == ".json" for path in (a, b)]
    if all(reports):
        return list(compare_reports(load_report(a), load_report(b)))
    if any(reports):
        raise InputError(f"{a} and {b} are not of a kind", BOTH)
    return list(compare_artifacts(a, b, images, threads))


def compare_reports(a: Report, b: Report) -> Iterator[Row]:
    """Compare what went in, and the artifacts of one format and precision."""
    for key in ("sha256", "head", "imgsz"):
        yield _row(f"model {key}", *(_short(getattr(each.model, key)) for each in (a, b)))
    for part in ("calibration", "evaluation"):
        images = (getattr(each, part) for each in (a, b))
        yield _row(f"{part} images", *(_short(each.fingerprint if each else None) for each in images))
    entries = [{artifact.label: artifact for artifact in each.artifacts} for each in (a, b)]
    for kind in dict.fromkeys([*entries[0], *entries[1]]):
        yield from _artifact_rows(kind, entries[0].get(kind), entries[1].get(kind))


def _artifact_rows(kind: str, a: ArtifactReport | None, b: ArtifactReport | None) -> Iterator[Row]:
    if a is None or b is None:
        yield Row(kind, False, *(NOTHING if each is None else each.file_name for each in (a, b)))
        return
    yield _row(f"{kind} sha256", _short(a.sha256), _short(b.sha256))
    yield _row(f"{kind} bytes", str(a.bytes), str(b.bytes))
    yield from _figure_rows(a, b, FIGURES, f"{kind} ")
    layers = [_layers(each) for each in (a, b)]
    if all(layers):
        yield from (replace(row, what=f"{kind} {row.what}") for row in tensor_rows(*layers))


def _layers(artifact: ArtifactReport) -> dict[str, StoredTensor]:
    """Types and scales of the plan's values, where the report lists them."""
    return {
        layer.name: StoredTensor(
            layer.dtype,
            () if layer.scale is None else (layer.scale,),
            () if layer.zero_point is None else (layer.zero_point,),
        )
        for layer in artifact.layers or ()
    }


def _figure_rows(
    a: ArtifactReport | None, b: ArtifactReport | None, figures: Sequence[Figure], prefix: str = ""
) -> Iterator[Row]:
    """Figures that one of the two has."""
    for figure in figures:
        values = [None if each is None else figure.read(each) for each in (a, b)]
        if any(value is not None for value in values):
            texts = (NOTHING if value is None else figure.shown.text(value) for value in values)
            yield Row(f"{prefix}{figure.name}", values[0] == values[1] if figure.counts else None, *texts)


def _row(what: str, a: str, b: str) -> Row:
    return Row(what, a == b, a, b)


def _short(value: Any) -> str:
    text = NOTHING if value is None else "×".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{text[:12]}…" if len(text) > 20 else text


def find_format(path: Path) -> str:
    """The format of an artifact by the longest suffix that its name ends with.

    Raises:
        InputError: no format's.
    """
    # Edge TPU files are TFLite files before they are compiled: the first of equal suffixes that is timed here.
    for info in sorted(infos(), key=lambda info: (-len(info.suffix), not info.timed)):
        if path.name.endswith(info.suffix):
            return info.name
    raise InputError(f"{path} is no artifact of qexport", "give a .tflite or .onnx file, or an OpenVINO folder")


def compare_artifacts(a: Path, b: Path, images: Sequence[Path], threads: int) -> Iterator[Row]:
    """Compare size, tensors, arithmetic, outputs, and the figures of the reports beside the two."""
    formats = [find_format(path) for path in (a, b)]
    backends = [find_backend(name) for name in formats]
    described = [describe_artifact(path, name, "") for path, name in zip((a, b), formats, strict=True)]
    yield _row("format", *formats)
    yield _row("sha256", *(_short(each.sha256) for each in described))
    yield _row("bytes", *(str(each.bytes) for each in described))
    stored = [read_artifact(backend, path) for backend, path in zip(backends, (a, b), strict=True)]
    yield from tensor_rows(*(_tensors(each, path) for each, path in zip(stored, (a, b), strict=True)))
    yield _row("integer arithmetic", *(f"{each.coverage:.2%}" for each in stored))
    yield _row("operators", *(str(sum(each.operators.values())) for each in stored))
    yield from _output_rows(a, b, backends, images, threads)
    yield from _figure_rows(_report_beside(a), _report_beside(b), OF_ACCURACY)


def read_artifact(backend: Backend, path: Path) -> StoredGraph:
    """What an artifact says about itself.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return backend.read(path)
    except Exception as error:  # readers of damaged files raise anything
        raise InputError(f"{path} cannot be read ({first_line(error)})", "give a file that qexport wrote") from error


def _tensors(stored: StoredGraph, artifact: Path) -> Mapping[str, StoredTensor]:
    """A file's tensors, weights by the names of their own layers where the manifest beside it knows them."""
    return own_names(stored.tensors, recorded_names(read_manifest(artifact) or {}))


def tensor_rows(a: Mapping[str, StoredTensor], b: Mapping[str, StoredTensor]) -> Iterator[Row]:
    """How many named tensors there are, and in how many of those that both have types, scales and weights differ.

    What only one of two has, such as the scale of a tensor that the other has in floats, is counted as that: it is
    neither equal nor different.
    """
    yield _row("named tensors", str(len(a)), str(len(b)))
    both = [name for name in a if name in b]
    alone = [[name for name in one if name not in other] for one, other in ((a, b), (b, a))]
    if any(alone):
        yield Row("only in one", False, *map(_listed, alone))
    pairs = {name: (a[name], b[name]) for name in both}
    told: set[str] = set()
    for aspect in ASPECTS:
        having = {name: tuple(map(aspect.has, pair)) for name, pair in pairs.items()}
        alone = [[name for name, has in having.items() if has == one] for one in ((True, False), (False, True))]
        if not told.issuperset(alone[0] + alone[1]):
            told.update(*alone)
            yield Row(f"{aspect.name} in one alone", False, *map(_counted, alone))
        yield from _aspect_rows(aspect, {name: pairs[name] for name, has in having.items() if all(has)})


@dataclass(frozen=True)
class Aspect:
    """Something that tensors have: whether one has it, whether two have it differently, and how it is shown."""

    name: str
    has: Callable[[StoredTensor], bool]
    differs: Callable[[StoredTensor, StoredTensor], bool]
    shown: Callable[[StoredTensor, StoredTensor], str]


ASPECTS = (
    Aspect("precision of tensors", lambda _: True, lambda a, b: a.dtype != b.dtype, lambda one, _: one.dtype),
    Aspect("scales", lambda one: bool(one.scale), scales_differ, lambda a, b: _furthest(a.scale, b.scale)),
    Aspect(
        "zero points",
        lambda one: bool(one.zero_point),
        lambda one, other: one.zero_point != other.zero_point,
        lambda one, other: _furthest(one.zero_point, other.zero_point),
    ),
    Aspect(
        "weights in integers",
        lambda one: one.integers is not None,
        lambda one, other: not np.array_equal(np.asarray(one.integers), np.asarray(other.integers)),
        lambda one, _: one.dtype,
    ),
)


def _aspect_rows(aspect: Aspect, pairs: Mapping[str, tuple[StoredTensor, StoredTensor]]) -> Iterator[Row]:
    """In how many of those that have it on both sides it is equal, or in which not; no row where there are none."""
    names = [name for name, pair in pairs.items() if aspect.differs(*pair)]
    if not names:
        if pairs:
            yield _row(aspect.name, f"equal in {len(pairs)}", f"equal in {len(pairs)}")
        return
    kinds = Counter((aspect.shown(*pairs[name]), aspect.shown(*pairs[name][::-1])) for name in names)
    if len(kinds) == 1 and len(names) > MAX_LISTED:
        sides = ([text] for text in next(iter(kinds)))
    else:
        sides = ([f"{name} {aspect.shown(*pairs[name][::order])}" for name in names] for order in (1, -1))
    yield Row(f"{aspect.name}: {len(names)} of {len(pairs)}", False, *map(_listed, sides))


def _counted(names: Sequence[str]) -> str:
    """A few by their names, of more how many there are."""
    return f"{len(names)} tensors" if len(names) > MAX_LISTED else _listed(names)


def _furthest(one: Sequence[float], other: Sequence[float]) -> str:
    """A tensor's number in the channel in which it is furthest from another's."""
    if len(one) != len(other):
        return f"of {len(one)} {'channel' if len(one) == 1 else 'channels'}"
    channel = furthest(one, other)
    return f"{one[channel]:.6g}{f' in channel {channel}' if len(one) > 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    return listed(names, ", ") if names else NOTHING


def _output_rows(a: Path, b: Path, backends: Sequence[Backend], images: Sequence[Path], threads: int) -> Iterator[Row]:
    own = [_samples_beside(path) for path in (a, b)]
    first, second = own[0] or own[1], own[1] or own[0]
    if first is None or second is None:
        return
    inputs = [_input_of(each) for each in (first, second)]
    if inputs[0] != inputs[1] or first.layout.extras != second.layout.extras:
        yield Row("input", False, *inputs)
        return
    batches = batches_of(_pixels(images, first), first.input) if images else first.batches
    runs = zip((a, b), backends, (first.layout, second.layout), strict=True)
    found = [detect(backend.runner(path, threads), batches, layout) for path, backend, layout in runs]
    yield _found_row(found[0], found[1], first.layout)


def _found_row(a: Sequence[Findings], b: Sequence[Findings], layout: HeadLayout) -> Row:
    """How alike two artifacts' findings are: equal where nothing that a reader would see differs."""
    same = compare_all(a, b, layout)
    if layout.classifier:
        share = same.share or 0.0
        what = f"answers in {len(a)} images: {share:.1%} of the probability shared"
        return Row(what, share > 1 - UNSEEN, str(len(a)), str(len(b)))
    text, equal = "nothing found", True
    if same.share is not None:
        text = f"{math.floor(same.share * 1000) / 10:.1f}% shared"
        equal = same.share == 1.0
    if same.overlap is not None and same.shift is not None:
        text += f", boxes overlap by {same.overlap:.3f}, B's scores {same.shift:+.3f}"
        equal = equal and same.overlap > 1 - UNSEEN and float(np.abs(same.shifts).max()) < UNSEEN
    counts = (sum(int((each.detections.scores >= CONFIDENCE).sum()) for each in side) for side in (a, b))
    return Row(f"detections in {len(a)} images: {text}", equal, *map(str, counts))


def _samples_beside(artifact: Path) -> Samples | None:
    path = samples_of(artifact)
    return load_samples(path) if path.exists() else None


def _input_of(samples: Samples) -> str:
    """What has to be the same of two artifacts' inputs for their boxes to be comparable."""
    height, width, channels = samples.images.shape[1:]
    given = samples.input
    return f"{given.batch}x{height}x{width}x{channels}, {given.preprocess}, {given.form.description}"


def _pixels(images: Sequence[Path], samples: Samples) -> NDArray[np.uint8]:
    """(n, height, width, channels) of images brought to size as the samples were."""
    height, width, channels = samples.images.shape[1:]
    read = stream(images, (height, width), lambda *_: None, samples.input.preprocess, channels)
    pixels = [np.rint(planes * 255).astype(np.uint8).transpose(1, 2, 0) for _, planes in read]
    return np.stack(pixels) if pixels else samples.images[:0]


def _report_beside(artifact: Path) -> ArtifactReport | None:
    """The artifact's figures in the report beside it, where there is one of this very file."""
    with suppress(InputError):
        digest = describe_artifact(artifact, "", "").sha256
        report = load_report(report_beside(artifact))
        return next((each for each in report.artifacts if each.sha256 == digest), None)
    return None
