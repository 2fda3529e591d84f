"""What programs of `qexport snippet` draw, in order: outlines, then names, and of each the strongest last, on top."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qexport.detections.layout import HeadLayout
from qexport.snippets.facts import Facts
from qexport.snippets.program import program_of

TASKS = {"detect": "", "segment": "coefficients", "pose": "keypoints", "obb": "angles"}
SIZE = (64, 96)


def facts(task: str) -> Facts:
    shape = (2, 3) if task == "pose" else (0, 0)
    layout = HeadLayout((8, 16, 32), SIZE, 3, end2end=True, extras=TASKS[task], shape=shape)
    return Facts(model="m.onnx", format="onnx", task=task, names=("cat", "dog", "cow"), layout=layout)


ROWS = np.array([[12, 12, 42, 42, 0.27, 1], [10, 10, 40, 40, 0.86, 0], [14, 14, 44, 44, 0.5, 2]], np.float32)
"""x1, y1, x2, y2, score, class of three objects that overlap, in no order."""
EXTRAS = {"detect": 0, "segment": 4, "pose": 6, "obb": 1}
WEAKEST_FIRST = ["dog 0.27", "cow 0.50", "cat 0.86"]


class Recorder:
    """Stands in for Pillow's drawing: what is drawn, in order."""

    def __init__(self) -> None:
        self.drawn: list[tuple[str, Any]] = []

    def Draw(self, image: Image.Image) -> Recorder:  # noqa: N802 as Pillow has it
        return self

    def textlength(self, text: str, font: object) -> int:
        return len(text)

    def line(self, points: list[tuple[float, float]], **_: object) -> None:
        self.drawn.append(("outline", points))

    def ellipse(self, box: object, **_: object) -> None:
        self.drawn.append(("dot", box))

    def rectangle(self, box: object, **_: object) -> None:
        self.drawn.append(("bar", box))

    def text(self, place: object, text: str, **_: object) -> None:
        self.drawn.append(("name", text))


@pytest.mark.parametrize("task", TASKS)
def test_the_strongest_lies_on_top(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    if patched := sys.modules.get("ultralytics.utils.patches"):
        monkeypatch.setattr(Image, "open", patched._image_open)  # a device has Pillow's own
    Image.new("RGB", SIZE[::-1]).save("image.png")
    Path("m.onnx").touch()
    monkeypatch.setattr(sys, "argv", ["run.py", "image.png"])
    space: dict[str, Any] = {"__name__": "program", "__file__": "run.py"}
    exec(compile(program_of(facts(task), "python"), "program", "exec"), space)
    pen = Recorder()
    rows = np.concatenate((ROWS, np.ones((3, EXTRAS[task]), np.float32)), axis=1)
    space |= {"run": lambda *_: [rows, np.ones((4, 16, 24), np.float32)], "ImageDraw": pen}
    space["main"]()
    kinds = [kind for kind, _ in pen.drawn]
    assert kinds == ["outline"] * 3 + ["dot"] * (6 if task == "pose" else 0) + ["bar", "name"] * 3
    assert [what for kind, what in pen.drawn if kind == "name"] == WEAKEST_FIRST
    if task != "obb":  # whose boxes are given by their centre, and turned
        corners = [what[0] for kind, what in pen.drawn if kind == "outline"]
        assert corners == [(12, 12), (14, 14), (10, 10)]


CANVAS = """
globalThis.process = undefined;  // as in a browser
const { draw } = await import("./run.mjs");
const drawn = [];
const context = {
  canvas: { width: 96, height: 64 },
  measureText: () => ({ width: 20 }),
  strokeRect: (x) => drawn.push(x),
  fillRect: () => drawn.push("bar"),
  fillText: (text) => drawn.push(text),
};
draw(context, [["cat", 0.86, 10], ["dog", 0.27, 12], ["cow", 0.5, 14]]
  .map(([name, score, x]) => ({ name, score, box: [x, x, x + 30, x + 30] })));
console.log(JSON.stringify(drawn));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_strongest_lies_on_top_in_javascript(tmp_path: Path) -> None:
    runtime = tmp_path / "node_modules" / "onnxruntime-web"
    runtime.mkdir(parents=True)
    (runtime / "index.mjs").write_text("")
    (runtime / "package.json").write_text(json.dumps({"type": "module", "exports": "./index.mjs"}))
    (tmp_path / "run.mjs").write_text(program_of(facts("detect"), "js"))
    (tmp_path / "canvas.mjs").write_text(CANVAS)
    done = subprocess.run(["node", "canvas.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == [12, 14, 10, "bar", "dog 0.27", "bar", "cow 0.50", "bar", "cat 0.86"]


OPENCV = """
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>
namespace cv {
struct Mat { int cols = 96, rows = 64; };
struct Point2f { float x, y; Point2f(float x, float y) : x(x), y(y) {} };
struct Point { int x, y; Point(int x, int y) : x(x), y(y) {} Point(const Point2f& p) : x(int(p.x)), y(int(p.y)) {} };
struct Scalar { Scalar(int, int, int) {} };
struct Size { int width, height; };
constexpr int FONT_HERSHEY_SIMPLEX = 0, FILLED = -1;
Size getTextSize(const std::string&, int, double, int, int*) { return {20, 8}; }
void rectangle(Mat&, const Point& corner, const Point&, const Scalar&, int width) {
  width == FILLED ? std::printf("bar ") : std::printf("%d ", corner.x);
}
void putText(Mat&, const std::string& text, const Point&, int, double, const Scalar&, int) {
  std::printf("%s ", text.c_str());
}
}
struct Detection { float x1, y1, x2, y2, score; int number; };
const std::vector<std::string> NAMES = {"cat", "dog", "cow"};
"""
"""What of OpenCV draws, in words."""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_strongest_lies_on_top_in_cpp(tmp_path: Path) -> None:
    program = program_of(facts("detect"), "cpp")
    drawing = program[program.index("// How large letters are") : program.index("int main(")]
    calls = "int main() { cv::Mat image; draw(image, {{10, 10, 40, 40, 0.86f, 0}, {14, 14, 44, 44, 0.5f, 2}, "
    (tmp_path / "drawn.cpp").write_text(f"{OPENCV}{drawing}{calls}{{12, 12, 42, 42, 0.27f, 1}}}}); }}\n")
    subprocess.run(["g++", "-std=c++17", "drawn.cpp", "-o", "drawn"], cwd=tmp_path, check=True, timeout=60)
    done = subprocess.run([tmp_path / "drawn"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["12", "14", "10", "bar", "dog", "bar", "cow", "bar", "cat"]
