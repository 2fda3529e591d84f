"""Values of options and of configs: what they may be written as, and which of two wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qexport.errors import UsageError
from qexport.job.options import make_job, read_config

GOOD: dict[str, Any] = {"model": "yolo26n.pt", "data": "coco8.yaml", "int8": True}


def config(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (640, (640, 640)),
        ("640", (640, 640)),
        ("480,640", (480, 640)),
        ("480x640", (480, 640)),
        ([480, 640], (480, 640)),
        ((96, 64), (96, 64)),
        ([320], (320, 320)),
    ],
)
def test_image_sizes_are_height_and_width(given: object, size: tuple[int, int]) -> None:
    assert make_job({**GOOD, "imgsz": given}).imgsz == size


@pytest.mark.parametrize("given", ["", "big", "640,640,3", "640x", [], [1, 2, 3], {"a": 1}])
def test_what_is_no_image_size_is_refused(given: object) -> None:
    with pytest.raises(UsageError, match=r"^--imgsz cannot be "):
        make_job({**GOOD, "imgsz": given})


@pytest.mark.parametrize(
    ("given", "formats"),
    [
        ("tflite", ("tflite",)),
        ("tflite, tflite", ("tflite",)),
        (["tflite"], ("tflite",)),
        ("tensorrt,onnx", ("tensorrt", "onnx")),
        ("openvino, onnx,openvino", ("openvino", "onnx")),
        (["onnx", "tflite"], ("onnx", "tflite")),
    ],
)
def test_formats_are_a_list_or_separated_by_commas(given: object, formats: tuple[str, ...]) -> None:
    assert make_job({**GOOD, "format": given}).format == formats


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("batch", "two", "a whole number"),
        ("threads", [1], "a whole number"),
        ("calib_images", "many", "a whole number, or all"),
        ("fraction", "half", "a number"),
        ("int8", "yes", "true or false"),
        ("no_eval", 1, "true or false"),
        ("out", 5, "another value"),
        ("format", 5, "another value"),
        ("batch", 2.7, "a whole number"),
        ("threads", True, "a whole number"),
        ("fraction", True, "a number"),
        ("imgsz", 640.9, "pixels, such as 640"),
        ("batch", float("inf"), "a whole number"),
        ("opset", "latest", "a whole number"),
        ("opset", 18.5, "a whole number"),
        ("dla", "first", "a whole number"),
        ("dla", True, "a whole number"),
        ("workspace", "big", "a number"),
        ("workspace", True, "a number"),
        ("dynamic", "batch", "true or false"),
        ("no_build", 1, "true or false"),
        ("cpu", ["vnni"], "another value"),
        ("timing_cache", 5, "another value"),
        ("data", ["a.yaml", "b.yaml"], "another value"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(name: str, value: object, wanted: str) -> None:
    option = name.replace("_", "-")
    with pytest.raises(UsageError, match=rf"^--{option} cannot be .*: give {wanted}"):
        make_job({**GOOD, name: value})


@pytest.mark.parametrize(
    ("options", "precision", "calibrates"),
    [
        ({}, "fp32", False),
        ({"int8": True}, "int8", True),
        ({"half": True}, "fp16", False),
        ({"precision": "int8", "int8": True}, "int8", True),
        ({"precision": "int8-dynamic"}, "int8-dynamic", False),
        ({"precision": "int8-full"}, "int8-full", True),
        ({"precision": "w8a16"}, "w8a16", True),
        ({"format": "edgetpu"}, "int8-full", True),
        ({"format": "edgetpu", "int8": True}, "int8-full", True),
        ({"target": "mcu"}, "int8-full", True),
        ({"target": "mcu", "int8": True, "io": "uint8"}, "int8-full", True),
    ],
)
def test_precisions_and_their_short_forms(options: dict[str, Any], precision: str, calibrates: bool) -> None:
    job = make_job({**GOOD, "int8": False, **options})
    assert (job.precision, job.calibrates) == (precision, calibrates)


def test_sixteen_bits_take_the_whole_range_unless_told_otherwise() -> None:
    wide = {**GOOD, "int8": False, "precision": "w8a16"}
    assert make_job(wide).range_method == "minmax"
    assert make_job({**wide, "ranges": "mse"}).range_method == "mse"
    assert make_job(GOOD).range_method == "auto"
    assert make_job({**GOOD, "effort": "none"}).range_method == "percentile"
    assert make_job(GOOD).views
    assert not make_job({**GOOD, "effort": "none"}).views


def test_a_precision_on_the_command_line_wins_over_a_short_form_in_the_config(tmp_path: Path) -> None:
    path = config(tmp_path, "data: a.yaml\nint8: true\n")
    assert make_job({"model": "m.pt", "precision": "int8-full"}, path).precision == "int8-full"
    assert make_job({"model": "m.pt", "half": True, "format": "onnx"}, path).precision == "fp16"
    assert make_job({"model": "m.pt"}, path).precision == "int8"


@pytest.mark.parametrize("name", ["onnx", "openvino", "tensorrt"])
def test_half_precision_is_for_the_formats_that_have_it(name: str) -> None:
    job = make_job({**GOOD, "int8": False, "half": True, "format": name})
    assert (job.precision, job.format) == ("fp16", (name,))


def test_options_of_tensorrt_come_from_a_config_too(tmp_path: Path) -> None:
    text = "format: [onnx, tensorrt]\nworkspace: 2\ntiming-cache: t.bin\ndla: 1\nno-build: true\nopset: 20\ncpu: arm\n"
    job = make_job(GOOD, config(tmp_path, text))
    assert (job.format, job.workspace, job.timing_cache) == (("onnx", "tensorrt"), 2.0, Path("t.bin"))
    assert (job.dla, job.no_build, job.opset, job.cpu) == (1, True, 20, "arm")


def test_the_command_line_wins_over_the_config(tmp_path: Path) -> None:
    path = config(tmp_path, "data: a.yaml\nint8: true\nbatch: 4\nimgsz: [480, 640]\n")
    job = make_job({"model": "m.pt", "batch": 2, "data": None}, path)
    assert (job.batch, job.data, job.int8, job.imgsz) == (2, "a.yaml", True, (480, 640))


def test_a_false_on_the_command_line_wins_too(tmp_path: Path) -> None:
    path = config(tmp_path, "data: a.yaml\nint8: true\nno-eval: true\n")
    job = make_job({"model": "m.pt", "no_eval": False}, path)
    assert (job.int8, job.no_eval) == (True, False)


def test_the_model_may_stand_in_the_config(tmp_path: Path) -> None:
    assert make_job({"model": None}, config(tmp_path, "model: m.pt\ndata: a.yaml\n")).model == "m.pt"


def test_hyphens_and_underscores_are_the_same_and_empty_is_not_given(tmp_path: Path) -> None:
    text = "calib-images: 16\nno_eval: true\neval-data:\nout: build\n"
    assert read_config(config(tmp_path, text)) == {"calib_images": 16, "no_eval": True, "out": "build"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fractoin: 0.5", r"unknown option fractoin in .*job\.yaml: did you mean fraction"),
        ("calib-image: 3", r"unknown option calib_image in .*: did you mean calib_images"),
        ("qqq: 1", r"unknown option qqq in .*: known options are model, format"),
        ("- int8", r"config .*job\.yaml is not a mapping"),
        ("", r"config .*job\.yaml is not a mapping"),
        ("a: [1", r"config .*job\.yaml cannot be read \("),
    ],
)
def test_a_config_with_a_fault_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}") as caught:
        make_job(GOOD, config(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.yaml cannot be read"):
        make_job(GOOD, tmp_path / "gone.yaml")
    (tmp_path / "job.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"job\.yaml cannot be read"):
        make_job(GOOD, tmp_path / "job.yaml")


def test_values_of_a_config_are_checked_like_those_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--fraction 2\.0 is out of range"):
        make_job(GOOD, config(tmp_path, "fraction: 2"))


def test_every_config_in_the_repository_is_a_job() -> None:
    configs = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
    configs = [path for path in configs if path.name != "sweep.yaml"]  # many jobs: see test_sweep_file
    assert configs
    for path in configs:
        job = make_job({"model": "m.pt", "data": "d.yaml"}, path)
        assert job.format == ("tflite",)
