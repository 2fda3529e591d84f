"""Files are read by what people use, and it finds what the package finds; the whole table is `make bench-interop`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import demo_checkpoint, demo_image, demo_images, lowering
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from test_onnx_backend import CLEAR
from test_snippet import facts, layout

from qexport.backends.registry import find_backend
from qexport.data.images import letterbox
from qexport.detections.numpy_decode import detections_in
from qexport.lowering.metadata import artifact_metadata
from qexport.lowering.onnx.needs import HALF_BY_DEFINITION, RUNTIMES, needs_of
from qexport.programs.program import Program
from qexport.snippets.facts import facts_of
from qexport.snippets.program import program_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
interop = pytest.importorskip("interop")
sets = pytest.importorskip("operator_sets")
web = pytest.importorskip("web")

NODE = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
WEB = pytest.mark.skipif(not web.version(), reason="no onnxruntime-web: make web")
STUB = "export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }\n"
DRIVER = """
const { process } = globalThis;
delete globalThis.process; // in a browser there is none, and the program does not begin by itself
const { detect } = await import("./run.mjs");
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const given = JSON.parse(Buffer.concat(chunks).toString());
const answers = [];
for (const { pixels, width, height, output, dims } of given) {
  let planes;
  const run = async ({ images }) => {
    planes = [...images.data].map((value) => Math.round(value * 255));
    return { output: { data: Float32Array.from(output), dims } };
  };
  const session = { inputNames: ["images"], outputNames: ["output"], run };
  answers.push({ found: await detect(session, { data: Uint8Array.from(pixels), width, height }), planes });
}
process.stdout.write(JSON.stringify(answers));
"""


@pytest.fixture(scope="module")
def files(
    demo_program: Program, demo_one2many: Program, tiny: Program, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The demo model's FP32 files with both heads, and a small model's with attention in FP16."""
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    folder, made = tmp_path_factory.mktemp("files"), {}
    for head, program in {"end2end": demo_program, "one2many": demo_one2many}.items():
        metadata = artifact_metadata(demo_checkpoint(), program, "fp32", None)
        made[head] = folder / f"{head}.onnx"
        find_backend("onnx").lower(lowering(program, "fp32", None, metadata), made[head])
    made["half"] = folder / "half.onnx"
    find_backend("onnx").lower(lowering(tiny, "fp16"), made["half"])
    return made


def outputs_of(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An input, and what ONNX Runtime makes of it."""
    (size,) = (each.type.tensor_type.shape.dim for each in onnx.load(path).graph.input)
    images = demo_image((size[2].dim_value, size[3].dim_value), CLEAR).numpy()
    (found, *_) = find_backend("onnx").runner(path, 1)(images)
    return images, found


@pytest.mark.parametrize("name", ["end2end", "one2many", "half"])
def test_opencv_computes_the_same(files: dict[str, Path], name: str) -> None:
    cv2 = pytest.importorskip("cv2")
    images, wanted = outputs_of(files[name])
    network = cv2.dnn.readNetFromONNX(str(files[name]))
    network.setInput(images)
    (found,) = network.forward(network.getUnconnectedOutLayersNames())
    if name == "end2end":  # rows below every threshold may change places
        wanted, found = (each[:, wanted[0, :, 4] > 0.25] for each in (wanted, found))
        assert wanted.shape[1] >= 1
    np.testing.assert_allclose(found, wanted, atol=0.05 if name == "half" else 1e-3)


def test_openvino_reads_onnx_files(files: dict[str, Path]) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra qexport[openvino]")
    images, wanted = outputs_of(files["one2many"])
    compiled = openvino.Core().compile_model(files["one2many"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(images)[0], wanted, atol=1e-3)


def half_file(kind: str, opset: int) -> onnx.ModelProto:
    node = helper.make_node(kind, ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 4]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_the_version_that_fp16_needs() -> None:
    """ONNX Runtime 1.14 to 1.16 refuse these operators in FP16 from operator set 18 on, which 1.17 runs."""
    for kind in HALF_BY_DEFINITION:
        assert needs_of(half_file(kind, 18))["ONNX Runtime"] == "1.17"
    assert needs_of(half_file("Softmax", 17))["ONNX Runtime"] == "1.12"
    assert needs_of(half_file("Sigmoid", 18))["ONNX Runtime"] == "1.14"
    assert needs_of(half_file("Softmax", 21))["ONNX Runtime"] == "1.18"


def test_demo_files_say_which_runtime_they_need(files: dict[str, Path]) -> None:
    """As tried with 1.13.1, 1.14.0, 1.16.3 and 1.17.0; FP16's attention is what needs more."""
    needs = {name: find_backend("onnx").read(path).needs["ONNX Runtime"] for name, path in files.items()}
    assert needs == {"end2end": "1.14", "one2many": "1.14", "half": "1.17"}


def test_every_operator_set_of_the_table_is_tried_and_runs_here(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    assert list(sets.OPERATORS) == list(RUNTIMES)
    for number in RUNTIMES:
        path = sets.saved(number, tmp_path)
        kind = onnx.load(path).graph.node[0].op_type
        assert onnx.defs.get_schema(kind, number).since_version == number
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.ones((1, 4, 8, 8), np.float32)})


