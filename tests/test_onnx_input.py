"""Float ONNX files as input: one made elsewhere, and one with Ultralytics' metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import demo_images
from elsewhere import SIZE, Classifier, Detector, changed, settled, write
from refusals import DATA, INPUT, UNMEASURED, USAGE, Refusal

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")

import onnxruntime

from qexport.job.options import make_job
from qexport.pipeline import export
from qexport.planning.plan import QuantPlan, load_plan
from qexport.progress import Silent
from qexport.reporting.report import Report

RAW = ("boxes", "objects", "class_logits")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated
        return write(settled(Detector()), tmp_path_factory.mktemp("elsewhere") / "detector.onnx")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    listing = tmp_path_factory.mktemp("few") / "few.txt"
    listing.write_text("\n".join(map(str, demo_images("val", 8))), encoding="utf-8")
    return listing


def ran(model: Path, out: Path, **options: Any) -> Report:
    quick = {"effort": "none", "calib_images": 4, "no_latency": True, "no_build": True}
    given = {"int8": True, "out": out, **quick, **options}
    return export(make_job({"model": str(model), **given}), Silent())


@pytest.fixture(scope="module")
def run(detector: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The detector from elsewhere in every format that ONNX files can become."""
    out = tmp_path_factory.mktemp("run")
    return ran(detector, out, data=str(few), format="onnx,openvino,tensorrt", cpu="vnni")


def plan_of(report: Report, name: str) -> QuantPlan:
    (found,) = [a.plan for a in report.artifacts if a.format == name and a.precision == "int8"]
    assert found
    return load_plan(Path(found))


def test_a_detector_from_elsewhere_is_verified_in_every_format(run: Report) -> None:
    assert not run.failures
    small = [artifact for artifact in run.artifacts if artifact.precision == "int8"]
    assert [artifact.format for artifact in small] == ["onnx", "openvino", "tensorrt"]
    for artifact in small:
        assert artifact.verification is not None
        assert artifact.verification.agreement is None  # nobody knows what its outputs are
        assert (artifact.verification.cosine or 0) > 0.99
        assert (artifact.int8_mac_coverage or 0) > 0.9
        assert artifact.accuracy is None


def test_outputs_are_compared_where_there_is_no_task(run: Report, few: Path) -> None:
    paths = {(a.format, a.precision): a.path for a in run.artifacts}
    (found,) = next(a for a in run.artifacts if (a.format, a.precision) == ("onnx", "int8")).outputs
    assert found.name == "detections"
    assert found.images == 8
    assert any("calibrated on" in warning.text for artifact in run.artifacts for warning in artifact.warnings)
    # The same figures by hand, with NumPy alone.
    from qexport.data.images import letterbox, read_image, to_tensor

    pixels = [to_tensor(letterbox(read_image(Path(p)), (SIZE, SIZE)))[None] for p in few.read_text().splitlines()]
    whole, small = (
        np.concatenate([session(paths["onnx", each]).run(None, {"picture": p})[0] for p in pixels]).astype(float)
        for each in ("fp32", "int8")
    )
    noise = ((whole - small) ** 2).sum()
    assert found.sqnr_db == pytest.approx(10 * np.log10((whole**2).sum() / noise), abs=0.05)
    rows = whole.reshape(-1, 8), small.reshape(-1, 8)
    by_column = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(rows[0].T, rows[1].T, strict=True)]
    assert found.columns == pytest.approx(np.mean(by_column), abs=1e-4)
    assert (found.columns or 0) > 0.98


