"""Figures are taken of exactly the bytes, images, labels, packages and machine that they were measured on."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qexport.backends.artifact import describe_artifact
from qexport.backends.registry import find_backend
from qexport.clock import Clock
from qexport.data.dataset import Dataset
from qexport.data.selection import RunImages
from qexport.detections.detections import NOTHING, Detections
from qexport.measurement import kept as keeping
from qexport.measurement import measure as measuring
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.average_precision import ImageScores
from qexport.measurement.image_detections import ImageDetections
from qexport.measurement.kept import keep_accuracy, kept_accuracy
from qexport.measurement.latency import Latency
from qexport.measurement.measure import Figures, measure
from qexport.measurement.shapes import Shape
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.system.cache import Cache
from qexport.verification.outcome import OutputFidelity
from qexport.verification.result import ArtifactResult

FLOAT, ASKED = "m_fp32.onnx", "m_int8.onnx"


class Bench:
    """Two files, two images with labels, and counts of what is measured; nothing is run."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.program, self.folder, self.cache = program, folder, Cache(folder / "cache", {"torch": "2", "cpu": "one"})
        self.scored: list[Any] = []
        self.timed: list[Any] = []
        self.compared: list[Any] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self.widest = 1.0
        """The 95th percentile of latencies, by their medians."""
        (folder / "images").mkdir()
        (folder / "labels").mkdir()
        for name in "ab":
            Image.new("RGB", (16, 16), (90, ord(name), 9)).save(folder / "images" / f"{name}.png")
            (folder / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n", encoding="utf-8")
        self.images = tuple(sorted((folder / "images").iterdir()))
        self.data = Dataset(folder / "d.yaml", folder, {}, {0: "cat", 1: "dog"}, 3, None)
        self.task, self.threads, self.labelled = "detect", 2, True
        for name in (FLOAT, ASKED):
            (folder / name).write_bytes(name.encode())

    def results(self) -> list[ArtifactResult]:
        made = [(ASKED, "int8"), (FLOAT, "fp32")]
        found = [describe_artifact(self.folder / name, "onnx", precision) for name, precision in made]
        return [ArtifactResult(each, find_backend("onnx")) for each in found]

    def run(self) -> dict[str, Figures]:
        images = RunImages((), self.images, self.data, labelled=self.labelled)
        settings: dict[str, Any] = {
            "threads": self.threads,
            "accuracy": True,
            "latency": True,
            "clock": Clock(Silent()),
        }
        lost: list[Any] = []
        found = measure(self.program, self.task, images, self.results(), missing=lost, cache=self.cache, **settings)
        assert not lost
        return {path.name: each for path, each in found.items()}

    def evaluate(self, *given: Any, reference: Any, **_: Any) -> Accuracy:
        self.scored.append(reference)
        self.meanwhile()
        return accuracy(dict(given[3][0].links), 0.1 * len(self.scored))

    def measure_latency(self, runners: dict[str, Any], *_: Any, **__: Any) -> dict[str, Latency]:
        self.timed.append(list(runners))
        return {
            name: Latency(number + 1.5, (number + 1.5) * self.widest, 1.0, 36) for number, name in enumerate(runners)
        }

    def compare_outputs(self, *_: Any) -> tuple[OutputFidelity, ...]:
        self.compared.append(1)
        return (OutputFidelity("out", 30.25, 0.99, None, 2),)

    @property
    def counts(self) -> tuple[int, int]:
        """How often files were scored, and runtimes timed."""
        return len(self.scored), len(self.timed)


def accuracy(links: dict[str, Path], figure: float) -> Accuracy:
    boxes, classes = np.array([[1.0, 2.0, 3.0, figure]]), np.array([1.0])
    scores = {name: ImageScores(np.ones((1, 10), bool), np.ones(1), np.ones(1), np.zeros(2)) for name in links}
    found = {name: ImageDetections(path, (16, 12), NOTHING) for name, path in links.items()}
    detections = dict.fromkeys(links, (boxes, classes))
    return Accuracy(figure, 0.5, None, len(links), ("c.png (empty)",), detections, scores=scores, found=found)


@pytest.fixture
def bench(tiny: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tiny, tmp_path)
    monkeypatch.setattr(measuring, "evaluate_shards", made.evaluate)
    monkeypatch.setattr(measuring, "measure_latency", made.measure_latency)
    monkeypatch.setattr(measuring, "compare_outputs", made.compare_outputs)
    monkeypatch.setattr(measuring, "_finite", lambda *_: None)
    monkeypatch.setattr(measuring, "_runners", lambda item, _: {(item.artifact.path, ""): None})
    monkeypatch.setattr(type(find_backend("onnx")), "runner", lambda *_: None)
    return made


def test_what_was_measured_is_taken(bench: Bench) -> None:
    first, again = bench.run(), bench.run()
    assert bench.counts == (2, 1)
    assert all(not each.taken for each in first.values())
    assert {name: set(each.taken) for name, each in again.items()} == {
        name: {"accuracy", "latency"} for name in (ASKED, FLOAT)
    }
    for name, one in first.items():
        other = again[name]
        assert (other.latency, other.by_default) == (one.latency, one.by_default)
        assert one.accuracy
        assert other.accuracy
        assert (other.accuracy.map, other.accuracy.unread) == (one.accuracy.map, one.accuracy.unread)
    bench.cache = Cache()
    assert not bench.run()[ASKED].taken
    assert bench.counts == (4, 2)


CHANGES: dict[str, tuple[Callable[[Bench], object], tuple[int, int]]] = {
    "labels in place": (lambda b: (b.folder / "labels" / "a.txt").write_text("1 0.5 0.5 0.2 0.2\n"), (2, 0)),
    "labels that are gone": (lambda b: (b.folder / "labels" / "b.txt").unlink(), (2, 0)),
    "labels that do not count": (lambda b: setattr(b, "labelled", False), (2, 0)),
    "an image in place": (lambda b: Image.new("RGB", (16, 16), (1, 1, 1)).save(b.images[1]), (2, 0)),
    "an image less": (lambda b: setattr(b, "images", b.images[:1]), (2, 0)),
    "images in another order": (lambda b: setattr(b, "images", b.images[::-1]), (2, 1)),
    "classes by other names": (lambda b: setattr(b, "data", replace(b.data, names={0: "dog", 1: "cat"})), (2, 0)),
    "one class": (lambda b: setattr(b, "data", replace(b.data, single_class=True)), (2, 0)),
    "threads": (lambda b: setattr(b, "threads", 1), (2, 1)),
    "a package": (lambda b: setattr(b, "cache", replace(b.cache, conditions={"torch": "3", "cpu": "one"})), (2, 1)),
    "a machine": (lambda b: setattr(b, "cache", replace(b.cache, conditions={"torch": "2", "cpu": "two"})), (2, 1)),
    "a program": (lambda b: setattr(b, "program", replace(b.program, fingerprint="other")), (2, 0)),
    "the file": (lambda b: (b.folder / ASKED).write_bytes(b"other"), (1, 1)),
    "the float file": (lambda b: (b.folder / FLOAT).write_bytes(b"other"), (2, 1)),  # which fidelity refers to
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_measured_anew(bench: Bench, change: str) -> None:
    bench.run()
    done, anew = CHANGES[change]
    done(bench)
    bench.run()
    assert bench.counts == (2 + anew[0], 1 + anew[1])


def test_latency_is_of_one_host(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run()
    monkeypatch.setattr(platform, "node", lambda: "another")
    assert set(bench.run()[ASKED].taken) == {"accuracy"}
    assert bench.counts == (2, 2)


def test_latency_is_of_one_share_of_the_cores(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's, which the number of cores does not show."""
    for quota, timed in ((None, 1), (0.5, 2), (2.0, 3), (0.5, 3)):
        monkeypatch.setattr(keeping, "control_group_limits", lambda found=quota: (found, None))
        bench.run()
        assert bench.counts == (2, timed)


def test_labels_that_cannot_be_read_cost_no_figure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validator leaves out what is theirs; nothing is kept, as nobody knows what they are."""

    def refused(path: Path) -> bytes:
        if path.name.endswith("-a.txt"):
            raise PermissionError(13, "Permission denied")
        return path.read_bytes()

    monkeypatch.setattr(keeping, "read_bytes", refused)
    for scored in (2, 4):
        assert bench.run()[ASKED].accuracy
        assert bench.counts == (scored, 1)


def test_latencies_of_a_restless_machine_are_taken_for_an_hour(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.widest = 1.21
    first = bench.run()[ASKED].latency
    assert first
    assert first.restless
    again = bench.run()[ASKED]
    assert (again.latency, set(again.taken)) == (first, {"accuracy", "latency"})
    monkeypatch.setattr(keeping, "RESTLESS", timedelta(0))  # an hour has passed
    bench.widest = 1.19
    assert set(bench.run()[ASKED].taken) == {"accuracy"}
    assert set(bench.run()[ASKED].taken) == {"accuracy", "latency"}
    assert bench.counts == (2, 2)


def test_an_accuracy_is_known_again_by_what_it_is_of_and_where_its_images_lie(bench: Bench) -> None:
    """Nobody knows again what is not kept: that may change while it is measured."""
    first, again = bench.run(), bench.run()
    keys = {name: each.key for name, each in first.items()}
    assert len(set(keys.values())) == 2
    assert {name: each.key for name, each in again.items()} == keys
    (bench.folder / "labels" / "a.txt").write_text("1 0.5 0.5 0.2 0.2\n", encoding="utf-8")
    changed = {name: each.key for name, each in bench.run().items()}
    assert not set(changed.values()) & set(keys.values())
    (bench.folder / "images").rename(bench.folder / "elsewhere")
    (bench.folder / "images").symlink_to(bench.folder / "elsewhere")
    bench.images = tuple(sorted((bench.folder / "elsewhere").iterdir()))
    bench.data = replace(bench.data, root=bench.folder)
    moved = {name: each.key for name, each in bench.run().items()}
    assert all(moved.values())
    assert not set(moved.values()) & set(changed.values())
    bench.cache = Cache()
    assert {each.key for each in bench.run().values()} == {""}


def test_what_changes_while_it_is_measured_is_not_kept(bench: Bench) -> None:
    bench.meanwhile = lambda: (bench.folder / "labels" / "a.txt").write_text(f"1 0.5 0.5 0.2 0.{len(bench.scored)}\n")
    bench.run()
    bench.meanwhile = lambda: None
    (bench.folder / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert not bench.run()[FLOAT].taken.get("accuracy")
    bench.threads = 3
    bench.meanwhile = lambda: (bench.folder / ASKED).write_bytes(b"replaced meanwhile")
    bench.run()
    assert not bench.run()[ASKED].taken


def test_what_could_not_be_measured_is_not_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_latency", fails)
        patch.setattr(measuring, "evaluate_shards", fails)
        with pytest.raises(AssertionError, match="RuntimeError: no"):
            bench.run()
    assert not bench.run()[ASKED].taken


def test_outputs_of_unknown_meaning(bench: Bench) -> None:
    bench.task = ""
    first, again = bench.run(), bench.run()
    assert len(bench.compared) == 1
    assert again[ASKED].outputs == first[ASKED].outputs == (OutputFidelity("out", 30.25, 0.99, None, 2),)
    assert set(again[ASKED].taken) == {"outputs", "latency"}
    (bench.folder / FLOAT).write_bytes(b"other")
    bench.run()
    assert len(bench.compared) == 2


def test_every_part_of_an_accuracy_comes_back(tmp_path: Path) -> None:
    """Of masks, keypoints, turned boxes and answers; images are where they are now."""
    points = np.array([[1.5, 2.5, 1.0]], np.float32)
    shapes = (Shape((np.array([[1, 2], [3, 4]], np.int32),)), Shape(points=points), Shape())
    turned = Detections(
        np.ones((3, 4), np.float32), np.ones(3, np.float32), np.arange(3), np.full((3, 1), 0.7, np.float32), "rotated"
    )
    one = ImageDetections(Path("/then/a.png"), (16, 12), turned, shapes)
    answer = ImageDetections(Path("/then/b.png"), (0, 0), NOTHING, probabilities=np.array([0.25, 0.75], np.float32))
    empty = ImageScores(np.zeros((0, 10), bool), np.zeros(0), np.zeros(0), np.zeros(0, np.float32))
    given = Accuracy(
        *(
            1 / 3,
            None,
            0.7,
            2,
            (),
            {"a": (np.zeros((0, 5)), np.zeros(0)), "b": (np.ones(2), np.ones(1, np.int64))},
        ),
        box_map=float("nan"),
        scores={"a": empty},
        fidelity_scores={"b": empty},
        fidelity_ceiling=1.0,
        found={"a": one, "b": answer},
    )
    cache, links = Cache(tmp_path), {"a": Path("/now/x.png"), "b": Path("/now/b.png")}
    keep_accuracy(cache, key := cache.key("accuracy", {}), given)
    read = kept_accuracy(cache, key, links)
    assert read is not None
    found = read[0]
    assert (found.map, found.map50, found.fidelity, found.images, found.unread) == (1 / 3, None, 0.7, 2, ())
    assert found.box_map is not None
    assert np.isnan(found.box_map)
    assert found.detections["a"][0].shape == (0, 5)
    assert found.detections["b"][1].dtype == np.int64
    assert found.scores["a"].correct.shape == (0, 10)
    assert found.fidelity_scores["b"].labels.dtype == np.dtype(np.float32)
    back = found.found["a"]
    assert (back.path, back.size, back.detections.box_format) == (Path("/now/x.png"), (16, 12), "rotated")
    assert back.shapes[0].polygons[0].tolist() == [[1, 2], [3, 4]]
    assert back.shapes[0].points is None
    assert back.shapes[1].points is not None
    assert back.shapes[1].points.tolist() == points.tolist()
    assert back.detections.extras.tolist() == turned.extras.tolist()
    assert found.found["b"].probabilities is not None
    assert found.found["b"].probabilities.tolist() == [0.25, 0.75]
    assert b"/then" not in next(tmp_path.iterdir()).read_bytes()
    assert kept_accuracy(cache, key, {"a": Path("a")}) is None