def asked(program: str, cases: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What the program's `detect` makes of images and outputs, in Node.js with a session that is none."""
    package = folder / "node_modules" / "onnxruntime-web"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"type": "module", "exports": "./index.js"}', encoding="ascii")
    (package / "index.js").write_text(STUB, encoding="ascii")
    (folder / "run.mjs").write_text(program, encoding="ascii")
    (folder / "driver.mjs").write_text(DRIVER, encoding="ascii")
    words = ["node", "driver.mjs"]
    done = subprocess.run(words, cwd=folder, input=json.dumps(cases), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def case(output: NDArray[np.float32], pixels: NDArray[np.uint8]) -> dict[str, Any]:
    opaque = np.dstack((pixels, np.full(pixels.shape[:2], 255, np.uint8)))
    size = {"width": pixels.shape[1], "height": pixels.shape[0]}
    return {"pixels": opaque.ravel().tolist(), **size, "output": output.ravel().tolist(), "dims": [1, *output.shape]}


def stepped(end2end: bool, count: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Boxes and scores of few values, as integers give them: thresholds and overlaps are met exactly."""
    corners = random.integers(0, 5, (count, 2)) * 8.0
    sizes = random.integers(1, 12, (count, 2)) * 4.0
    scores = random.integers(4, 10, (count, 3)) / np.float32(10)  # .7 in float32 is less than .7
    if end2end:
        classes = random.integers(3, size=(count, 1))
        return np.hstack((corners, corners + sizes, scores[:, :1], classes)).astype(np.float32)
    return np.hstack((corners + sizes / 2, sizes, scores)).T.astype(np.float32)


@NODE
@pytest.mark.parametrize("end2end", [False, True])
def test_javascript_decides_ties_as_the_package_does(end2end: bool, tmp_path: Path) -> None:
    given, random = layout(end2end=end2end), np.random.default_rng(7)
    outputs = [stepped(end2end, 40, random) for _ in range(50)]
    blank = np.zeros((64, 96, 3), np.uint8)  # of the model's size
    program = program_of(facts(given, threshold=0.7, class_thresholds={1: 0.6}), "js")
    names = facts(given).names
    least = np.array([0.7, 0.6, 0.7], np.float32)
    for output, answer in zip(outputs, asked(program, [case(each, blank) for each in outputs], tmp_path), strict=True):
        wanted = detections_in(output, given, 0.6)
        wanted = wanted.chosen(wanted.scores >= least[wanted.classes])
        assert [each["name"] for each in answer["found"]] == [names[number] for number in wanted.classes]
        np.testing.assert_array_equal([each["score"] for each in answer["found"]], wanted.scores)
        boxes = np.clip(wanted.boxes, 0, [96, 64, 96, 64])
        np.testing.assert_allclose([each["box"] for each in answer["found"]], boxes, atol=1e-4)


@NODE
def test_javascript_brings_images_to_size_as_the_package_does(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    sizes = [(64, 96), (33, 200), (101, 7), (1, 300), (40, 50), (128, 192), (97, 61)]
    images = [random.integers(256, size=(*size, 3)).astype(np.uint8) for size in sizes]
    nothing = np.zeros((1, 6), np.float32)
    program = program_of(facts(layout(end2end=True)), "js")
    answers = asked(program, [case(nothing, image) for image in images], tmp_path)
    for image, answer in zip(images, answers, strict=True):
        planes = np.array(answer["planes"]).reshape(3, 64, 96).transpose(1, 2, 0)
        np.testing.assert_array_equal(planes, letterbox(image, (64, 96)))


def wide(folder: Path) -> Path:
    """An image with objects that is no square."""
    Image.open(demo_images("val", 2)[1]).crop((0, 0, 320, 200)).save(folder / "image.png")
    return folder / "image.png"


def same(found: list[dict[str, Any]], path: Path, image: Path) -> None:
    wanted = interop.snippets.expected(facts_of(path), image)
    assert len(wanted) >= 2
    assert str(interop.differences(found, wanted)) == "equal"


@NODE
@WEB
def test_the_program_runs_in_node(files: dict[str, Path], tmp_path: Path) -> None:
    path, image = files["one2many"], wide(tmp_path)
    same(web.in_node(program_of(facts_of(path), "js"), image, tmp_path, path), path, image)


@WEB
@pytest.mark.skipif(web.browser() is None, reason="no Chromium: apt-get install chromium")
def test_the_program_runs_in_a_browser(files: dict[str, Path], tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path, image, folder = files["one2many"], wide(tmp_path), tmp_path / "page"
    folder.mkdir()
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=web.browser(), headless=True, args=list(web.FLAGS), timeout=web.PATIENCE
        )
        found = web.in_browser(opened, program_of(facts_of(path), "js"), path, image, folder)
        opened.close()
    same(found, path, image)


def test_supervision_takes_what_is_found() -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    found = [{"name": "circle", "score": 0.5, "box": [1.0, 2.0, 30.0, 40.0]}]
    assert supervision.__version__
    assert json.loads(interop.ran([sys.executable, "-c", interop.SUPERVISION], json.dumps(found))) == found


def test_differences_are_counted() -> None:
    one = {"name": "cat", "score": 0.5, "box": [0.0, 0.0, 40.0, 40.0]}
    near, other = {**one, "score": 0.52, "box": [1.0, 0.0, 40.0, 41.0]}, {**one, "name": "dog"}
    far = {**one, "box": [30.0, 30.0, 80.0, 80.0]}
    assert str(interop.differences([one], [one])) == "equal"
    assert str(interop.differences([near], [one])) == "the same 1, scores within 0.020, corners within 1.0 px"
    for found, told in (([other], "1 of 1 missing, 1 more"), ([far], "1 of 1 missing, 1 more")):
        assert str(interop.differences(found, [one])) == told
    assert str(interop.differences([], [one])) == "1 of 1 missing, 0 more"
    assert str(interop.differences([one, one], [one])) == "0 of 1 missing, 1 more"