def session(path: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["onnx", "openvino", "tensorrt"])
def test_pixels_and_scores_share_no_scale(run: Report, name: str) -> None:
    plan = plan_of(run, name)
    program = json.loads(Path(next(a.plan for a in run.artifacts if a.format == name and a.plan) or "").read_text())
    raw = {value for value in program["tensors"] if value.startswith(RAW) and not value.endswith(".weight")}
    assert len(raw) == 6  # of each level a box, an objectness and classes
    boxes = {value for value in raw if value.startswith("boxes")}
    groups = [{n for n, t in plan.tensors.items() if t.group and t.group == plan.tensors[v].group} for v in raw]
    assert all(len(group & raw) < 2 for group in groups)
    assert not any(plan.is_quantised(value) for value in boxes)
    # Behind them nothing is an integer: the concatenations of levels, exp, the products with strides.
    tail = [value for value in plan.tensors if plan.tensors[value].why.startswith("decode stays float")]
    assert any(value.startswith("Exp") or "Exp" in value for value in tail)
    assert sum("Concat" in value for value in tail) == 4
    assert not any(plan.is_quantised(value) for value in tail)


def test_input_and_outputs_keep_their_names_and_the_activation_its_place(run: Report) -> None:
    for artifact in run.artifacts:
        if artifact.format != "openvino":
            graph = onnx.load(artifact.path).graph
            assert [port.name for port in (*graph.input, *graph.output)] == ["picture", "detections"]


def test_the_users_boundary_and_exceptions_go_before_what_is_found(detector: Path, few: Path, tmp_path: Path) -> None:
    options = {"data": str(few), "no_eval": True, "keep_float": "detections"}
    every = plan_of(ran(detector, tmp_path / "a", **options), "onnx")
    raw = [name for name in every.tensors if name.startswith(RAW) and not name.endswith("weight")]
    assert [every.is_quantised(name) for name in raw] == [False] * 6
    assert every.tensors[next(n for n in raw if n.startswith("objects"))].why == "float as asked"
    neck = next(name for name in every.tensors if name.startswith("neck") and name.endswith("Conv"))
    early = plan_of(ran(detector, tmp_path / "b", data=str(few), no_eval=True, raw_outputs=neck), "onnx")
    first_level = [name for name in raw if "_0_" in name]
    assert len(first_level) == 3
    assert not any(early.is_quantised(name) for name in first_level)
    assert early.tensors[first_level[0]].why.startswith("decode stays float")
    assert any(early.is_quantised(name) for name in raw)  # the second level does not come through the neck
    assert early.is_quantised(
        next(name for name in early.tensors if name.startswith("third") and name.endswith("Conv"))
    )


