"""Programs of `qexport snippet`: what of a file stands in them is data, and they find what the package finds."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import demo_checkpoint, demo_images, lowering
from numpy.typing import NDArray
from PIL import Image
from refusals import Refusal

from qexport.backends.registry import find_backend
from qexport.cli.app import main
from qexport.compat.torchvision import repair
from qexport.data.images import PREPROCESS, letterbox
from qexport.detections.detections import Detections, corner_points
from qexport.detections.layout import ROTATED, HeadLayout
from qexport.detections.masks import image_masks, instance_masks
from qexport.detections.numpy_decode import decoded, detections_in
from qexport.detections.placement import letterboxed
from qexport.errors import InputError, UsageError
from qexport.lowering.metadata import artifact_metadata
from qexport.programs.program import Program
from qexport.snippets.facts import Facts, facts_of
from qexport.snippets.languages import LANGUAGES
from qexport.snippets.program import program_of
from qexport.system.printable import printable

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
snippets = pytest.importorskip("snippets")

SIZE = (64, 96)
TASKS = {"": "detect", "coefficients": "segment", "keypoints": "pose", "angles": "obb"}
EXTRA = {"": 0, "coefficients": 8, "keypoints": 15, "angles": 1}
HOSTILE = (
    'cat"; import os; os.system("touch CANARY") #',
    "'; throw 1; //",
    "${System.exit(1)} $x `${process.exit()}`",
    "*/ #include <x> /* ??/",
    "a\nb\r\u2028\u2029\\",
    "\\",
    "</script><script>alert(1)</script>",
    "é ß 猫 \U0001f431",
    "\x00\x1b[31m\x7f\u202e",
    "1" + "\x07" + "1",
    "",
)
"""Names that would be code, or the end of a literal, in one language or another."""


def layout(extras: str = "", end2end: bool = False, **rest: Any) -> HeadLayout:
    shape = (5, 3) if extras == "keypoints" else (0, 0)
    return HeadLayout((8, 16, 32), SIZE, 3, end2end=end2end, extras=extras, shape=shape, **rest)


def facts(given: HeadLayout, **rest: Any) -> Facts:
    """Of a file that is nowhere."""
    values = {"model": "m.onnx", "format": "onnx", "task": TASKS[given.extras], "names": ("cat", "dog", "cow")}
    return Facts(**{**values, "layout": given, **rest})


def python_text(literal: str) -> Any:
    return ast.literal_eval(literal)


def octal_text(literal: str) -> Any:
    return ast.literal_eval(f"b{literal}").decode("utf-8")


READERS: dict[str, Callable[[str], Any]] = {
    "python": python_text,
    "js": json.loads,
    "kotlin": json.loads,
    "cpp": octal_text,
}
"""What reads a literal of a language and is not of this project: C++'s octal escapes are those of Python's bytes."""


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_data(language: str) -> None:
    every = (*HOSTILE, *map(chr, range(0x300)), *(f"{chr(code)}0" for code in range(0x100)))
    for text in every:
        literal = LANGUAGES[language].notation.literal(text)
        assert READERS[language](literal) == text
        assert literal.isascii()
        assert literal.isprintable()
        assert not set(literal[1:-1]) & set("\"'`$<?")


def formats() -> list[tuple[str, str, bool]]:
    """In an order that every process has."""
    named = [(name, form) for name, each in LANGUAGES.items() for form in sorted(each.formats)]
    return [(*each, end2end) for each in named for end2end in (False, True)]


@pytest.mark.parametrize(("language", "form", "end2end"), formats())
def test_names_and_paths_change_nothing_but_their_literals(language: str, form: str, end2end: bool) -> None:
    plain = tuple(f"PLAIN{number}" for number in range(len(HOSTILE)))
    known = facts(layout(end2end=end2end), format=form, names=plain, model="MODEL_PATH")
    evil = replace(known, names=HOSTILE, model=HOSTILE[0])
    wanted, found = program_of(known, language, "IMAGE_PATH"), program_of(evil, language, HOSTILE[2])
    literal = LANGUAGES[language].notation.literal
    replaced = [*zip(plain, HOSTILE, strict=True), ("MODEL_PATH", HOSTILE[0]), ("IMAGE_PATH", HOSTILE[2])]
    for before, after in replaced:
        wanted = wanted.replace(literal(before), literal(after))
    assert "".join(found.split()) == "".join(wanted.split())  # long names are on lines of their own
    assert found.isascii()
    assert [printable(line) for line in found.splitlines()] == found.splitlines()
    if language == "python":
        assert constants(found)["NAMES"] == list(HOSTILE)
        assert (constants(found)["MODEL"], constants(found)["IMAGE"]) == (HOSTILE[0], HOSTILE[2])


def constants(program: str) -> dict[str, Any]:
    found = [node for node in ast.parse(program).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): ast.literal_eval(node.value) for node in found}


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
@pytest.mark.parametrize("end2end", [False, True])
def test_javascript_is_javascript(end2end: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.mjs"
    path.write_text(program_of(facts(layout(end2end=end2end), names=HOSTILE), "js"), encoding="ascii")
    subprocess.run(["node", "--check", str(path)], check=True, timeout=60)


def loaded(known: Facts) -> dict[str, Any]:
    """The functions of a file's program; its runtime is none."""
    space: dict[str, Any] = {"__name__": "program"}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("onnxruntime", "ai_edge_litert", "ai_edge_litert.interpreter"):
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setattr(sys.modules["ai_edge_litert.interpreter"], "Interpreter", None, raising=False)
        exec(compile(program_of(known, "python"), "program", "exec"), space)
    return space


