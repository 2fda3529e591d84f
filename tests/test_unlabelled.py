"""Evaluation images without labels: what INT8 keeps of FP32 is measured all the same, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DEMO, demo_checkpoint, demo_images

from qexport.data.dataset import load_dataset, load_folder
from qexport.data.evaluation_set import make_evaluation_set
from qexport.data.selection import ImageChoice, RunImages, select_images
from qexport.errors import InputError
from qexport.job.options import make_job
from qexport.measurement.dataset_check import as_trained, check_data
from qexport.pipeline import export
from qexport.progress import Silent
from qexport.reporting.gate import check
from qexport.reporting.load import load_report
from qexport.reporting.page.render import render
from qexport.reporting.report import Report
from qexport.reporting.summary import to_markdown
from qexport.tasks import TaskSpec
from qexport.testing import FakeBackend, registered

COUNT = 6


def images_in(folder: Path, count: int = COUNT) -> Path:
    """A folder of links to validation images of the demo, without their labels."""
    folder.mkdir(parents=True)
    for image in demo_images("val", count):
        (folder / image.name).symlink_to(image)
    return folder


def as_folder(place: Path) -> Path:
    return images_in(place / "photos")


def as_list(place: Path) -> Path:
    listing = place / "photos.txt"
    listing.write_text("\n".join(map(str, sorted(images_in(place / "photos").iterdir()))))
    return listing


def as_yaml(place: Path) -> Path:
    images_in(place / "images")
    path = place / "photos.yaml"
    path.write_text(yaml.safe_dump({"val": "images", "names": ["something", "else"]}))
    return path


def chosen(data: Path, **changes: Any) -> RunImages:
    return select_images(ImageChoice(eval_data=str(data), **changes))


@pytest.mark.parametrize("form", [as_folder, as_list, as_yaml])
def test_images_alone_can_be_compared_on(form: Callable[[Path], Path], tmp_path: Path) -> None:
    images = chosen(form(tmp_path))
    assert (len(images.evaluation), images.labelled) == (COUNT, False)
    # A YAML may have been meant to have labels: it is said where they were looked for.
    noted = [f"no label files for the images of {tmp_path / 'photos.yaml'} (looked for {tmp_path / 'labels'}/"]
    assert [note.startswith(noted[0]) and note.endswith(".txt): fidelity only") for note in images.notes] == (
        [True] if form is as_yaml else []
    )
    # Whatever its classes are called: nobody asks.
    assert check_data(demo_checkpoint().task_spec, images) == images


@pytest.mark.parametrize("form", [as_folder, as_list, as_yaml])
def test_fp32_alone_has_nothing_to_be_compared_with(form: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no label files .*accuracy needs labels"):
        chosen(form(tmp_path), compares=False)


def test_images_without_a_label_file_are_background_where_others_have_one(tmp_path: Path) -> None:
    folder = as_folder(tmp_path)
    (folder / f"{demo_images('val', 1)[0].stem}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    images = chosen(folder)
    assert images.labelled
    assert check_data(demo_checkpoint().task_spec, images).labelled
    assert len(images.evaluation) == COUNT


@pytest.mark.parametrize(
    ("task", "words"),
    [("segment", "labels for segment do not have 5 columns"), ("classify", "label files are not for classifiers")],
)
def test_labels_of_another_task_beside_images_alone_are_not_used(task: str, words: str) -> None:
    """COCO's images are for any model, whatever labels lie beside them; a YAML says what it is for."""
    spec = replace(demo_checkpoint().task_spec, task=task)
    images = chosen(DEMO / "shapes" / "images" / "val")
    assert images.labelled
    found = check_data(spec, images)
    assert not found.labelled
    assert words in found.notes[-1]
    with pytest.raises(InputError, match=words):
        check_data(spec, images, compares=False)
    described = replace(images, evaluation_data=load_dataset(DEMO / "shapes" / "shapes.yaml"))
    with pytest.raises(InputError):
        check_data(spec, described)