@pytest.mark.slow
def test_a_classifier_with_its_own_normalisation_and_operators(few: Path, tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = write(settled(Classifier()), tmp_path / "classifier.onnx", ("x", "logits"), opset=17)
    options = {"data": str(few), "pixels": "imagenet", "bgr": True, "cpu": "vnni"}
    report = ran(model, tmp_path / "out", format="onnx,openvino,tensorrt", **options)
    assert not report.failures
    assert report.calibration is not None
    assert report.calibration.preprocess == "centre crop 96x96, BGR, imagenet"
    for artifact in report.artifacts:
        assert artifact.precision == "fp32" or (artifact.outputs[0].cosine or 0) > 0.95
    kernels = optimised(next(a.path for a in report.artifacts if a.path.endswith("classifier_int8.onnx")), tmp_path)
    assert {"QLinearConv", "QLinearLeakyRelu", "QLinearAveragePool", "QLinearMul"} <= set(kernels)
    assert "Relu" not in kernels  # the integers' limits are ReLU's


def optimised(path: str, folder: Path) -> list[str]:
    """Operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


@pytest.mark.slow
def test_a_file_with_ultralytics_metadata_is_scored_like_a_checkpoint(tmp_path: Path) -> None:
    import yaml

    root = Path(DATA).parent
    listing = tmp_path / "few.txt"
    listing.write_text("\n".join(map(str, demo_images("val", 12))), encoding="utf-8")
    content = yaml.safe_load(Path(DATA).read_text(encoding="utf-8"))
    data = tmp_path / "few.yaml"
    data.write_text(yaml.safe_dump({**content, "path": str(root), "val": str(listing)}), encoding="utf-8")
    checkpoint = Path(__file__).resolve().parents[1] / "calibration_data" / "shapes26.pt"
    first = ran(checkpoint, tmp_path / "pt", data=str(data), format="onnx", imgsz=96)
    whole = next(a for a in first.artifacts if a.precision == "fp32")
    second = ran(Path(whole.path), tmp_path / "onnx", data=str(data))
    again, small = sorted(second.artifacts, key=lambda artifact: artifact.precision)
    through_pt = next(a for a in first.artifacts if a.precision == "int8")
    assert second.model.task == "detect"
    assert again.accuracy is not None
    assert small.accuracy is not None
    assert whole.accuracy is not None
    assert through_pt.accuracy is not None
    assert again.accuracy.map == pytest.approx(whole.accuracy.map, abs=1e-3)
    assert (small.accuracy.fidelity or 0) > 0.9
    assert small.accuracy.fidelity == pytest.approx(through_pt.accuracy.fidelity, abs=0.06)
    carried = {entry.key: entry.value for entry in onnx.load(small.path).metadata_props}
    original = {entry.key: entry.value for entry in onnx.load(whole.path).metadata_props}
    same = ("task", "names", "stride", "imgsz", "channels", "end2end")
    assert {key: carried[key] for key in same} == {key: original[key] for key in same}
    assert carried["precision"] == "int8"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "tflite"), ("tflite", "onnx, openvino or tensorrt")),
        (("--format", "onnx,edgetpu"), ("edgetpu", "onnx, openvino or tensorrt")),
        (("--head", "one2many"), ("--head one2many", ".pt")),
        (("--nms",), ("--nms", ".pt")),
        (("--imgsz", "128"), ("--imgsz 128x128", "96x96")),
        (("--batch", "2"), ("--batch 2", "1")),
        (("--dynamic",), ("--dynamic", "fixed number of images")),
        (("--pixels", "0..2"), ("--pixels 0..2", "imagenet")),
        (("--half", "--keep-float", "detection"), ("--keep-float detection", "did you mean detections")),
        (("--raw-outputs", "nothing"), ("--raw-outputs nothing", "not in the model")),
    ],
    ids=lambda value: " ".join(value)[:24],
)
def test_options_that_do_not_suit_the_file(
    refused: Refusal, detector: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    line = refused(str(detector), *UNMEASURED, *options, code=USAGE)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("quantised", ("quantised already", "QuantizeLinear")),
        ("two inputs", ("2 inputs", "picture", "size")),
        ("half", ("float16", "float32")),
        ("no image", ("2 dimensions", "image")),
        ("channels", ("1x6x96x96", "colour")),
        ("weights elsewhere", ("weights.bin", "beside it")),
        ("foreign", ("acme.",)),
    ],
)
def test_files_that_cannot_be_quantised(
    refused: Refusal, detector: Path, tmp_path: Path, change: str, words: tuple[str, ...]
) -> None:
    line = refused(str(changed(detector, tmp_path / "bad.onnx", change)), *UNMEASURED, code=INPUT)
    for word in ("bad.onnx", *words):
        assert word in line


@pytest.mark.parametrize("kept", [0, 20, -1000], ids=["empty", "text", "cut short"])
def test_what_is_no_onnx_file(refused: Refusal, detector: Path, tmp_path: Path, kept: int) -> None:
    content = b"hello, this is no graph\n"[:kept] if kept >= 0 else detector.read_bytes()[:kept]
    (tmp_path / "broken.onnx").write_bytes(content)
    assert "broken.onnx" in refused("broken.onnx", *UNMEASURED, code=INPUT)


def test_options_for_onnx_files_only(refused: Refusal) -> None:
    assert "--bgr is for ONNX files" in refused("absent.pt", *UNMEASURED, "--bgr", code=USAGE)


def test_sizes_of_any_kind_need_one(refused: Refusal, detector: Path, tmp_path: Path) -> None:
    proto = onnx.load(detector)
    for dimension in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_param = "size"
    onnx.save(proto, tmp_path / "open.onnx")
    assert "add --imgsz" in refused("open.onnx", *UNMEASURED, code=USAGE)
