"""TFLite files with channels last and boxes in 0..1: the same numbers as the plain file's, by whoever reads them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEMO, demo_images, lowering, synthetic_statistics
from numpy.typing import NDArray
from PIL import Image
from refusals import Refusal
from small_models import small_model

from qexport.backends.registry import find_info
from qexport.cli.app import main
from qexport.data.images import letterbox, read_image
from qexport.decode import as_input, dequantised, found_in, info_of, prototypes, read_model_info
from qexport.decode.metadata import tflite_metadata
from qexport.detections.file_form import FileForm, as_metadata, form_of, tflite_form
from qexport.detections.layout import HeadLayout
from qexport.errors import UsageError
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE, TFLITE_INT16, TFLITE_INTEGER
from qexport.programs.capture import capture
from qexport.programs.captured_graph import copied
from qexport.programs.heads import split_head
from qexport.programs.program import Program, every_output
from qexport.vocabulary import LAYOUTS

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
snippets = pytest.importorskip("snippets")

SIZE = (64, 128)
"""Powers of two: dividing by them, and multiplying again, changes no digit of a float."""
ASKED: dict[str, Any] = {"layout": "nhwc", "normalised_boxes": True}
HEADS = [
    ("Segment26", "end2end"),
    ("Pose26", "end2end"),
    ("Pose", "one2many"),
    ("OBB26", "one2many"),
    ("Detect", "nms"),
]


def in_pixels(output: NDArray[np.float32], layout: HeadLayout) -> NDArray[np.float32]:
    """A decoded output whose coordinates are shares: multiplied column by column, as the documents say it."""
    height, width = SIZE
    pixels = output.copy()
    values = [
        pixels[..., place] if layout.end2end else pixels[:, place] for place in range(pixels.shape[1 + layout.end2end])
    ]
    sizes = {0: width, 1: height, 2: width, 3: height}
    if layout.extras == "keypoints":
        first = 6 if layout.end2end else 4 + layout.classes
        for point in range(layout.shape[0]):
            sizes |= {first + point * layout.shape[1]: width, first + point * layout.shape[1] + 1: height}
    for place, size in sizes.items():
        values[place] *= size
    return pixels


@pytest.mark.parametrize(("head", "way"), HEADS)
def test_a_graph_of_another_form_computes_the_same(head: str, way: str) -> None:
    pytest.importorskip("torchao", reason="needs the extra qexport[tflite]")
    from qexport.backends.tflite.outer_form import formed

    chosen = None if way == "nms" else way
    program = capture(split_head(small_model(head, end2end=way == "end2end"), chosen, SIZE, nms=way == "nms"), SIZE)
    layout = program.layout
    assert layout.end2end == (way != "one2many")
    images = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(3))
    graph = formed(copied(program), layout, FileForm(channels_last=True, normalised=True))
    with torch.no_grad():
        expected, *masks = (each.numpy() for each in every_output(program.graph(images)))
        actual, *moved = (each.numpy() for each in every_output(graph(images.permute(0, 2, 3, 1))))
    assert not np.array_equal(actual, expected)
    np.testing.assert_array_equal(in_pixels(actual, layout), expected)
    assert len(moved) == len(masks) == (layout.extras == "coefficients")
    for one, other in zip(moved, masks, strict=True):
        np.testing.assert_array_equal(one.transpose(0, 3, 1, 2), other)


METADATA: dict[str, Any] = {"task": "detect", "names": {0: "cat"}, "imgsz": [64, 128], "end2end": True}


@pytest.mark.parametrize(
    ("metadata", "usual"),
    [
        ({}, FileForm()),
        ({"end2end": False}, FileForm(normalised=True)),
        ({"task": "classify", "end2end": False}, FileForm()),
        ({"raw_outputs": {}, "end2end": False}, FileForm(channels_last=True)),
    ],
)
def test_what_a_file_says_goes_before_what_files_of_its_kind_have(metadata: dict[str, Any], usual: FileForm) -> None:
    given = {**METADATA, **metadata}
    layout = info_of(given).layout
    assert form_of(given, layout, tflite=True) == tflite_form(layout, "raw_outputs" in metadata) == usual
    for form in (FileForm(last, normalised) for last in (False, True) for normalised in (False, True)):
        said = {**given, **as_metadata(form, layout)}
        for tflite in (False, True):
            info = info_of(said, tflite)
            assert (info.channels_last, info.normalised) == (form.channels_last, form.normalised)
        assert info_of({key: str(value) for key, value in said.items()}).normalised == form.normalised


def test_boxes_of_rt_detr_are_shares_in_every_form() -> None:
    queries = {**METADATA, "head": "RTDETRDecoder"}
    layout = info_of(queries).layout
    for form in (FileForm(), FileForm(normalised=True)):
        said = as_metadata(form, layout)
        assert said["normalised_boxes"]
        assert not info_of({**queries, **said}, tflite=True).normalised  # its decode has it


@pytest.mark.parametrize(
    "wrong", [{"layout": "NHWC"}, {"layout": 3}, {"normalised_boxes": "yes"}, {"normalised_boxes": 1}]
)
def test_metadata_of_another_form_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="layout"):
        info_of({**METADATA, **wrong})


def test_pixels_are_laid_out_as_the_file_says() -> None:
    image = np.random.default_rng(0).integers(256, size=(2, 5, 3)).astype(np.uint8)
    last, first = as_input(image, channels_last=True), as_input(image, channels_last=False)
    assert (last.shape, first.shape) == ((1, 2, 5, 3), (1, 3, 2, 5))
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), first)
    np.testing.assert_array_equal(as_input(image), first)
    integers = as_input(image, np.uint8, (1 / 255, 0), channels_last=False)
    np.testing.assert_array_equal(integers[0].transpose(1, 2, 0), image)


REFUSED: list[tuple[Sequence[str], str]] = [
    (["--layout", "nwhc"], "--layout nwhc is out of range: give nchw or nhwc; did you mean nhwc"),
    (["--format", "tflite,onnx", "--layout", "nhwc"], "format onnx cannot be written with --layout nhwc: leave it out"),
    (
        ["--format", "openvino", "--normalised-boxes"],
        "openvino cannot be written with --normalised-boxes: leave it out",
    ),
    (["--precision", "int8-full", "--layout", "nchw"], "such files have their channels last"),
    (["--precision", "int8-full", "--normalised-boxes"], "end in front of the boxes"),
    (["--target", "coral", "--normalised-boxes"], "--normalised-boxes and --precision int8-full exclude each other"),
]


@pytest.mark.parametrize(("words", "reason"), REFUSED)
def test_forms_that_there_are_not(words: Sequence[str], reason: str, refused: Refusal) -> None:
    for name in ("onnx", "openvino"):
        pytest.importorskip(name, reason=f"needs the extra qexport[{name}]")
    assert reason in refused(str(DEMO / "shapes26.pt"), "--data", str(DEMO / "shapes" / "shapes.yaml"), *words, code=2)


def test_channels_first_are_what_other_formats_have() -> None:
    from qexport.job.options import make_job

    assert make_job({"model": "m.pt", "format": "tflite", "layout": "nchw"}).layout == "nchw"
    assert make_job({"model": "m.pt", "format": "tflite", **ASKED}).normalised_boxes
    options = {option.name: option for option in find_info("tflite").options}
    assert options.keys() == {"io", *ASKED}
    assert options["layout"].choices == LAYOUTS


def interpreter(path: Path) -> Any:
    """LiteRT's own interpreter, without anything of ours."""
    from ai_edge_litert.interpreter import Interpreter

    loaded = Interpreter(str(path), num_threads=1)
    loaded.allocate_tensors()
    return loaded


