"""Programs of `qexport snippet` away from the folder they were made in: what they say, and where they look."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qexport.detections.layout import HeadLayout
from qexport.snippets.facts import Facts
from qexport.snippets.languages import LANGUAGES
from qexport.snippets.program import instructions, program_of

LAYOUT = HeadLayout((8, 16, 32), (64, 96), 3, end2end=True)
FACTS = Facts(model="gone/away/m.onnx", format="onnx", task="detect", names=("cat", "dog", "cow"), layout=LAYOUT)
FORMATS = [(name, each) for name, language in LANGUAGES.items() for each in sorted(language.formats)]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A program's functions, as if it were tmp_path/device/run.py; its runtime is none."""
    (tmp_path / "device").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    if patched := sys.modules.get("ultralytics.utils.patches"):
        monkeypatch.setattr(Image, "open", patched._image_open)  # a device has Pillow's own
    space: dict[str, Any] = {"__name__": "program", "__file__": str(tmp_path / "device" / "run.py")}
    exec(compile(program_of(FACTS, "python"), "program", "exec"), space)
    return space


PLACES = [
    ([], ["gone/away/m.onnx", "device/m.onnx"], "gone/away/m.onnx"),
    ([], ["device/m.onnx"], "device/m.onnx"),
    ([], ["m.onnx"], None),
    (["--model", "m.onnx"], ["m.onnx", "device/m.onnx"], "m.onnx"),
    (["--model", "typo.onnx"], ["gone/away/m.onnx", "device/typo.onnx"], None),
]
"""Words → which files there are → which of them is taken: what was typed is not looked for elsewhere."""


@pytest.mark.parametrize(("words", "there", "taken"), PLACES)
def test_the_model_is_where_it_was_or_beside_the_program(
    words: list[str], there: list[str], taken: str | None, program: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in there:
        Path(each).parent.mkdir(parents=True, exist_ok=True)
        Path(each).touch()
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    if taken:
        assert Path(program["read_arguments"]().model).resolve() == Path(taken).resolve()
        return
    with pytest.raises(SystemExit, match=r"^no model at .*: give --model$"):
        program["read_arguments"]()


def test_a_path_of_windows_is_found_by_its_name(program: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    program["MODEL"] = r"C:\out\m.onnx"
    Path("device/m.onnx").touch()
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert Path(program["read_arguments"]().model).resolve() == Path("device/m.onnx").resolve()


def test_images_that_cannot_be_read_or_written_are_one_line(program: dict[str, Any]) -> None:
    Path("text.jpg").write_text("no image")
    Image.new("RGB", (400, 300)).save("cut.jpg")
    Path("cut.jpg").write_bytes(Path("cut.jpg").read_bytes()[:700])
    for name in ("missing.jpg", "text.jpg", "cut.jpg", "device"):
        with pytest.raises(SystemExit, match=rf"^no image can be read at {name} \([^\n]*\): give one$"):
            program["read_image"](name)
    for name in ("nowhere/out.png", "out.unknown"):
        with pytest.raises(SystemExit, match=rf"^{name} cannot be written \([^\n]*\): give --out$"):
            program["write_image"](Image.new("RGB", (4, 4)), name)


@pytest.mark.parametrize("pillow", ["new", "old"])
def test_names_can_be_read_in_images_of_any_size(
    pillow: str, program: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if pillow == "old":
        plain = program["ImageFont"].load_default_imagefont()
        monkeypatch.setattr(program["ImageFont"], "load_default", lambda: plain)
    heights = []
    for side in (320, 3200):
        image = Image.new("RGB", (side, side), "blue")
        outlines = np.array([[[side - 5, -3], [side + 9, -3], [side + 9, 40], [side - 5, 40]]])
        program["NAMES"] = ["a\nlong name, \u00e9"]
        program["outlined"](image, outlines)
        program["labelled"](image, outlines, np.array([0]), np.array([0.5]))
        bar = np.argwhere(np.asarray(image)[:, : side - 20, 0] == 255)  # red or white, left of the box
        heights.append(int(np.ptp(bar[:, 0])) + 1)
        assert bar[:, 0].min() == 0, "inside the image, at the top"
        assert (np.asarray(image) == 255).all(axis=-1).any(), "white letters"
    assert heights[0] >= 12
    assert heights[1] > 4 * heights[0] if pillow == "new" else heights[1] == heights[0]


@pytest.mark.parametrize(("language", "form"), FORMATS)
def test_how_a_program_is_run_is_said_by_its_name(language: str, form: str) -> None:
    lines = instructions(replace(FACTS, format=form), language, Path("a folder/own name"))
    assert 1 < len(lines) < 5
    assert "THIS_FILE" not in "".join(lines)
    assert language == "kotlin" or any("'a folder/own name'" in line for line in lines)
    assert all(line and not line.startswith(("//", '"')) for line in lines)


def test_a_threshold_says_where_it_is_from() -> None:
    own = program_of(replace(FACTS, threshold=0.3), "python")
    assert "by calibration images; a report's is by evaluation images.\nTHRESHOLD = 0.3\n" in own
    assert "# The score from which a detection counts.\nTHRESHOLD = 0.25\n" in program_of(FACTS, "python")


STANDINS = {
    "onnxruntime-web": "export class Tensor {} export const InferenceSession = { create: async (bytes) => ({ "
    "inputNames: ['x'], outputNames: ['y'], run: async () => ({ y: { data: Float32Array.from([1, 2, 30, 40, 0.5, "
    "bytes.length]), dims: [1, 1, 6] } }) }) };",
    "sharp": "const all = new Proxy({}, { get: (_, name) => name === 'toBuffer' ? async () => ({ data: new "
    "Uint8Array(4 * 96 * 64), info: { width: 96, height: 64 } }) : () => all }); export default () => all;",
}
"""One detection, whose class is the number of bytes of the model; an image without content."""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_javascript_finds_a_model_beside_it(tmp_path: Path) -> None:
    for name, source in STANDINS.items():
        folder = tmp_path / "device" / "node_modules" / name
        folder.mkdir(parents=True)
        (folder / "index.mjs").write_text(source)
        (folder / "package.json").write_text(json.dumps({"type": "module", "exports": "./index.mjs"}))
    (tmp_path / "device" / "run.mjs").write_text(program_of(replace(FACTS, model=r"C:\out\m.onnx"), "js"))
    (tmp_path / "image.jpg").touch()

    def run(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["node", "device/run.mjs", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    code, output, errors = run()
    assert (code, output, len(errors.splitlines())) == (1, "", 1)
    assert errors.startswith("no model at C:\\out\\m.onnx or ")
    (tmp_path / "device" / "m.onnx").write_bytes(b"1")
    assert json.loads(run()[1]) == {"name": "dog", "score": 0.5, "box": [1, 2, 30, 40]}
    assert run("image.jpg", "typo.onnx")[2] == "no model at typo.onnx: give it behind the image\n"
    assert run("missing.jpg")[2] == "no image at missing.jpg: give one\n"