def test_images_of_other_channels_are_refused_all_the_same(tmp_path: Path) -> None:
    path = as_yaml(tmp_path)
    path.write_text(path.read_text() + "channels: 1\n")
    with pytest.raises(InputError, match="images of 1 channels"):
        check_data(demo_checkpoint().task_spec, chosen(path))


def test_what_nobody_says_of_images_alone_is_the_models(tmp_path: Path) -> None:
    spec = TaskSpec(Path("grey.pt"), "pose", {0: "cat"}, 1, (17, 3))
    data = as_trained(spec, chosen(as_folder(tmp_path))).evaluation_data
    assert data is not None
    assert (data.channels, data.kpt_shape, data.names) == (1, (17, 3), {0: "cat"})


def test_a_classifiers_images_lie_in_a_folder_for_each_of_its_classes(tmp_path: Path) -> None:
    """Ultralytics takes the number of classes from them."""
    folder = as_folder(tmp_path)
    images = sorted(folder.iterdir())
    made = make_evaluation_set(load_folder(folder), images, tmp_path / "set", {0: "a", 1: "b", 2: "c"}, task="classify")
    assert not made.labelled
    assert sorted(each.name for each in (tmp_path / "set" / "val").iterdir()) == ["000000", "000001", "000002"]
    assert [link.resolve() for link in sorted((tmp_path / "set" / "val" / "000000").iterdir())] == [
        image.resolve() for image in images
    ]
    assert list(made.links.values()) == images


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    pytest.importorskip("torchao", reason="needs the extra qexport[tflite]")
    place = tmp_path_factory.mktemp("run")
    options = {"model": str(DEMO / "shapes26.pt"), "data": str(DEMO / "shapes" / "shapes.yaml"), "format": "fake"}
    quick = {"effort": "none", "imgsz": "96", "calib_images": 4, "no_latency": True, "out": place / "out"}
    with registered(FakeBackend):
        photos = str(images_in(place / "photos", 12))
        made = export(make_job({**options, **quick, "int8": True, "eval_data": photos}), Silent())
        assert load_report(place / "out" / "report.json") == made
    return made


@pytest.mark.slow
def test_a_run_measures_what_compares_with_fp32_and_nothing_else(report: Report) -> None:
    small, whole = report.artifacts
    assert report.unmeasured == ()
    assert report.evaluation is not None
    assert not report.evaluation.labelled
    found = small.accuracy
    assert found is not None
    assert (found.map, found.map50, found.drop, found.retention, found.map_interval) == (None,) * 5
    assert found.images == 12
    assert found.fidelity is not None
    assert found.fidelity50 is not None
    for figure, interval in ((found.fidelity, found.fidelity_interval), (found.fidelity50, found.fidelity50_interval)):
        assert interval is not None
        assert 0 < interval[0] <= figure <= interval[1] <= 0.995
    assert found.fidelity <= found.fidelity50
    every, *sizes = found.matched_boxes
    assert every.boxes == sum(row.boxes for row in sizes) >= every.matched == sum(row.matched for row in sizes) > 10
    assert 0.5 < (every.mean_iou or 0) < 1
    assert found.confidence is not None
    assert found.confidence.matched == every.matched
    assert small.gallery is not None
    assert whole.accuracy is not None
    assert (whole.accuracy.map, whole.accuracy.fidelity) == (None, None)


@pytest.mark.slow
def test_a_run_says_that_there_are_no_labels_wherever_its_figures_are(report: Report) -> None:
    said = "no labels: fidelity only"
    assert f"compared on 12 images ({said})" in to_markdown(report).splitlines()[0]
    page = render(report)
    assert said in page
    assert "Retention" not in page
    assert 'data-title="Fidelity"' in page
    rules = check(report, {"min-retention": 0.9, "max-drop": 1.0, "min-fidelity": 0.1}, "int8")
    assert [each.passed for each in rules] == [True, False, True]
    assert "as there are no labels" in rules[0].text
    assert rules[1].text.startswith(
        "retention of shapes26_int8.fake could not be measured: the evaluation images have no labels; at least 90.00%"
    )
