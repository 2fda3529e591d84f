"""The wheel `qexport-decode`: what is in it, and that it finds what qexport finds, where there is nothing but NumPy.

The outputs of the demo models are recorded: LiteRT's converter is slow. To record them anew:

    QEXPORT_UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/test_decode_wheel.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import demo_images
from guides import DOCS, blocks, page
from numpy.typing import NDArray
from PIL import Image

from qexport.backends.tflite.file import append_metadata
from qexport.data.images import letterbox, read_image
from qexport.decode import dequantised
from qexport.detections.layout import layout_of
from qexport.detections.numpy_decode import decoded, detections_in, scale_to_pixels

ROOT = Path(__file__).resolve().parents[1]
OWN = ROOT / "qexport" / "decode"
GOLDEN = Path(__file__).parent / "golden" / "device_outputs.npz"
CASES = {"columns": ("pose", "one2many", "tflite"), "integers": ("pose", "one2many", "int8-full")}
CASES |= {"rows": ("obb", "end2end", "tflite")}
"""Name → task, head and kind of the file whose outputs are recorded."""

sys.path.append(str(ROOT / "benchmarks"))
snippets = pytest.importorskip("snippets")


def picture() -> NDArray[np.uint8]:
    """A wide image with objects in it, RGB."""
    return np.ascontiguousarray(read_image(demo_images("val", 2)[1])[:192, :, ::-1])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[Any]]:
    """For each case outputs, their scales and zero points, and the file's metadata."""
    if os.environ.get("QEXPORT_UPDATE_GOLDEN"):
        files = {case: snippets.exported(*CASES[case], tmp_path_factory.mktemp(case)) for case in CASES}
        np.savez_compressed(GOLDEN, **record(files))  # type: ignore[arg-type]
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def record(files: dict[str, Path]) -> dict[str, NDArray[Any]]:
    """Run files on the picture."""
    from ai_edge_litert.interpreter import Interpreter

    from qexport.decode import as_input, letterbox, read_model_info
    from qexport.decode.metadata import tflite_metadata

    found: dict[str, NDArray[Any]] = {}
    for case, path in files.items():
        interpreter = Interpreter(str(path))
        interpreter.allocate_tensors()
        given = interpreter.get_input_details()[0]
        pixels, _ = letterbox(picture(), read_model_info(path).layout.imgsz)
        interpreter.set_tensor(given["index"], as_input(pixels, given["dtype"], given["quantization"]))
        interpreter.invoke()
        for number, output in enumerate(interpreter.get_output_details()):
            found[f"{case}.{number}"] = interpreter.get_tensor(output["index"])
            found[f"{case}.{number}.quantization"] = np.array(output["quantization"])
        found[f"{case}.metadata"] = np.array(json.dumps(tflite_metadata(path)))
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    pytest.importorskip("hatchling", reason="needs what `make setup` installs")
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("wheel")
    (wheel,) = WheelBuilder(str(OWN)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_the_packages_files_and_no_face(site: Path) -> None:
    inside = {path.relative_to(site).as_posix() for path in (site / "qexport").rglob("*") if path.is_file()}
    modules = {name for name in inside if name.endswith(".py")}
    assert [name for name in modules if (site / name).read_bytes() != (ROOT / name).read_bytes()] == []
    assert {path.relative_to(ROOT).as_posix() for path in OWN.glob("*.py")} <= modules
    assert inside - modules == {"qexport/decode/LICENSE", "qexport/decode/py.typed"}
    assert "qexport/__init__.py" not in inside
    (metadata,) = site.glob("*.dist-info/METADATA")
    from qexport.version import __version__

    needs = [line for line in metadata.read_text().splitlines() if line.startswith(("Version", "Requires-Dist"))]
    assert needs == [f"Version: {__version__}", "Requires-Dist: numpy>=1.26", *needs[2:]]
    assert all("extra ==" in line for line in needs[2:])


DEVICE = """
import importlib.machinery, json, sys

folder, site, numpy_site = sys.argv[1:]
sys.path[:] = [site, *sys.path]

class NumPyAlone:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "qexport"):
            raise ImportError(f"{name} is not on this device")
        if top == "numpy" and path is None:
            return importlib.machinery.PathFinder.find_spec(name, [numpy_site])

sys.meta_path.insert(0, NumPyAlone())
import pathlib
import numpy as np
from qexport.decode import dequantised, found_in, in_image, letterbox, read_model_info

for module in pathlib.Path(site, "qexport").rglob("*.py"):
    if module.stem != "yaml_form":  # only for OpenVINO
        importlib.import_module(".".join(module.relative_to(site).with_suffix("").parts).removesuffix(".__init__"))
recorded = np.load(f"{folder}/recorded.npz")
image, found = np.load(f"{folder}/image.npy"), {}
for case in sorted(path.stem for path in pathlib.Path(folder).glob("*.tflite")):
    info = read_model_info(f"{folder}/{case}.tflite")
    pixels, placement = letterbox(image, info.layout.imgsz)
    np.save(f"{folder}/{case}.npy", pixels)
    numbers = range(sum(key.startswith(case) for key in recorded.files) // 2)
    outputs = [dequantised(recorded[f"{case}.{n}"], *recorded[f"{case}.{n}.quantization"]) for n in numbers]
    (objects,) = found_in(outputs, info)
    there = in_image(objects, placement, info.layout)
    columns = {name: getattr(there, name).tolist() for name in ("boxes", "scores", "classes", "extras")}
    found[case] = {**columns, "names": info.names}
loaded = {name.partition(".")[0] for name in sys.modules if "cython" not in name}  # NumPy's own compiler's
print(json.dumps({"found": found, "modules": sorted(loaded - sys.stdlib_module_names - {"__main__"})}))
"""


@pytest.fixture(scope="module")
def on_device(site: Path, recorded: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a process finds that has the wheel, NumPy and Python's own modules, and the folder that it wrote to."""
    folder = tmp_path_factory.mktemp("device")
    np.savez(folder / "recorded.npz", **recorded)  # type: ignore[arg-type]
    np.save(folder / "image.npy", picture())
    for case in CASES:
        path = folder / f"{case}.tflite"
        path.write_bytes(b"a flatbuffer")
        append_metadata(path, json.loads(str(recorded[f"{case}.metadata"])))
    words = [str(folder), str(site), str(Path(np.__file__).parents[1])]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", DEVICE, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "folder": folder}


def test_nothing_but_numpy_is_loaded(on_device: Any) -> None:
    assert on_device["modules"] == ["numpy", "qexport"]


@pytest.mark.parametrize("case", CASES)
def test_it_finds_what_qexport_finds(case: str, on_device: Any, recorded: dict[str, NDArray[Any]]) -> None:
    """Objects by the package's decode, brought into the image by Ultralytics; the same pixels went in."""
    metadata = json.loads(str(recorded[f"{case}.metadata"]))
    layout, image = layout_of(metadata), picture()
    np.testing.assert_array_equal(np.load(on_device["folder"] / f"{case}.npy"), letterbox(image, layout.imgsz))
    numbers = range(sum(key.startswith(case) for key in recorded) // 2)
    raw = [dequantised(recorded[f"{case}.{n}"], *recorded[f"{case}.{n}.quantization"]) for n in numbers]
    output = decoded(raw, layout) if case == "integers" else raw[0]
    if case == "columns":
        scale_to_pixels(output, layout)
    wanted = detections_in(output[0], layout, metadata.get("thresholds", {}).get("everything", 0.25))
    places = list(snippets.places(wanted, [output], layout, image))
    found = on_device["found"][case]
    assert len(places) > 1
    assert found["names"] == list(metadata["names"].values())
    np.testing.assert_allclose(found["scores"], wanted.scores, rtol=1e-6)
    assert found["classes"] == wanted.classes.tolist()
    if case == "rows":
        corners = [corners_by_hand(*box, *angle) for box, angle in zip(found["boxes"], found["extras"], strict=True)]
        np.testing.assert_allclose(corners, [place["corners"] for place in places], atol=1e-3)
        return
    np.testing.assert_allclose(found["boxes"], [place["box"] for place in places], atol=1e-3)
    points = np.reshape(found["extras"], (-1, *layout.shape))
    np.testing.assert_allclose(points, [place["keypoints"] for place in places], atol=1e-3)


def corners_by_hand(x: float, y: float, width: float, height: float, angle: float) -> list[list[float]]:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    corners: list[list[float]] = (signs * [width / 2, height / 2] @ turn.T + [x, y]).tolist()
    return corners


class Recorded:
    """An interpreter that knows one answer, whose file takes what the recorded one took."""

    def __init__(self, path: str, num_threads: int) -> None:
        with np.load(Path(path).with_name("recorded.npz")) as arrays:
            keys = [f"columns.{n}" for n in range(sum(key.startswith("columns") for key in arrays) // 2)]
            self._outputs: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
                key: (arrays[key], arrays[f"{key}.quantization"]) for key in keys
            }

    def allocate_tensors(self) -> None: ...

    def invoke(self) -> None: ...

    def set_tensor(self, index: int, values: NDArray[Any]) -> None:
        assert (index, values.shape) == (7, (1, 3, 160, 160))
        assert values.dtype == np.float32

    def get_input_details(self) -> list[dict[str, Any]]:
        return [{"index": 7, "dtype": np.float32, "quantization": (0.0, 0)}]

    def get_output_details(self) -> list[dict[str, Any]]:
        return [{"index": key, "quantization": quantization} for key, (_, quantization) in self._outputs.items()]

    def get_tensor(self, index: str) -> NDArray[Any]:
        return self._outputs[index][0]


@pytest.mark.skipif(not DOCS.is_dir(), reason="a source distribution has no documents")
def test_the_documented_program_finds_it(
    on_device: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", SimpleNamespace(Interpreter=Recorded))
    monkeypatch.chdir(on_device["folder"])
    Image.fromarray(picture()).save("bus.png")
    (code,) = blocks(page("decode.md"), "python")
    exec(code.replace("yolo26n_int8.tflite", "columns.tflite").replace("bus.jpg", "bus.png"), {})
    wanted = on_device["found"]["columns"]
    assert capsys.readouterr().out.splitlines() == [
        f"{wanted['names'][number]} {round(score, 2)} {box}"
        for number, score, box in zip(wanted["classes"], wanted["scores"], wanted["boxes"], strict=True)
    ]
