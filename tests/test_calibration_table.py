"""Calibration tables as files."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import statistics_of

from qexport.calibration.calibration_table import CalibrationTable, check_table, load_table, save_table
from qexport.calibration.observer import Observer
from qexport.calibration.statistics import BINS, Statistics
from qexport.errors import InputError


def made() -> CalibrationTable:
    generator = np.random.default_rng(0)
    values = {
        "images": statistics_of(generator.uniform(0, 1, 500).astype(np.float32), 1.0),
        "model_0_conv": statistics_of(generator.normal(size=500).astype(np.float32), 8.0),
    }
    importance = (generator.exponential(size=BINS) * 1e-12).astype(np.float32).astype(np.float64)
    values["model_0_conv"] = replace(
        values["model_0_conv"],
        minimum=-1 / 3 - 5,
        maximum=0.1 + 4,
        lowest=-1 / 3 - 9,
        highest=12.3,
        images=2,
        importance=importance,
    )
    return CalibrationTable("program", "letterbox 640x640", "list", ("a.jpg", "b ü.jpg"), (("c.jpg", "empty"),), values)


def assert_same(one: Statistics, other: Statistics) -> None:
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.counts.dtype == other.counts.dtype == np.int64
    assert (one.importance is None) == (other.importance is None)
    if one.importance is not None and other.importance is not None:
        np.testing.assert_array_equal(one.importance, other.importance)
        assert other.importance.dtype == np.float64
    for field in vars(one).keys() - {"counts", "importance"}:
        assert getattr(one, field) == getattr(other, field), field


def test_a_table_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    table = made()
    save_table(table, tmp_path / "calibration.npz")
    again = load_table(tmp_path / "calibration.npz")
    assert replace(again, statistics={}) == replace(table, statistics={})
    assert list(again.statistics) == list(table.statistics)
    for name, statistics in table.statistics.items():
        assert_same(again.statistics[name], statistics)
    assert [p.name for p in tmp_path.iterdir()] == ["calibration.npz"]


def test_the_file_holds_statistics_and_no_scales(tmp_path: Path) -> None:
    save_table(made(), tmp_path / "calibration.npz")
    with np.load(tmp_path / "calibration.npz", allow_pickle=False) as content:
        assert sorted(content) == ["counts", "head", "importance", "scalars"]
        head = json.loads(str(content["head"]))
        assert content["scalars"].shape == (2, 6)
        assert content["importance"].shape == (1, BINS)
    known = {
        "schema",
        "program",
        "preprocess",
        "images",
        "image_names",
        "skipped",
        "made_by",
        "views",
        "values",
        "important",
    }
    assert set(head) == known


def test_a_table_of_the_first_schema_is_read(tmp_path: Path) -> None:
    """As version 1 wrote it: three numbers of each value and no importance."""
    table = made()
    head = {"schema": 1, "program": "program", "preprocess": "letterbox 640x640", "images": "list"}
    head |= {"image_names": ["a.jpg", "b ü.jpg"], "skipped": [["c.jpg", "empty"]], "values": list(table.statistics)}
    scalars = np.array([[s.minimum, s.maximum, s.limit] for s in table.statistics.values()])
    counts = np.stack([s.counts for s in table.statistics.values()])
    with (tmp_path / "old.npz").open("wb") as stream:
        np.savez_compressed(stream, head=np.array(json.dumps(head)), scalars=scalars, counts=counts)
    again = load_table(tmp_path / "old.npz")
    assert replace(again, statistics={}) == replace(table, statistics={})
    for name, statistics in table.statistics.items():
        assert_same(again.statistics[name], replace(statistics, lowest=0.0, highest=0.0, images=0, importance=None))


def test_neither_memory_nor_file_grows_with_the_images(tmp_path: Path) -> None:
    """Thirty times the images through an observer: the same arrays, and no more bytes than longer numbers take."""
    sizes = []
    for images in (10, 300):
        observer = Observer()
        for seed in range(images):
            observer.update(torch.rand(4000, generator=torch.Generator().manual_seed(seed)))
        statistics = observer.statistics()
        assert statistics.counts.nbytes == BINS * 8
        table = replace(made(), statistics={f"value_{i}": statistics for i in range(20)})
        save_table(table, tmp_path / f"{images}.npz")
        with np.load(tmp_path / f"{images}.npz") as content:
            sizes.append({name: content[name].nbytes for name in ("scalars", "counts")})
    assert sizes[0] == sizes[1]
    assert (tmp_path / "300.npz").stat().st_size < 2 * (tmp_path / "10.npz").stat().st_size


def test_a_table_of_another_model_or_preprocessing_is_refused() -> None:
    table, path = made(), Path("mine.npz")
    check_table(table, "program", "letterbox 640x640", ["images"], path)
    with pytest.raises(InputError, match=r"mine\.npz was calibrated for another model, head or image size"):
        check_table(table, "another", "letterbox 640x640", [], path)
    with pytest.raises(InputError, match=r"with letterbox 640x640, this run uses letterbox 320x320"):
        check_table(table, "program", "letterbox 320x320", [], path)
    with pytest.raises(InputError, match="says nothing of model_1_conv"):
        check_table(table, "program", "letterbox 640x640", ["images", "model_1_conv"], path)


def damaged(edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save_table(made(), path)
        path.write_bytes(edit(path.read_bytes()))

    return write


def another_array(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, weights=np.zeros(3))


def pickled(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def plain_array(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


def without_values(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, head=np.array('{"schema": 1}'), scalars=np.zeros((1, 3)), counts=np.zeros((1, BINS)))


def too_few_rows(path: Path) -> None:
    save_table(made(), path)
    with np.load(path) as content:
        arrays = {name: content[name] for name in content}
    with path.open("wb") as stream:
        np.savez(stream, **(arrays | {"counts": arrays["counts"][:1]}))


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """A collection looks through what the test has made, and not through the million objects of torch and its like."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("calibrated"),
        lambda path: path.mkdir(),
        damaged(lambda content: content[: len(content) // 2]),
        damaged(lambda content: content[:200] + bytes(400) + content[600:]),
        another_array,
        pickled,
        plain_array,
        without_values,
        too_few_rows,
    ],
    ids=["missing", "empty", "text", "folder", "cut", "damaged", "other", "pickle", "array", "head", "rows"],
)
def test_what_is_no_table_is_named(write: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    write(path)
    with pytest.raises(InputError, match=r"mine\.npz") as caught:
        load_table(path)
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()  # a file left open is a warning, and here an error


def test_a_table_of_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    with path.open("wb") as stream:
        np.savez(stream, head=np.array('{"schema": 99}'), scalars=np.zeros((0, 3)), counts=np.zeros((0, BINS)))
    with pytest.raises(InputError, match="schema 99"):
        load_table(path)
