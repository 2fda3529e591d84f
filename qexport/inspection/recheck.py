"""Does a file still do what its report says? Hash, plan, coverage, outputs on the stored samples, and accuracy.

Nothing but the files beside it is needed: the report, the plan, the manifest and the samples that the run left there.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.backends.artifact import describe_artifact
from qexport.backends.protocol import Backend
from qexport.backends.registry import find_backend
from qexport.data.dataset import Dataset, fingerprint, image_list
from qexport.data.selection import RunImages, has_labels
from qexport.data.usable import usable
from qexport.detections.agreement import Agreement, compare_all
from qexport.detections.faults import MIN_AGREEMENT, faults, remark
from qexport.detections.layout import HeadLayout
from qexport.detections.matching import CONFIDENCE
from qexport.errors import InputError, QexportError, named_reason
from qexport.inspection.manifest import read_manifest, recorded_names, samples_of
from qexport.inspection.samples import Samples, detect, load_samples
from qexport.planning.plan import load_plan
from qexport.progress import Progress, Silent
from qexport.reporting.report import ArtifactReport, ModelInfo, Report
from qexport.system.given_files import read_bytes
from qexport.verification.coverage import covers_the_same
from qexport.verification.plan_check import compare_plan

if TYPE_CHECKING:
    from qexport.measurement.measure import Elsewheres

SILENT = Silent()
MAP_TOLERANCE = 0.01
"""mAP that another CPU's rounding may cost."""
MAX_REASON = 120
"""Characters of what a reader says of a damaged file."""


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Attributes:
        passed: None where there is nothing to check it by.
        text: one line.
    """

    name: str
    passed: bool | None
    text: str


def find_entry(artifact: Path, report: Report) -> ArtifactReport:
    """The artifact's figures in a report: those of its name.

    Raises:
        InputError: there are none.
    """
    for entry in report.artifacts:
        if entry.file_name == artifact.name:
            return entry
    named = ", ".join(entry.file_name for entry in report.artifacts)
    raise InputError(f"the report has no {artifact.name}, it is of {named}", "give the artifact's own --report")


def recheck(
    artifact: Path,
    report: Report,
    data: Dataset | None,
    threads: int,
    elsewhere: Elsewheres | None = None,
    progress: Progress = SILENT,
) -> Iterator[Check]:
    """Ask every question; yield the answers one by one.

    Args:
        data: data set whose val split accuracy is measured on, None to leave that out.
        elsewhere: processes that score beside this one.
        progress: shows each question.

    Raises:
        InputError: the report is of other artifacts.
        MissingExtraError: the format's packages are not installed.
    """
    entry = find_entry(artifact, report)
    backend = find_backend(entry.format)
    questions: dict[str, Callable[[], tuple[bool | None, str]]] = {
        "hash": lambda: _hash(artifact, entry),
        "plan": lambda: _plan(artifact, entry, backend),
        "coverage": lambda: _coverage(artifact, entry, backend),
        "outputs": lambda: _outputs(artifact, backend, threads),
    }
    if data is not None:
        questions["accuracy"] = lambda: _accuracy(artifact, entry, report, backend, data, threads, elsewhere)
    for name, submit in questions.items():
        with progress.step(f"Checking {name}"):
            answer = _answered(name, submit)
        yield answer


def _answered(name: str, submit: Callable[[], tuple[bool | None, str]]) -> Check:
    """A file that was damaged makes readers raise anything: that is an answer, too."""
    try:
        return Check(name, *submit())
    except QexportError as error:
        return Check(name, False, str(error))
    except Exception as error:  # whatever a reader raises of a damaged file
        return Check(name, False, f"the file cannot be read or run ({named_reason(error, MAX_REASON)})")


def _hash(artifact: Path, entry: ArtifactReport) -> tuple[bool, str]:
    found = describe_artifact(artifact, entry.format, entry.precision).sha256
    if found == entry.sha256:
        return True, f"sha256 {found[:12]}… as in the report"
    return False, f"sha256 is {found[:12]}…, {entry.sha256[:12]}… in the report"


def _plan(artifact: Path, entry: ArtifactReport, backend: Backend) -> tuple[bool | None, str]:
    if not entry.plan or entry.engine:
        return None, "no plan to compare with: an engine" if entry.engine else "no plan: activations are float"
    path = _beside(artifact, entry.plan)
    manifest = read_manifest(artifact) or {}
    known = manifest.get("plan") or {}
    if not path.exists():
        return None, f"no {path.name} beside the file"
    if known and hashlib.sha256(read_bytes(path)).hexdigest() != known.get("sha256"):
        return False, f"{path} is not the plan that the file was made from"
    if entry.verification is None:
        return None, "only weights are integers: they were compared when the file was written"
    same = compare_plan(load_plan(path), backend.read(artifact), recorded_names(manifest))
    if same.wrong:
        return False, f"the file differs from the plan in {same.summary}"
    # Manifests of earlier versions do not say what a file calls weights whose kernel computes the activation, too.
    wanted = entry.verification.tensors if "merged" in known else 1
    if len(same.found) < wanted:
        return False, f"only {len(same.found)} planned tensors are in the file, {wanted} were"
    return True, f"{len(same.found)} tensors as planned"


def _beside(artifact: Path, path: str) -> Path:
    """A file of the run, where the folder was moved as a whole; otherwise where it was."""
    moved = artifact.absolute().with_name(Path(path).name)
    return moved if moved.exists() else Path(path)


def _coverage(artifact: Path, entry: ArtifactReport, backend: Backend) -> tuple[bool | None, str]:
    reported = entry.int8_mac_coverage
    if reported is None or entry.engine:
        return None, "the report has none"
    stored = backend.read(artifact)
    here = f"{stored.coverage:.1%} of the arithmetic runs in integers here, {reported:.1%} in the report"
    planned = entry.verification.planned_coverage if entry.verification else None
    if planned is None:  # of an earlier version, which did not tell the file from its runtime
        return covers_the_same(stored.coverage, reported), here
    text = f"{stored.stored_coverage:.1%} of the arithmetic is in integers, {planned:.1%} was planned"
    return covers_the_same(stored.stored_coverage, planned), f"{text}; {here}"


def _outputs(artifact: Path, backend: Backend, threads: int) -> tuple[bool | None, str]:
    if "samples" in (manifest := read_manifest(artifact) or {}) and not manifest["samples"]:
        return None, "the export had no images to keep samples of, or could not run the file"
    path = samples_of(artifact)
    if not path.exists():
        return None, f"no {path.name} beside the file"
    samples = load_samples(path)
    if artifact.name not in samples.found:
        return None, f"{path.name} has nothing of this file, or is of an earlier version"
    found = detect(backend.runner(artifact, threads), samples.batches, samples.layout)
    return judged(compare_all(samples.found[artifact.name], found, samples.layout), samples)


def judged(same: Agreement, samples: Samples) -> tuple[bool, str]:
    """Say whether a file still finds what it found."""
    where, wrong = f"in {len(samples.images)} sample images", faults(same, samples.layout, "the export's")
    if wrong:
        return False, f"{'; '.join(wrong)} ({where})"
    if same.share is None:
        return True, f"nothing found {where} with a score of {CONFIDENCE}, as before; the best scores are those of then"
    what = "probabilities" if samples.layout.classifier else "detections"
    note = f" ({remark(same)})" if remark(same) else ""
    return (
        True,
        f"{same.share:.0%} of the {what} {where} are those of the export, {MIN_AGREEMENT:.0%} is the least{note}",
    )


def _accuracy(
    artifact: Path,
    entry: ArtifactReport,
    report: Report,
    backend: Backend,
    data: Dataset,
    threads: int,
    elsewhere: Elsewheres | None,
) -> tuple[bool | None, str]:
    from qexport.data.evaluation_set import make_shards
    from qexport.measurement.accuracy import evaluate_shards
    from qexport.measurement.shards import RunnerRequest
    from qexport.reporting.warnings import accuracy_warnings
    from qexport.tasks import SCORING

    chosen, model = usable(RunImages(evaluation=image_list(data, "val")), data.channels), report.model
    images, task = chosen.evaluation, model.task or ""
    if not has_labels(data, images):
        return None, f"the images of {data.yaml} have no labels"
    data = replace(data, single_class=model.single_class)
    with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
        names = dict(enumerate(model.names))
        shards = make_shards(data, images, Path(scratch) / "data", names, task=task, batch=model.batch)
        scored = evaluate_shards(
            partial(backend.runner, artifact, threads),
            _scored_layout(model),
            task,
            shards,
            batch=model.batch,
            elsewhere=elsewhere(RunnerRequest(entry.format, artifact, entry.sha256, threads)) if elsewhere else None,
        )
    unread = (*scored.unread, *(f"{each.path.name} ({each.reason})" for each in chosen.unscored))
    notes = accuracy_warnings(scored.images, unread, 0)
    metric = SCORING[task].names[0]
    assert scored.map is not None
    text = f"{scored.map:.4f} {metric} on {scored.images} images"
    warned = f" (warning: {'; '.join(note.text for note in notes)})" if notes else ""
    reported, evaluation = entry.accuracy.map if entry.accuracy else None, report.evaluation
    if reported is None or evaluation is None or evaluation.fingerprint != fingerprint(images):
        return None, f"{text}, the report has none of these images{warned}"
    return scored.map >= reported - MAP_TOLERANCE, f"{text}, {reported:.4f} in the report{warned}"


def _scored_layout(model: ModelInfo) -> HeadLayout:
    """What scoring has to know of the outputs, from what the report says of the model."""
    height, width = model.imgsz
    rows = model.head in ("end2end", "queries") or bool(model.nms)
    return HeadLayout((), (height, width), model.classes, end2end=rows, head=model.head)