def output(given: HeadLayout, rows: int = 200) -> NDArray[np.float32]:
    """A decoded output of boxes all over the image, many of which overlap."""
    random = np.random.default_rng(5)
    boxes = random.uniform((0, 0, 5, 5), (96, 64, 60, 40), (rows, 4))
    extras = random.normal(size=(rows, EXTRA[given.extras]))
    if given.end2end:
        scores, classes = random.uniform(size=(rows, 1)), random.integers(3, size=(rows, 1))
        return np.concatenate((boxes, scores, classes, extras), axis=1).astype(np.float32)
    return np.concatenate((boxes, random.uniform(0, 0.6, (rows, 3)), extras), axis=1).T.astype(np.float32)


@pytest.mark.parametrize("end2end", [False, True])
@pytest.mark.parametrize("extras", TASKS)
def test_outputs_are_decoded_as_the_package_does(extras: str, end2end: bool) -> None:
    given = layout(extras, end2end)
    values = output(given)
    space = loaded(facts(given, threshold=0.3))
    boxes, scores, classes, rest = space["decode"]([values.copy()])
    wanted = detections_in(values, given, 0.3)
    assert len(wanted.scores) > 20
    np.testing.assert_allclose(boxes, wanted.boxes, atol=1e-4)
    np.testing.assert_array_equal(scores, wanted.scores)
    np.testing.assert_array_equal(classes, wanted.classes)
    np.testing.assert_array_equal(rest, wanted.extras)


@pytest.mark.parametrize("end2end", [False, True])
def test_thresholds_of_classes_and_coordinates_of_0_to_1(end2end: bool) -> None:
    given = layout(end2end=end2end)
    values = output(given)
    normalised = values.copy()
    (normalised.T if end2end else normalised)[:4] /= np.array([96, 64, 96, 64], np.float32)[:, None]
    space = loaded(facts(given, threshold=0.3, class_thresholds={1: 0.5}, normalised=True))
    boxes, scores, classes, _ = space["decode"]([normalised])
    wanted = detections_in(values, given, 0.3)
    wanted = wanted.chosen((wanted.classes != 1) | (wanted.scores >= 0.5))
    np.testing.assert_allclose(boxes, wanted.boxes, atol=1e-3)
    np.testing.assert_array_equal(scores, wanted.scores)
    np.testing.assert_array_equal(classes, wanted.classes)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("language", ["cpp", "kotlin"])
