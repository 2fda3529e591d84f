"""Evidence of a run's artifacts: whose it is, what it is compared with, and its form in the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import demo_checkpoint, synthetic_statistics

from qexport.backends.artifact import Artifact
from qexport.backends.registry import find_backend
from qexport.calibration.calibration_table import CalibrationTable
from qexport.clock import Clock
from qexport.detections.thresholds import Thresholds
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.attempt import Unmeasured
from qexport.measurement.average_precision import ImageScores
from qexport.measurement.evidence import gather as gathering
from qexport.measurement.evidence.gather import Evidence, gather
from qexport.measurement.image_detections import ImageDetections, detections_of
from qexport.measurement.measure import Figures
from qexport.planning.plan import to_json
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.reporting.assemble import accuracy_info
from qexport.system.cache import Cache
from qexport.system.json_form import to_plain
from qexport.verification.result import ArtifactResult, float_counterparts

SMALL, WHOLE = Path("out/a_int8.onnx"), Path("out/a_fp32.onnx")
IMAGES = 10


def written(path: Path, precision: str) -> ArtifactResult:
    return ArtifactResult(Artifact(path, "onnx", precision, "0" * 64, 1), find_backend("onnx"))


def accuracy(folder: Path, misses: Sequence[int], score: float) -> Accuracy:
    """One object of class 2 in each image; of some images it is not found."""
    scores, found = {}, {}
    for index in range(IMAGES):
        count = int(index not in misses)
        name, boxes = f"{index}.jpg", torch.tensor([[10.0, 10, 30, 30]])[:count]
        scores[name] = ImageScores(
            np.ones((count, 10), dtype=bool), np.full(count, score), np.full(count, 2), np.full(1, 2)
        )
        seen = detections_of(boxes, torch.full((count,), score), torch.full((count,), 2.0))
        found[name] = ImageDetections(folder / name, (40, 40), seen)
    return Accuracy(1 - 0.1 * len(misses), 1, 0.9, IMAGES, (), {}, scores=scores, fidelity_scores=scores, found=found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    demo_checkpoint()  # repairs torchvision where it needs it
    folder = tmp_path_factory.mktemp("images")
    for index in range(IMAGES):
        cv2.imwrite(str(folder / f"{index}.jpg"), np.full((40, 40, 3), 100, np.uint8))
    return folder


def both(folder: Path, keys: tuple[str, str]) -> dict[Path, Figures]:
    made = Figures(accuracy(folder, [3, 7], 0.5)), Figures(accuracy(folder, [7], 0.8))
    return {path: replace(each, key=key) for path, each, key in zip((SMALL, WHOLE), made, keys, strict=True)}


@pytest.fixture(scope="module")
def evidence(tiny: Program, folder: Path) -> dict[Path, Evidence]:
    items, lost = [written(SMALL, "int8"), written(WHOLE, "fp32")], list[Unmeasured]()
    found = gather(tiny, "detect", None, items, both(folder, ("", "")), Clock(Silent()), lost)
    assert not lost
    return found


def test_each_file_is_compared_with_the_float_file_of_its_format() -> None:
    lite = replace(written(Path("b"), "fp32"), backend=find_backend("tflite"))
    every = [written(SMALL, "int8"), written(WHOLE, "fp32"), written(Path("c"), "fp16"), lite]
    assert float_counterparts(every) == {SMALL: WHOLE, Path("c"): WHOLE}
    assert float_counterparts([written(SMALL, "int8"), lite]) == {}


def entry_of(found: Evidence, names: dict[int, str]) -> dict[str, Any]:
    """What report.json says of an artifact's accuracy."""
    entry: dict[str, Any] = to_plain(accuracy_info(Accuracy(0.5, 0.6, None, IMAGES, (), {}), None, found, names))
    return entry


def test_what_a_file_lost_is_in_the_report(evidence: dict[Path, Evidence]) -> None:
    found = evidence[SMALL]
    entry = entry_of(found, {2: "ring"})
    # Found in 8 and 9 of 10 images, all right: 0.8 of the recall, so 80 points of 101, the first of them half.
    assert entry["per_class"] == [{"class": 2, "name": "ring", "labels": 10, "map": 0.795, "map_float": 0.895}]
    # The difference is one image of ten; a resample draws it 0 to 3 times in 95 %. Each time costs 0.1, but where
    # nothing at all is lost the last point is worth half as much.
    low, high = entry["drop_interval"]
    assert low == 0.0
    assert high == pytest.approx(0.3, abs=0.006)
    assert entry["map_interval"][0] < 0.795 < entry["map_interval"][1] <= 0.995
    assert entry["retention_interval"][0] == pytest.approx(1 - 0.3 / 0.9, abs=0.05)
    assert entry["retention_interval"][1] == 1.0
    assert entry["resamples"] == 1000
    assert entry["confidence"]["matched"] == 8
    assert (entry["confidence"]["mean_float"], entry["confidence"]["mean"]) == (0.8, 0.5)
    assert entry["confidence"]["shift"] == entry["confidence"]["p05"] == -0.3
    # FP32 finds nine with confidence; the file has eight, however low its threshold.
    assert found.thresholds == Thresholds(0.25, 0.1, {"2": 0.1}, -0.3, IMAGES, {"2": 9})
    assert found.gallery is not None
    (picture,) = found.gallery
    assert picture.image == "3.jpg"
    assert picture.lost == ({"box": [10.0, 10.0, 30.0, 30.0], "score": 0.8, "class": 2},)
    json.dumps([entry, to_plain(picture)], allow_nan=False)


