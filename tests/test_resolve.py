"""Names that are not files, with no network: one clear line, soon, and nothing downloaded unasked."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qexport.data import resolve
from qexport.data.dataset import image_list
from qexport.data.resolve import is_reachable, resolve_data, resolve_model
from qexport.errors import InputError


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and Ultralytics' own folders in a place of the test's own."""
    from ultralytics.utils import SETTINGS

    for name in ("weights_dir", "datasets_dir"):
        (tmp_path / name).mkdir()
        monkeypatch.setitem(SETTINGS, name, str(tmp_path / name))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "is_reachable", lambda *_: True)


def _assert_one_line(error: InputError, *parts: str) -> None:
    for part in parts:
        assert part in str(error)
    assert "\n" not in str(error)


def test_a_model_file_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "cwd/yolo26n.pt").write_bytes(b"x")
    assert resolve_model("yolo26n.pt") == Path("yolo26n.pt")
    assert resolve_model(str(tmp_path / "cwd/yolo26n.pt")) == tmp_path / "cwd/yolo26n.pt"


def test_a_model_in_the_weights_folder_of_ultralytics(settings: Path) -> None:
    (settings / "weights_dir/yolo26n.pt").write_bytes(b"x")
    assert resolve_model("yolo26n.pt") == settings / "weights_dir/yolo26n.pt"