def test_colours_lie_where_the_file_wants_them(language: str, channels_last: bool) -> None:
    """By the formula in the program, which both languages write as Python does."""
    program = program_of(facts(layout(), format="tflite", channels_last=channels_last), language)
    (formula,) = re.findall(r"(\(\w+ \* \w+ \+ \w+\) \* \w+ \+ \w+)(?:; }|\n)", program)
    found = [
        eval(formula, {"HEIGHT": 4, "WIDTH": 5, "channel": channel, "y": y, "x": x})
        for channel, y, x in np.ndindex(3, 4, 5)
    ]
    numbered = np.arange(60).reshape((4, 5, 3) if channels_last else (3, 4, 5))
    assert found == (numbered.transpose(2, 0, 1) if channels_last else numbered).ravel().tolist()


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("end2end", [False, True])
@pytest.mark.parametrize("extras", TASKS)
def test_raw_outputs_are_decoded_as_the_package_does(extras: str, end2end: bool, direct: bool) -> None:
    given = layout(extras, end2end, reg_max=1 if end2end else 4, direct=direct, max_detections=20)
    random = np.random.default_rng(3)
    channels = [4 * given.reg_max, 3, *([EXTRA[extras]] if extras else [])]
    sizes = [(SIZE[0] // stride, SIZE[1] // stride) for stride in given.strides]
    raw = [random.normal(size=(*size, count)).astype(np.float32) for count in channels for size in sizes]
    if extras == "coefficients":
        raw.append(random.normal(size=(16, 24, 8)).astype(np.float32))
    space = loaded(facts(given, format="tflite", integers=True))
    found, *prototypes = space["decode_levels"]([each.copy() for each in raw])
    np.testing.assert_allclose(found, decoded([each[None] for each in raw], given)[0], atol=1e-4)
    assert [each.shape for each in prototypes] == ([(8, 16, 24)] if extras == "coefficients" else [])


def test_images_are_brought_to_size_as_the_package_does() -> None:
    space = loaded(facts(layout()))
    random = np.random.default_rng(1)
    for height, width in ((64, 96), (480, 640), (33, 200), (101, 7), (1, 300), (40, 50)):
        image = random.integers(256, size=(height, width, 3)).astype(np.uint8)
        pixels, scale, (left, top) = space["letterbox"](image)
        wanted = letterbox(image, SIZE)
        np.testing.assert_array_equal(pixels, wanted)
        assert scale == min(64 / height, 96 / width)
        inner = np.argwhere((wanted != 114).any(axis=-1))
        assert [top, left] == pytest.approx(inner.min(axis=0), abs=1)


def classifier(size: tuple[int, int]) -> Facts:
    return facts(replace(layout(), imgsz=size, head="classifier"), task="classify")


@pytest.mark.parametrize("size", [(64, 64), (48, 64)])
def test_crops_are_those_of_the_package(size: tuple[int, int]) -> None:
    repair()
    space = loaded(classifier(size))
    random = np.random.default_rng(1)
    for height, width in ((100, 151), (151, 100), (64, 64), (30, 31)):
        image = random.integers(256, size=(height, width, 3)).astype(np.uint8)
        wanted = PREPROCESS["centre crop"](image[..., ::-1], size)[..., ::-1]
        np.testing.assert_array_equal(space["centre_crop"](Image.fromarray(image)), wanted)


def test_masks_and_corners_are_those_of_the_package() -> None:
    random = np.random.default_rng(2)
    prototypes = random.normal(size=(8, 16, 24)).astype(np.float32)
    weights = random.normal(size=(4, 8)).astype(np.float32)
    boxes = np.array([[2.5, 3.5, 60, 50], [0, 0, 96, 64], [30, 10, 33, 60], [90, 60, 99, 70]], np.float32)
    space = loaded(facts(layout("coefficients")))
    found = space["masks_of"](weights, prototypes, boxes, 1.0, (0, 0), Image.new("RGB", (96, 64)))
    np.testing.assert_array_equal(found, instance_masks(weights, np.moveaxis(prototypes, 0, -1), boxes, SIZE))
    narrow = letterboxed((200, 150), SIZE)
    inside = Image.new("RGB", (150, 200))
    wanted = space["masks_of"](weights, prototypes, boxes, narrow.scale[0], narrow.corner, inside)
    at_image = list(image_masks(weights, np.moveaxis(prototypes, 0, -1), boxes, narrow))
    assert 0 < np.mean(at_image) < 1
    np.testing.assert_array_equal(at_image, wanted)
    turned = Detections(boxes, np.ones(4, np.float32), np.zeros(4, np.int64), weights[:, :1], ROTATED)
    corners = loaded(facts(layout("angles")))["corners_of"](boxes, weights[:, :1])
    np.testing.assert_allclose(corners, corner_points(turned), atol=1e-4)


THRESHOLDS = {"everything": 0.3, "classes": {"1": 0.6, "2": 0.3}}


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def artifact(request: pytest.FixtureRequest, demo_one2many: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's FP32 file with names that nobody trusts."""
    pytest.importorskip("onnx", reason="needs the extra qexport[onnx]")
    pytest.importorskip(request.param, reason=f"needs the extra qexport[{request.param}]")
    path = tmp_path_factory.mktemp("files") / f"demo{'.onnx' if request.param == 'onnx' else '_openvino_model'}"
    own = {"names": dict(enumerate(HOSTILE[:6])), "thresholds": THRESHOLDS}
    metadata = {**artifact_metadata(demo_checkpoint(), demo_one2many, "fp32", None), **own}
    find_backend(request.param).lower(lowering(demo_one2many, "fp32", None, metadata), path)
    return path


def test_a_program_alone_finds_what_the_package_finds(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], logging_level: None
) -> None:
    Image.open(demo_images("val", 2)[1]).crop((0, 0, 320, 200)).save(tmp_path / "wide.png")
    known = facts_of(artifact)
    assert (known.names, known.threshold, known.class_thresholds) == (HOSTILE[:6], 0.3, {1: 0.6})
    assert snippets.differences(known, tmp_path / "wide.png", tmp_path) == []
    assert snippets.device_differences(known, tmp_path / "wide.png", tmp_path) == []
    capsys.readouterr()
    assert main(["snippet", str(artifact), "--image", HOSTILE[2]]) == 0
    assert capsys.readouterr().out == program_of(known, "python", HOSTILE[2])
    assert list(tmp_path.glob("CANARY")) == []


def test_a_copied_program_runs_beside_a_copied_file(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], logging_level: None
) -> None:
    device, elsewhere = tmp_path / "device", tmp_path / "elsewhere"
    device.mkdir()
    elsewhere.mkdir()
    for done in ("wrote", "replaced"):
        capsys.readouterr()
        assert main(["snippet", str(artifact), "--out", str(device / "run.py")]) == 0
        assert capsys.readouterr().out.startswith(f"{done} {device / 'run.py'}; to run it")
    image = demo_images("val", 2)[1]
    wanted = snippets.expected(facts_of(artifact), image)
    moved, text = tmp_path / "before" / artifact.name, (device / "run.py").read_text()
    (device / "run.py").write_text(text.replace(repr(str(artifact)).replace("'", '"'), f'"{moved}"'))
    (shutil.copytree if artifact.is_dir() else shutil.copy)(artifact, device / artifact.name)
    words = [sys.executable, "-I", "-c", snippets.ALONE, "", str(device / "run.py"), str(image)]
    ran = subprocess.run(words, cwd=elsewhere, capture_output=True, text=True, check=True, timeout=120)
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert list(snippets.compared(found, wanted)) == []
    assert f'MODEL = "{moved}"' in (device / "run.py").read_text()
    assert ran.stderr.splitlines()[-1] == "drawn in detections.png"
    assert Image.open(elsewhere / "detections.png").size == Image.open(image).size


REFUSED: list[tuple[Sequence[str], dict[str, Any], str]] = [
    (["m.onnx"], {"task": ""}, "does not say its task"),
    (["m.onnx"], {"names": "{1: 'a'}"}, "metadata of m.onnx are not as qexport writes them"),
    (["m.onnx"], {"imgsz": "[0, 64]"}, "metadata of m.onnx are not as qexport writes them"),
    (["m.onnx"], {"thresholds": "{'everything': 7}"}, "metadata of m.onnx are not as qexport writes them"),
    (["m.onnx"], {"names": "{0: 'a', 1.5: 'b'}"}, "metadata of m.onnx are not as qexport writes them"),
    (["m.onnx"], {"raw_outputs": "{'further': []}"}, "metadata of m.onnx are not as qexport writes them"),
    (["m.onnx"], {"raw_outputs": "{'strides': ['x', 0]}"}, "metadata of m.onnx are not as qexport writes them"),
    (["m.onnx"], {"channels": "4"}, "takes 4 channels"),
    (["m.onnx"], {"head": "RTDETRDecoder"}, "is an RT-DETR model"),
    (["m.engine"], {}, "made for TensorRT"),
    (["m_edgetpu.tflite"], {}, "made for the Edge TPU"),
    (["m_tensorrt.onnx"], {}, "a graph to build an engine from"),
    (["m.txt"], {}, "is no artifact of qexport"),
]


@pytest.mark.parametrize(("words", "metadata", "reason"), REFUSED)
def test_what_there_is_no_program_for(
    words: Sequence[str], metadata: dict[str, Any], reason: str, refused: Refusal
) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra qexport[onnx]")
    node = onnx.helper.make_node("Identity", ["images"], ["output"])
    ends = [onnx.helper.make_tensor_value_info(each, 1, [1, 3, 64, 64]) for each in ("images", "output")]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    own = {"task": "detect", "names": "{0: 'a'}", "imgsz": "[64, 64]", "batch": "1", "end2end": "True", **metadata}
    onnx.helper.set_model_props(model, own)
    onnx.save(model, words[0])
    assert reason in refused("snippet", *words, code=3)


def test_what_a_language_has_no_parts_for() -> None:
    for known, language, remedy in (
        (facts(layout(), format="openvino"), "js", "give --lang python"),
        (facts(layout("angles")), "cpp", "give --lang python"),
        (facts(layout(), format="tflite", integers=True), "kotlin", "give --lang python, or an int8 file"),
    ):
        with pytest.raises(UsageError, match=remedy):
            program_of(known, language)
    with pytest.raises(InputError, match="no program for format other"):
        program_of(facts(layout(), format="other"), "python")