def test_the_float_file_is_compared_with_nothing(evidence: dict[Path, Evidence]) -> None:
    entry = entry_of(evidence[WHOLE], {})
    assert entry["per_class"] == [{"class": 2, "name": "2", "labels": 10, "map": 0.895, "map_float": None}]
    assert entry["map_interval"][0] < 0.895
    assert entry["drop_interval"] is entry["retention_interval"] is entry["confidence"] is None
    found = evidence[WHOLE]
    assert [found.gallery, found.layers, found.histograms] == [None] * 3


@pytest.mark.parametrize(
    ("keys", "resampled", "compared"),
    [
        (("own", "float"), 0, set()),
        (("own", ""), 2, {SMALL, WHOLE}),
        (("other", "float"), 2, {SMALL}),
        (("own", "another"), 2, {SMALL, WHOLE}),
    ],
)
def test_evidence_of_the_same_accuracies_is_taken(
    tiny: Program,
    folder: Path,
    tmp_path: Path,
    evidence: dict[Path, Evidence],
    monkeypatch: pytest.MonkeyPatch,
    keys: tuple[str, str],
    resampled: int,
    compared: set[Path],
) -> None:
    """What is taken is what was made, to the last digit; of any other accuracy, or float file, it is made anew."""
    cache, items = Cache(tmp_path / "cache"), [written(SMALL, "int8"), written(WHOLE, "fp32")]
    made: list[Path] = []
    of_accuracy, of_scores = gathering._of_accuracy, gathering.resampled

    def counted(*given: Any) -> Evidence:
        made.append(given[4])
        return of_accuracy(*given)

    monkeypatch.setattr(gathering, "_of_accuracy", counted)
    first = gather(tiny, "detect", None, items, both(folder, ("own", "float")), Clock(Silent()), cache=cache)
    assert made == [SMALL, WHOLE]
    made.clear()
    drawn: list[Any] = []

    def resamples(_: str, each: dict[Path, Accuracy], *__: Any) -> dict[Path, Any]:
        drawn.extend(each)
        return {path: of_scores("detect", one.scores) for path, one in each.items()}

    monkeypatch.setattr(gathering, "_resamples", resamples)
    again = gather(tiny, "detect", None, items, both(folder, keys), Clock(Silent()), cache=cache)
    assert first == again == evidence
    assert (len(drawn), set(made)) == (resampled, compared)


def test_evidence_that_lacks_something_is_not_kept(
    tiny: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no")

    cache, items = Cache(tmp_path / "cache"), [written(SMALL, "int8"), written(WHOLE, "fp32")]
    given = items, both(folder, ("own", "float")), Clock(Silent())
    lost: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(gathering, "gallery", fails)
        assert gather(tiny, "detect", None, *given, lost, cache)[SMALL].gallery is None
    assert [each.what for each in lost] == ["gallery"]
    assert gather(tiny, "detect", None, *given, cache=cache)[SMALL].gallery


def test_without_a_float_file_there_is_nothing_to_compare_with(tiny: Program, folder: Path) -> None:
    figures = {SMALL: Figures(accuracy(folder, [3], 0.5))}
    (found,) = gather(tiny, "detect", None, [written(SMALL, "int8")], figures, Clock(Silent())).values()
    assert found.intervals is not None
    assert [found.intervals.drop, found.gallery, found.confidence] == [None] * 3


def test_layers_and_histograms_do_not_wait_for_accuracy(tiny: Program, tmp_path: Path) -> None:
    statistics = synthetic_statistics(tiny.values)
    plan = make_plan(tiny, statistics, TFLITE)
    saved = tmp_path / "plan.json"
    saved.write_text(to_json(plan), encoding="utf-8")
    table = CalibrationTable(tiny.fingerprint, "", "", (), (), statistics)
    item = replace(written(SMALL, "int8"), plan=saved, sqnr={"stem_conv": 12.0, "neck_conv": 9.0})
    clock = Clock(Silent())
    (found,) = gather(tiny, "detect", table, [item], {SMALL: Figures()}, clock).values()
    assert not {"resamples", "per_class", "map_interval"} & set(entry_of(found, {}))
    assert "bootstrap" not in clock.seconds
    assert found.gallery is None
    assert found.layers is not None
    assert len(found.layers) == len(tiny.values)
    assert found.histograms is not None
    assert [each.name for each in found.histograms] == ["neck_conv", "stem_conv"]
