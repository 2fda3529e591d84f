"""Dataset YAMLs, image lists, overlap, subsets and fingerprints, on files written by hand."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qexport.data import dataset as module
from qexport.data.choice import take
from qexport.data.dataset import fingerprint, image_list, load_dataset, overlap
from qexport.errors import InputError, UsageError


def _write(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def _yaml(folder: Path, *lines: str, names: str = "names: [cat]") -> Path:
    return _write(folder / "data.yaml", "\n".join((*lines, names)) + "\n")


def test_splits_are_relative_to_the_yaml_without_a_path_key(tmp_path: Path) -> None:
    dataset = load_dataset(_yaml(tmp_path, "train: images/a", "val: images/b", "test:"))
    assert dict(dataset.splits) == {"train": (tmp_path / "images/a",), "val": (tmp_path / "images/b",)}
    assert dataset.root == tmp_path
    assert dataset.yaml == tmp_path / "data.yaml"
    assert dataset.channels == 3
    assert dataset.download is None


def test_a_list_of_sources_and_the_long_name_of_val(tmp_path: Path) -> None:
    dataset = load_dataset(_yaml(tmp_path, "train: [a, b]", "validation: c", "channels: 1"))
    assert dataset.splits["train"] == (tmp_path / "a", tmp_path / "b")
    assert dataset.splits["val"] == (tmp_path / "c",)
    assert dataset.channels == 1


def test_a_relative_path_key_is_found_beside_the_yaml_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("here", "cwd", "datasets"):
        (tmp_path / place / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    yaml, datasets = _yaml(tmp_path / "here", "path: set", "train: t"), tmp_path / "datasets"
    for place in ("here", "cwd", "datasets"):
        assert load_dataset(yaml, datasets).root == tmp_path / place / "set"
        (tmp_path / place / "set").rmdir()
    assert load_dataset(yaml, datasets).root == tmp_path / "here/set"


def test_a_split_one_folder_up_that_lies_beside_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    dataset = load_dataset(_yaml(tmp_path / "set", "train: ../train", "val: ../nowhere"))
    assert dataset.splits["train"] == (tmp_path / "set/train",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: [cat, dog]", {0: "cat", 1: "dog"}),
        ("names: {1: dog, 0: cat}", {0: "cat", 1: "dog"}),
        ("names: {'0': cat, '1': true}", {0: "cat", 1: "True"}),
        ("nc: 2", {0: "class_0", 1: "class_1"}),
        ("nc: '1'\nnames: [cat]", {0: "cat"}),
    ],
)
def test_names(tmp_path: Path, names: str, expected: dict[int, str]) -> None:
    assert load_dataset(_yaml(tmp_path, "train: t", names=names)).names == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: t\n", "neither 'names' nor 'nc'"),
        ("train: t\nnames: cat\n", "'names' in"),
        ("train: t\nnames: {0: cat, 2: dog}\n", "not numbered 0 to n-1"),
        ("train: t\nnames: []\n", "not numbered 0 to n-1"),
        ("train: t\nnames: [a, b]\nnc: 3\n", "2 names but 'nc: 3'"),
        ("train: t\nnc: 1.5\n", "'nc' in"),
        ("train: t\nnc: true\n", "'nc' in"),
        ("train: t\nnames: {0: a, 1.5: b}\n", "'names' in"),
        ("train: 7\nnames: [a]\n", "'train' in"),
        ("path: [a]\ntrain: t\nnames: [a]\n", "'path' in"),
        ("- a\n- b\n", "not a YAML mapping"),
        ("", "not a YAML mapping"),
        ("train: [a\n", "not valid YAML"),
    ],
)
def test_a_bad_yaml_is_one_line_that_names_the_file(tmp_path: Path, content: str, message: str) -> None:
    yaml = _write(tmp_path / "bad.yaml", content)
    with pytest.raises(InputError) as caught:
        load_dataset(yaml)
    assert message in str(caught.value)
    assert str(yaml) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_yaml_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml does not exist"):
        load_dataset(tmp_path / "gone.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_dataset(tmp_path)


def test_a_folder_is_read_recursively_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    for name in ("t/b.JPG", "t/a.png", "t/deep/er/c.webp", "t/notes.txt", "t/._a.png", "t/label.jpg.txt"):
        _write(tmp_path / name)
    dataset = load_dataset(_yaml(tmp_path, "train: t"))
    assert image_list(dataset, "train") == tuple(tmp_path / f for f in ("t/a.png", "t/b.JPG", "t/deep/er/c.webp"))


def test_a_folder_with_glob_signs_in_its_name(tmp_path: Path) -> None:
    image = _write(tmp_path / "t[1]*" / "a.png")
    assert image_list(load_dataset(_yaml(tmp_path, "train: 't[1]*'")), "train") == (image,)


def test_the_suffixes_are_those_of_ultralytics() -> None:
    from ultralytics.data.utils import IMG_FORMATS

    assert {f".{name}" for name in IMG_FORMATS} == module.IMAGE_SUFFIXES


def test_a_list_file_is_relative_to_itself(tmp_path: Path) -> None:
    inside, outside = _write(tmp_path / "lists/i/a.jpg"), _write(tmp_path / "elsewhere/b.png")
    beside = _write(tmp_path / "i/c.png")
    # A byte-order mark, Windows line ends, a blank line and a line that is no image.
    text = f"\ufeff./i/a.jpg\r\n{outside}\r\n\r\ni/c.png\r\nreadme.md\r\n./i/a.jpg\r\n"
    _write(tmp_path / "lists/train.txt", text)
    dataset = load_dataset(_yaml(tmp_path, "train: lists/train.txt"))
    assert image_list(dataset, "train") == tuple(sorted((outside, beside, inside)))


def test_a_list_file_that_names_missing_images(tmp_path: Path) -> None:
    _write(tmp_path / "train.txt", "./a.jpg\n./b.jpg\n")
    with pytest.raises(InputError, match=r"names 2 images that do not exist, the first is .*a\.jpg"):
        image_list(load_dataset(_yaml(tmp_path, "train: train.txt")), "train")


def test_a_list_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="cannot be read as a list"):
        image_list(load_dataset(_yaml(tmp_path, "train: train.txt")), "train")


def test_sources_are_joined_and_an_image_counts_once(tmp_path: Path) -> None:
    a, b = _write(tmp_path / "t/a.jpg"), _write(tmp_path / "t/u/b.jpg")
    dataset = load_dataset(_yaml(tmp_path, "train: [t/u, t, t/a.jpg]"))
    assert image_list(dataset, "train") == (a, b)


def test_a_split_that_is_not_in_the_yaml_names_those_that_are(tmp_path: Path) -> None:
    dataset = load_dataset(_yaml(tmp_path, "train: t", "test: u"))
    with pytest.raises(InputError, match=r"no split 'val' \(splits in it: train, test\)"):
        image_list(dataset, "val")


def test_a_missing_folder_is_named_and_download_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    yaml = _yaml(tmp_path, "train: t", f"download: open({str(marker)!r}, 'w')")
    with pytest.raises(InputError, match=r"/t does not exist: .*'download:' key is never run"):
        image_list(load_dataset(yaml), "train")
    assert not marker.exists()
    with pytest.raises(InputError, match=r"/t does not exist: correct the path in the YAML$"):
        image_list(load_dataset(_yaml(tmp_path, "train: t")), "train")


def test_a_folder_without_images(tmp_path: Path) -> None:
    _write(tmp_path / "t/readme.txt")
    with pytest.raises(InputError, match="no images in split 'train'"):
        image_list(load_dataset(_yaml(tmp_path, "train: t")), "train")


def test_overlap_is_by_content(tmp_path: Path) -> None:
    one, two, three = (_write(tmp_path / f"a/{n}.jpg", text) for n, text in enumerate(("same", "diff", "longer")))
    copy, other = _write(tmp_path / "b/9.jpg", "same"), _write(tmp_path / "b/1.jpg", "fidd")
    assert overlap((three, two, one), (copy, other)) == (one,)
    assert overlap((two, three), (three, copy)) == (three,)
    assert overlap((), (copy,)) == ()


def test_overlap_reads_no_file_whose_size_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _write(tmp_path / "a.jpg", "1234"), _write(tmp_path / "b.jpg", "12345")

    def refuse(image: Path) -> bytes:
        raise AssertionError(f"{image} was read")

    monkeypatch.setattr(module, "_digest", refuse)
    assert overlap((a,), (b,)) == ()
    assert overlap((a,), (a,)) == (a,)


def test_overlap_names_an_image_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg cannot be read"):
        overlap((tmp_path / "gone.jpg",), ())


TEN = tuple(Path(f"{i}.jpg") for i in range(10))


@pytest.mark.parametrize(
    ("fraction", "count", "seed", "chosen"),
    [
        (1.0, None, 0, range(10)),
        (1.0, 10, 3, range(10)),
        (1.0, 99, 0, range(10)),
        # Thirds of ten images start at 0, 3 1/3 and 6 2/3; the offset of 5/3 puts the choice in their middle.
        (1.0, 3, 0, (1, 5, 8)),
        (1.0, 3, 1, (2, 5, 8)),
        (0.5, None, 0, (1, 3, 5, 7, 9)),
        (0.5, 2, 0, (2, 7)),
        (0.001, None, 0, (5,)),
    ],
)
def test_take(fraction: float, count: int | None, seed: int, chosen: tuple[int, ...]) -> None:
    assert take(TEN, fraction, count, seed) == tuple(TEN[i] for i in chosen)


@given(total=st.integers(1, 300), kept=st.integers(1, 300), seed=st.integers(-5, 10**6))
def test_take_is_ordered_distinct_and_even(total: int, kept: int, seed: int) -> None:
    images = tuple(Path(f"{i:04}") for i in range(total))
    chosen = [int(image.name) for image in take(images, count=kept, seed=seed)]
    assert len(chosen) == min(total, kept)
    steps = {b - a for a, b in itertools.pairwise(chosen)}
    assert all(step > 0 for step in steps)
    assert not steps or max(steps) - min(steps) <= 1


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_fraction_out_of_range_names_the_option(fraction: float) -> None:
    with pytest.raises(UsageError, match="--fraction"):
        take(TEN, fraction)


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_out_of_range_names_the_option(count: int) -> None:
    with pytest.raises(UsageError, match="--calib-images"):
        take(TEN, 1.0, count)


def test_take_of_nothing() -> None:
    assert take((), 0.5, 3) == ()


def test_the_fingerprint_follows_names_bytes_and_members_only(tmp_path: Path) -> None:
    a, b = _write(tmp_path / "one/s/a.jpg", "aa"), _write(tmp_path / "one/b.jpg", "bb")
    first = fingerprint((a, b))
    assert len(first) == 32
    assert fingerprint((b, a)) == first
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert fingerprint((tmp_path / "two/s/a.jpg", tmp_path / "two/b.jpg")) == first
    assert fingerprint((a,)) != first
    a.write_text("AA")
    assert fingerprint((a, b)) != first
    a.write_text("aa")
    assert fingerprint((a.rename(a.with_name("c.jpg")), b)) != first
    assert fingerprint(()) != first


def test_the_fingerprint_is_the_same_on_every_machine(tmp_path: Path) -> None:
    # printf 'a.jpg\0' and the raw 16-byte BLAKE2b of "aa", through `b2sum -l 128`.
    assert fingerprint((_write(tmp_path / "a.jpg", "aa"),)) == "561603a6d623647ca23cf2c92d62a5ad"


@pytest.mark.real
@pytest.mark.parametrize(("name", "split", "count"), [("coco8", "train", 4), ("coco128", "train", 128)])
def test_real_data_sets(name: str, split: str, count: int) -> None:
    yaml = Path(__file__).parents[2] / "shared/datasets" / name / f"{name}.yaml"
    if not yaml.is_file():
        pytest.skip(f"{yaml} is not on this machine")
    dataset = load_dataset(yaml)
    assert len(image_list(dataset, split)) == count
    assert (len(dataset.names), dataset.names[79]) == (80, "toothbrush")