@pytest.mark.usefixtures("offline")
def test_a_released_model_without_network_is_one_line_soon(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        resolve_model("yolo26n.pt")
    assert time.monotonic() - start < 5
    _assert_one_line(caught.value, "yolo26n.pt", "github.com", "local file")
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize("name", ["sub/yolo26n.pt", "/nowhere/yolo26n.pt", "https://example.com/a.pt", ""])
@pytest.mark.usefixtures("offline")
def test_only_a_bare_name_is_looked_up(name: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        resolve_model(name)
    with pytest.raises(InputError, match="does not exist"):
        resolve_data(name)


@pytest.mark.usefixtures("offline")
def test_an_empty_folder_is_neither(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        resolve_model(str(tmp_path))
    with pytest.raises(InputError, match="has no images in it"):
        resolve_data(str(tmp_path))


def test_a_folder_or_a_list_of_images_is_enough_to_calibrate(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    images = (tmp_path / "a.png", tmp_path / "b.jpg")
    assert image_list(resolve_data(str(tmp_path)), "train") == images
    (tmp_path / "list.txt").write_text("b.jpg\n", encoding="utf-8")
    assert image_list(resolve_data(str(tmp_path / "list.txt")), "train") == images[1:]
    with pytest.raises(InputError, match="has no split 'val'"):
        image_list(resolve_data(str(tmp_path)), "val")


def test_folders_of_classes_are_a_data_set(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for name in ("dog", "cat"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.jpg").write_bytes(b"x")
    dataset = resolve_data(str(tmp_path))
    assert (dataset.by_folder, dict(dataset.names)) == (True, {0: "cat", 1: "dog"})
    assert image_list(dataset, "val") == tuple(tmp_path / "valid" / name / "1.jpg" for name in ("cat", "dog"))


@pytest.mark.usefixtures("offline")
def test_an_unknown_name_gets_the_nearest_known_one() -> None:
    with pytest.raises(InputError, match=r"model yolo26nn\.pt does not exist: .* did you mean yolo26n\.pt"):
        resolve_model("yolo26nn.pt")
    with pytest.raises(InputError, match=r"dataset coco88\.yaml does not exist: .* did you mean coco8\.yaml"):
        resolve_data("coco88.yaml")
    with pytest.raises(InputError, match=r"model yolo26\.pt does not exist: .* did you mean yolo26n\.pt$"):
        resolve_model("yolo26.pt")
    with pytest.raises(InputError, match=r"model yolov8-seg\.pt does not exist: .* did you mean yolov8n-seg\.pt$"):
        resolve_model("yolov8-seg.pt")
    with pytest.raises(InputError, match=r"dataset missing\.yaml does not exist: give the path of a dataset YAML$"):
        resolve_data("missing.yaml")


@pytest.mark.usefixtures("online")
def test_a_model_is_downloaded_into_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    import ultralytics.utils.downloads as downloads

    def download(file: str, **_: object) -> str:
        Path(file).write_bytes(b"weights")
        return file

    monkeypatch.setattr(downloads, "attempt_download_asset", download)
    assert resolve_model("yolov5n.pt") == Path("yolov5nu.pt")  # the name that Ultralytics gave it since
    assert Path("yolov5nu.pt").read_bytes() == b"weights"


@pytest.mark.usefixtures("online")
def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ultralytics.utils.downloads as downloads

    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("broken\n  pipe")

    monkeypatch.setattr(downloads, "attempt_download_asset", fail)
    with pytest.raises(InputError) as caught:
        resolve_model("yolo26n.pt")
    _assert_one_line(caught.value, "model yolo26n.pt could not be downloaded (broken pipe)", "by hand")


@pytest.mark.usefixtures("online")
def test_a_download_that_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import ultralytics.utils.downloads as downloads

    monkeypatch.setattr(downloads, "attempt_download_asset", lambda file, **_: file)
    with pytest.raises(InputError, match=r"yolo26n\.pt could not be downloaded"):
        resolve_model("yolo26n.pt")


@pytest.mark.usefixtures("offline")
def test_a_data_set_without_network_is_one_line_soon() -> None:
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        resolve_data("coco8.yaml")
    assert time.monotonic() - start < 5
    _assert_one_line(caught.value, "coco8.yaml", "github.com", "local file")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["coco8.yaml", "coco8"])
def test_a_data_set_that_is_there_already(settings: Path, name: str) -> None:
    for split in ("train", "val"):
        (settings / "datasets_dir/coco8/images" / split).mkdir(parents=True)
    dataset = resolve_data(name)
    assert dataset.splits["train"] == (settings / "datasets_dir/coco8/images/train",)
    assert (len(dataset.names), dataset.names[0]) == (80, "person")


@pytest.mark.usefixtures("online")
def test_a_data_set_is_downloaded_by_ultralytics(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ultralytics.data.utils as data

    asked: list[str] = []

    def download(file: str) -> dict[str, Any]:
        asked.append(Path(file).name)
        for split in ("train", "val"):
            (settings / "datasets_dir/coco8/images" / split).mkdir(parents=True)
        return {}

    monkeypatch.setattr(data, "check_det_dataset", download)
    dataset = resolve_data("coco8.yaml")
    assert asked == ["coco8.yaml"]
    assert dataset.splits["val"] == (settings / "datasets_dir/coco8/images/val",)


@pytest.mark.usefixtures("online")
def test_a_yaml_of_the_users_own_never_downloads(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ultralytics.data.utils as data

    monkeypatch.setattr(data, "check_det_dataset", lambda *_: pytest.fail("it was called"))
    script = f"open({str(settings / 'ran')!r}, 'w')"
    Path("coco8.yaml").write_text(f"train: t\nval: v\nnames: [cat]\ndownload: {script}\n")
    dataset = resolve_data("coco8.yaml")
    assert dataset.download == script
    assert dataset.names == {0: "cat"}
    assert not (settings / "ran").exists()


def test_a_yaml_of_the_users_own_may_lie_in_the_folder_of_ultralytics(settings: Path) -> None:
    (settings / "datasets_dir/mine").mkdir()
    Path("mine.yaml").write_text("path: mine\ntrain: t\nnames: [cat]\n")
    assert resolve_data("mine.yaml").root == settings / "datasets_dir/mine"


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "getproxies", dict)


@pytest.mark.usefixtures("no_proxy")
def test_is_reachable(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_reachable("127.0.0.1", port)
    assert not is_reachable("no-such-host.invalid", port)
    # The switch that qexport.compat.quiet sets for Ultralytics says nothing about the network.
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    assert is_reachable("127.0.0.1", port)


@pytest.mark.usefixtures("no_proxy")
def test_is_reachable_does_not_wait_for_a_silent_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(resolve, "_connects", lambda *_: release.wait(30))
    start = time.monotonic()
    assert not is_reachable("github.com", seconds=0.1)
    assert time.monotonic() - start < 5
    release.set()


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_is_reachable_asks_for_the_proxy(port: int, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "proxy_bypass", lambda host: False)
    monkeypatch.setattr(resolve, "getproxies", lambda: {"https": f"{scheme}127.0.0.1:{port}"})
    assert is_reachable("no-such-host.invalid")
