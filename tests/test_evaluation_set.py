"""The evaluation images as a data set of their own: links only, the user's folders stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qexport.data.dataset import Dataset, label_path
from qexport.data.evaluation_set import make_evaluation_set


def user_data(root: Path, count: int = 3, labelled: int = 3) -> tuple[Dataset, list[Path]]:
    """A data set in Ultralytics' layout with one image name in two folders."""
    images = []
    for index in range(count):
        image = root / "images" / f"part{index % 2}" / f"{index // 2}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(f"image {index}".encode())
        images.append(image)
        if index < labelled:
            label = root / "labels" / f"part{index % 2}" / f"{index // 2}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f"{index} 0.5 0.5 0.1 0.1\n")
    dataset = Dataset(root / "data.yaml", root, {"val": (root / "images",)}, {0: "a", 1: "b", 2: "c"}, 3, None)
    return dataset, images


def everything(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_images_and_labels_are_linked_in_order_and_pair_up(tmp_path: Path) -> None:
    dataset, images = user_data(tmp_path / "user")
    made = make_evaluation_set(dataset, images, tmp_path / "scratch")
    assert tuple(made.links.values()) == tuple(images)
    assert sorted(made.links) == list(made.links)
    linked = sorted((tmp_path / "scratch" / "images").iterdir())
    assert [p.read_bytes() for p in linked] == [b"image 0", b"image 1", b"image 2"]
    for index, link in enumerate(linked):
        # Where Ultralytics looks: the file of the same name below labels.
        label = tmp_path / "scratch" / "labels" / f"{link.stem}.txt"
        assert label.read_text().startswith(f"{index} ")


def test_the_yaml_is_what_ultralytics_reads(tmp_path: Path) -> None:
    dataset, images = user_data(tmp_path / "user")
    made = make_evaluation_set(dataset, images, tmp_path / "scratch")
    content = yaml.safe_load(made.yaml.read_text(encoding="utf-8"))
    assert content["names"] == {0: "a", 1: "b", 2: "c"}
    assert content["channels"] == 3
    assert Path(content["path"], content["val"]) == tmp_path / "scratch" / "images"


def test_ultralytics_finds_every_label_and_leaves_the_users_folder_alone(tmp_path: Path) -> None:
    from conftest import DEMO, demo_checkpoint, demo_images

    demo_checkpoint()  # repairs torchvision where it needs it
    from ultralytics.data.utils import img2label_paths

    images = demo_images("val", 3)
    before = {p: p.stat().st_mtime_ns for p in (DEMO / "shapes").rglob("*")}
    dataset = Dataset(DEMO / "shapes" / "shapes.yaml", DEMO / "shapes", {}, {i: str(i) for i in range(6)}, 3, None)
    made = make_evaluation_set(dataset, images, tmp_path / "scratch")
    linked: list[str | Path] = [str(p) for p in sorted((made.yaml.parent / "images").iterdir())]
    labels = [Path(p) for p in img2label_paths(linked)]
    for image, label in zip(images, labels, strict=True):
        assert label.read_text() == Path(img2label_paths([str(image)])[0]).read_text()
    assert {p: p.stat().st_mtime_ns for p in (DEMO / "shapes").rglob("*")} == before


def test_the_users_files_are_not_changed(tmp_path: Path) -> None:
    dataset, images = user_data(tmp_path / "user")
    before = everything(tmp_path / "user")
    make_evaluation_set(dataset, images, tmp_path / "scratch")
    assert everything(tmp_path / "user") == before


def test_images_without_labels_are_background(tmp_path: Path) -> None:
    dataset, images = user_data(tmp_path / "user", labelled=1)
    make_evaluation_set(dataset, images, tmp_path / "one")
    assert len(list((tmp_path / "one" / "labels").iterdir())) == 1
    assert len(list((tmp_path / "one" / "images").iterdir())) == 3


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("/d/images/val/a.jpg", "/d/labels/val/a.txt"),
        ("/images/x/images/a.b.png", "/images/x/labels/a.b.txt"),
        ("/d/pictures/a.jpg", "/d/pictures/a.txt"),
    ],
)
def test_labels_lie_where_ultralytics_looks(image: str, label: str) -> None:
    from ultralytics.data.utils import img2label_paths

    assert str(label_path(Path(image))) == label == img2label_paths([image])[0]


def test_where_links_are_impossible_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    dataset, images = user_data(tmp_path / "user")
    make_evaluation_set(dataset, images, tmp_path / "scratch")
    copied = sorted((tmp_path / "scratch" / "images").iterdir())
    assert [p.read_bytes() for p in copied] == [b"image 0", b"image 1", b"image 2"]
    assert not any(p.is_symlink() for p in copied)