def raw(path: Path, given: NDArray[Any]) -> list[NDArray[Any]]:
    """What a file gives, in its own order."""
    loaded = interpreter(path)
    loaded.set_tensor(loaded.get_input_details()[0]["index"], given)
    loaded.invoke()
    return [loaded.get_tensor(output["index"]) for output in loaded.get_output_details()]


def lowered(program: Program, precision: str, plan: QuantPlan | None, path: Path, **options: Any) -> Path:
    from qexport.backends.tflite.backend import TFLiteBackend

    TFLiteBackend().lower(lowering(program, precision, plan, **options), path)
    return path


def test_integers_of_a_small_file_are_those_of_the_plain_one(tiny: Program, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    from qexport.backends.tflite.backend import TFLiteBackend

    plan = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE, "minmax")
    plain = lowered(tiny, "int8", plan, tmp_path / "plain.tflite")
    last = lowered(tiny, "int8", plan, tmp_path / "last.tflite", layout="nhwc")
    image = np.random.default_rng(2).random((1, 3, 8, 8), np.float32)
    assert interpreter(last).get_input_details()[0]["shape"].tolist() == [1, 8, 8, 3]
    one, other = raw(plain, image), raw(last, np.ascontiguousarray(image.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(TFLiteBackend().runner(last, 1)(image)[0], one[0])
    same_integers(plain, last)


def same_integers(plain: Path, last: Path) -> None:
    """Both files have every tensor in the same type and scale; the one has fewer transpositions."""
    from qexport.backends.tflite.backend import TFLiteBackend

    stored = [TFLiteBackend().read(path) for path in (plain, last)]
    kinds = [{name: (t.dtype, t.scale, t.zero_point) for name, t in each.tensors.items()} for each in stored]
    assert kinds[0] == kinds[1]
    assert len(kinds[0]) > 20
    assert [each.operators.get("TRANSPOSE", 0) for each in stored][1] < stored[0].operators["TRANSPOSE"]


def test_prototypes_are_integers_in_either_form(tmp_path: Path) -> None:
    """Where channels come last the operator that computes them is the last one, and the converter names it anew."""
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    from qexport.backends.tflite.backend import TFLiteBackend

    program = capture(split_head(small_model("Segment26"), "one2many", SIZE), SIZE)
    plan = make_plan(program, synthetic_statistics(program.values), TFLITE_INT16, "minmax")
    metadata = {**METADATA, "task": "segment", "names": dict.fromkeys(range(4), "a"), "end2end": False}
    paths = [tmp_path / "plain.tflite", tmp_path / "formed.tflite"]
    for path, options in zip(paths, ({}, ASKED), strict=True):
        TFLiteBackend().lower(lowering(program, "w8a16", plan, metadata, **options), path)
    image = np.random.default_rng(0).random((1, 3, *SIZE), np.float32)
    one, other = (TFLiteBackend().runner(path, 1)(image) for path in paths)
    assert [each.shape for each in one] == [(1, 16, 168), (1, 8, 16, 32)]
    for expected, actual in zip(one, other, strict=True):
        np.testing.assert_array_equal(actual, expected)
    same_integers(*paths)


def test_files_without_floats_have_their_channels_last_anyway(tiny: Program, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    plan = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE_INTEGER, "minmax")
    plain = lowered(tiny, "int8-full", plan, tmp_path / "plain.tflite", io="uint8")
    last = lowered(tiny, "int8-full", plan, tmp_path / "last.tflite", io="uint8", layout="nhwc")
    assert plain.read_bytes() == last.read_bytes()
    said = tflite_metadata(last)
    assert (said["layout"], said["normalised_boxes"]) == ("nhwc", False)
    for options in ({"layout": "nchw"}, {"normalised_boxes": True}):
        with pytest.raises(UsageError, match="they end at the raw outputs of each level"):
            lowered(tiny, "int8-full", plan, tmp_path / "no.tflite", **options)
    assert not (tmp_path / "no.tflite").exists()


def test_ultralytics_way_of_reading_is_told(tiny: Program) -> None:
    pytest.importorskip("torchao", reason="needs the extra qexport[tflite]")
    from qexport.backends.tflite.outer_form import asked_form, remarks

    def said(**options: Any) -> str:
        request = lowering(tiny, "fp32", **options)
        return " ".join(remarks(request, asked_form(request)))

    assert said() == said(**ASKED) == ""
    assert "add --normalised-boxes" in said(layout="nhwc")
    assert "add --layout nhwc" in said(normalised_boxes=True)
    one2many, classifier = (
        lowering(replace(tiny, layout=replace(tiny.layout, head=head)), "fp32", None, {}, **ASKED)
        for head in ("one2many", "classifier")
    )
    assert remarks(one2many, asked_form(one2many)) == []
    assert asked_form(classifier) == FileForm(channels_last=True)
    assert "a classifier has no boxes" in remarks(classifier, asked_form(classifier))[0]


@dataclass(frozen=True)
class Pair:
    """The demo segmenter's files of two runs, and what the runs left."""

    plain: Path
    formed: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    folder = tmp_path_factory.mktemp("forms")
    data = str(DEMO / "shapes" / "shapes-segment.yaml")
    words = [str(DEMO / "shapes26-seg.pt"), "--format", "tflite", "--int8", "--data", data, "--imgsz", "256"]
    quick = ["--effort", "none", "--calib-images", "8", "--no-eval", "--no-latency", "--quiet"]
    for name, more in {"plain": [], "formed": ["--layout", "nhwc", "--normalised-boxes"]}.items():
        assert main([*words, *quick, "--out", str(folder / name), *more]) == 0
    return Pair(*(folder / name / "shapes26-seg_int8.tflite" for name in ("plain", "formed")))


def pictures() -> list[NDArray[np.uint8]]:
    """Validation images at the demo files' size, RGB."""
    return [np.ascontiguousarray(letterbox(read_image(path), (256, 256))[..., ::-1]) for path in demo_images("val", 6)]


@pytest.mark.slow
def test_the_plan_is_the_plain_files(pair: Pair, logging_level: None) -> None:
    one, other = (json.loads((path.parent / "plan.json").read_text()) for path in (pair.plain, pair.formed))
    assert one == other
    loaded = interpreter(pair.formed)
    assert loaded.get_input_details()[0]["shape"].tolist() == [1, 256, 256, 3]
    assert sorted(len(output["shape"]) for output in loaded.get_output_details()) == [3, 4]
    said = tflite_metadata(pair.formed)
    assert (said["layout"], said["normalised_boxes"], said["end2end"]) == ("nhwc", True, True)
    assert main(["verify", str(pair.formed)]) == 0


@pytest.mark.slow
def test_both_files_give_the_same_numbers_and_detections(pair: Pair) -> None:
    from qexport.backends.tflite.backend import TFLiteBackend

    runners = [TFLiteBackend().runner(path, 1) for path in (pair.plain, pair.formed)]
    most = 0
    for pixels in pictures():
        planes = as_input(pixels).astype(np.float32)
        for one, other in zip(*(runner(planes) for runner in runners), strict=True):
            np.testing.assert_array_equal(one, other)
        found = []
        for path in (pair.plain, pair.formed):
            info = read_model_info(path)
            outputs = [
                dequantised(each, 0, 0) for each in raw(path, as_input(pixels, channels_last=info.channels_last))
            ]
            found.append((found_in(outputs, info)[0], prototypes(outputs, info)))
        for name in ("boxes", "scores", "classes", "extras"):
            np.testing.assert_array_equal(*(getattr(each[0], name) for each in found))
        np.testing.assert_array_equal(found[0][1], found[1][1])
        most = max(most, len(found[0][0].scores))
    assert most > 1


@pytest.mark.slow
def test_programs_alone_find_what_the_package_finds(pair: Pair, tmp_path: Path, logging_level: None) -> None:
    from qexport.snippets.facts import facts_of

    known = facts_of(pair.formed)
    assert (known.channels_last, known.unit) == (True, (256, 256))
    Image.fromarray(pictures()[1]).save(tmp_path / "square.png")
    assert snippets.differences(known, tmp_path / "square.png", tmp_path) == []
    assert snippets.device_differences(known, tmp_path / "square.png", tmp_path) == []


@pytest.mark.slow
def test_ultralytics_predicts_the_same_from_either_file(pair: Pair) -> None:
    from ultralytics.models import YOLO

    seen = 0
    for picture in pictures():
        results = []
        for path in (pair.plain, pair.formed):
            model: Any = YOLO(str(path), task="segment")
            (result,) = model.predict(picture[..., ::-1], imgsz=256, device="cpu", verbose=False, save=False)
            results.append(result)
        one, other = results
        np.testing.assert_array_equal(one.boxes.data.numpy(), other.boxes.data.numpy())
        seen += len(one.boxes)
        if len(one.boxes):
            np.testing.assert_array_equal(one.masks.data.numpy(), other.masks.data.numpy())
    assert seen > 1
