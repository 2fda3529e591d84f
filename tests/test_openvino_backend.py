"""OpenVINO folders: written from a plan, read back from the IR, run, and loaded by Ultralytics."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, demo_checkpoint, demo_image, demo_images, lowering, synthetic_statistics

from qexport.backends.artifact import describe_artifact
from qexport.backends.info import profile_for
from qexport.backends.openvino.backend import OpenVINOBackend, OpenVINORunner
from qexport.backends.registry import available_formats, find_backend
from qexport.calibration.calibrate import calibrate
from qexport.errors import ConversionError, MissingExtraError, VerificationError
from qexport.lowering.metadata import artifact_metadata
from qexport.lowering.stored import StoredGraph
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import OPENVINO
from qexport.programs.program import Program
from qexport.programs.sample_inputs import sample_inputs
from qexport.system.files import write_whole
from qexport.system.machine import ARM, AVX2, VNNI, cpu_kind
from qexport.verification.coverage import check_coverage
from qexport.verification.verify import check_plan, verify

pytest.importorskip("openvino", reason="needs the extra qexport[openvino]")
pytest.importorskip("onnxscript", reason="needs the extra qexport[openvino]")

CLEAR = 3
"""Validation image in which the model is sure of several objects, small as it is here."""


@dataclass(frozen=True)
class Lowered:
    path: Path
    plan: QuantPlan
    stored: StoredGraph
    metadata: dict[str, Any]


@pytest.fixture(scope="module")
def lowered(demo_program: Program, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """The end-to-end demo model at 96 pixels, calibrated on four images, for this machine."""
    backend = OpenVINOBackend()
    table = calibrate(demo_program, demo_images("train", 4), lambda: None)
    plan = make_plan(demo_program, table.statistics, profile_for(backend.info, "int8", cpu_kind()))
    path = tmp_path_factory.mktemp("openvino") / "demo_int8_openvino_model"
    metadata = artifact_metadata(demo_checkpoint(), demo_program, "int8", plan)
    backend.lower(lowering(demo_program, "int8", plan, metadata), path)
    return Lowered(path, plan, backend.read(path), metadata)


@pytest.fixture(scope="module")
def small(tiny: Program, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantPlan]:
    """The tiny detector, with the weights that any CPU computes with."""
    plan = make_plan(tiny, synthetic_statistics(tiny.values), profile_for(OpenVINOBackend.info, "int8", AVX2), "minmax")
    path = tmp_path_factory.mktemp("small") / "small_openvino_model"
    OpenVINOBackend().lower(lowering(tiny, "int8", plan), path)
    return path, plan


def planned_share(program: Program, plan: QuantPlan) -> float:
    """Share of the multiply-accumulates that the plan gives to integer kernels."""
    total = sum(value.macs for value in program.values.values())
    return sum(value.macs for value in program.values.values() if value.name in plan.integer) / total


def quantised(plan: QuantPlan) -> int:
    return sum(not tensor.is_float for tensor in plan.tensors.values())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_backend_is_found_by_name() -> None:
    assert "openvino" in available_formats()
    backend = find_backend("openvino")
    assert (backend.info.name, backend.info.suffix) == ("openvino", "_openvino_model")
    assert (backend.info.dynamic, backend.info.timed) == (True, True)
    assert backend.info.precisions == {"fp32", "fp16", "int8", "int8-dynamic"}


def test_the_profile_depends_on_the_cpu() -> None:
    backend = OpenVINOBackend()
    assert profile_for(backend.info, "int8", VNNI) == profile_for(backend.info, "int8", ARM) == OPENVINO
    assert profile_for(backend.info, "int8", AVX2).saturating_pair_accumulation
    assert not profile_for(backend.info, "int8", VNNI).saturating_pair_accumulation


@pytest.mark.parametrize("package", ["openvino", "onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_remedy(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qexport.plugins.find_spec", lambda name: None if name == package else object())
    with pytest.raises(MissingExtraError, match=rf"format openvino needs {package}: pip install 'qexport\[openvino\]'"):
        find_backend("openvino")


def test_onnx_runtime_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qexport.plugins.find_spec", lambda name: None if name == "onnxruntime" else object())
    assert find_backend("openvino").info.name == "openvino"


def test_the_small_folder_holds_its_plan(tiny: Program, small: tuple[Path, QuantPlan]) -> None:
    path, plan = small
    stored = OpenVINOBackend().read(path)
    assert stored.complete
    assert check_plan(tiny, plan, stored) == quantised(plan)
    assert stored.tensors["images"].dtype == "uint8"
    grouped = stored.tensors["left.weight"].integers
    assert grouped is not None
    real = tiny.graph.parameter("left.weight").double().numpy()
    scale = np.array(plan.tensors["left.weight"].scale)[:, None, None, None]
    np.testing.assert_array_equal(grouped, np.rint(real / scale))


def test_multiply_accumulates_of_the_small_folder_by_hand(small: tuple[Path, QuantPlan]) -> None:
    stored = OpenVINOBackend().read(small[0])
    stem, deep, left = 8 * 4 * 4 * 27, 8 * 2 * 2 * 72, 4 * 4 * 4 * 2
    neck, box, cls = 8 * 4 * 4 * 16, 4 * 4 * 4 * 8, 2 * 4 * 4 * 8
    attention = 2 * 4 * 4 * 8
    assert stored.integer_macs == stem + deep + left + neck + box + cls
    assert stored.total_macs == stored.integer_macs + attention
    assert stored.operators["Convolution"] + stored.operators["GroupConvolution"] == 6
    assert stored.operators["MatMul"] == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_float_folder_computes_the_program(tiny: Program, tmp_path: Path, precision: str) -> None:
    path = tmp_path / "float_openvino_model"
    OpenVINOBackend().lower(lowering(tiny, precision), path)
    stored = OpenVINOBackend().read(path)
    assert (stored.tensors, stored.integer_macs, stored.coverage) == ({}, 0, 0.0)
    assert stored.total_macs == sum(value.macs for value in tiny.values.values())
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = tiny.graph(image).numpy()
    # FP16 has 11 bits, and the boxes of this model reach 20.
    tolerance = 1e-4 if precision == "fp32" else 0.05
    np.testing.assert_allclose(OpenVINORunner(path, 1, exact=True)(image.numpy())[0], expected, atol=tolerance)


def test_half_precision_halves_the_weights(tiny: Program, tmp_path: Path) -> None:
    stored = {}
    for precision in ("fp32", "fp16"):
        path = tmp_path / precision
        OpenVINOBackend().lower(lowering(tiny, precision), path)
        stored[precision] = contents(path)["model.bin"]
    weight = tiny.graph.parameter("neck.weight").numpy()
    assert weight.tobytes() in stored["fp32"]
    assert weight.tobytes() not in stored["fp16"]
    assert weight.astype(np.float16).tobytes() in stored["fp16"]


def changed(folder: Path, into: Path, old: bytes, new: bytes) -> Path:
    """A copy of a folder with some bytes of its constants exchanged."""
    into.mkdir()
    for name, content in contents(folder).items():
        if name == "model.bin":
            assert content.count(old) == 1
            content = content.replace(old, new)
        (into / name).write_bytes(content)
    return into


def test_a_changed_weight_is_found(tiny: Program, small: tuple[Path, QuantPlan], tmp_path: Path) -> None:
    integers = OpenVINOBackend().read(small[0]).tensors["neck.weight"].integers
    assert integers is not None
    other = integers.copy()
    other[2, 3] += 1 if other[2, 3] < 0 else -1
    path = changed(small[0], tmp_path / "changed", integers.tobytes(), other.tobytes())
    with pytest.raises(VerificationError, match=r"differs from the plan in neck\.weight: weights are [01]\.\d\d steps"):
        check_plan(tiny, small[1], OpenVINOBackend().read(path))


def test_a_changed_scale_is_found(tiny: Program, small: tuple[Path, QuantPlan], tmp_path: Path) -> None:
    scales = np.array(small[1].tensors["neck.weight"].scale, np.float32)
    path = changed(small[0], tmp_path / "changed", scales.tobytes(), (scales * np.float32(1.001)).tobytes())
    with pytest.raises(VerificationError, match=r"differs from the plan in neck\.weight: scale"):
        check_plan(tiny, small[1], OpenVINOBackend().read(path))


@pytest.mark.parametrize(
    ("change", "found"),
    [({"scale": (0.01,)}, "scale"), ({"zero_point": (3,)}, "zero point"), ({"dtype": "int8"}, "uint8 instead of int8")],
)
def test_a_folder_of_another_plan_is_refused(
    tiny: Program, small: tuple[Path, QuantPlan], change: dict[str, Any], found: str
) -> None:
    path, plan = small
    other = replace(plan, tensors={**plan.tensors, "left_mul": replace(plan.tensors["left_mul"], **change)})
    with pytest.raises(VerificationError, match=f"the file differs from the plan in left_mul: {found}"):
        check_plan(tiny, other, OpenVINOBackend().read(path))


def test_equal_inputs_give_equal_folders(tiny: Program, small: tuple[Path, QuantPlan], tmp_path: Path) -> None:
    afresh = replace(tiny)  # keeps no export: that must be repeatable, not only what is done with it
    OpenVINOBackend().lower(lowering(afresh, "int8", small[1]), tmp_path / "again_openvino_model")
    assert contents(tmp_path / "again_openvino_model") == contents(small[0])


def test_nothing_of_this_machine_is_in_the_folder(small: tuple[Path, QuantPlan]) -> None:
    for name, content in contents(small[0]).items():
        for trace in (str(Path(__file__).resolve().parents[1]).encode(), b"/tmp", b"/home", b".py", b"Traceback"):
            assert trace not in content, (name, trace)


def test_a_folder_written_twice_is_replaced(tiny: Program, small: tuple[Path, QuantPlan], tmp_path: Path) -> None:
    path = tmp_path / "model_openvino_model"
    with write_whole(path) as temporary:
        OpenVINOBackend().lower(lowering(tiny, "fp32"), temporary)
    (path / "stale.txt").write_text("of the first run")
    with write_whole(path) as temporary:
        OpenVINOBackend().lower(lowering(tiny, "int8", small[1]), temporary)
    assert set(contents(path)) == {"model.xml", "model.bin", "metadata.yaml"}
    assert contents(path)["model.bin"] == contents(small[0])["model.bin"]
    assert contents(path)["metadata.yaml"] == contents(small[0])["metadata.yaml"]
    assert contents(path)["metadata.yaml"].startswith(b"precision: int8\nend2end: true\n")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_folder_is_described_by_its_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "a_openvino_model"
    folder.mkdir()
    for name, text in (("model.xml", "second"), ("metadata.yaml", "first,"), ("z", "third")):
        (folder / name).write_text(text)
    artifact = describe_artifact(folder, "openvino", "int8")
    assert (artifact.path, artifact.format, artifact.precision) == (folder, "openvino", "int8")
    assert artifact.bytes == len("first,secondthird")
    assert artifact.sha256 == hashlib.sha256(b"first,secondthird").hexdigest()


def test_a_model_that_is_not_one_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("<net>")
    with pytest.raises(ConversionError, match="OpenVINO cannot compile the model"):
        OpenVINORunner(tmp_path, 1)


@pytest.mark.slow
def test_the_folder_holds_its_plan_and_runs_in_integers(demo_program: Program, lowered: Lowered) -> None:
    assert check_plan(demo_program, lowered.plan, lowered.stored) == quantised(lowered.plan)
    assert lowered.stored.stored_coverage == pytest.approx(planned_share(demo_program, lowered.plan), abs=1e-9)
    assert lowered.stored.coverage > 0.99  # all but two depthwise layers on maps of 3 by 3, on some CPUs
    assert lowered.stored.total_macs == sum(value.macs for value in demo_program.values.values())
    check_coverage(demo_program, lowered.plan, lowered.stored)
    convolutions = {v.name for v in demo_program.values.values() if v.weight and v.name in lowered.plan.integer}
    assert len(convolutions) == 99  # all but the raw boxes
    macs = sum(value.macs for value in demo_program.values.values() if value.name in convolutions)
    assert lowered.stored.integer_macs == macs


@pytest.mark.slow
def test_the_runtime_agrees_with_the_simulation_on_real_images(demo_program: Program, lowered: Lowered) -> None:
    runner = OpenVINOBackend().runner(lowered.path, 2)
    inputs = sample_inputs(demo_images("val", 4), demo_program)
    found = verify(demo_program, lowered.plan, lowered.stored, runner, inputs)
    assert (found.tensors, found.unnamed, found.images) == (quantised(lowered.plan), 0, 4)
    assert found.agreement is not None
    assert found.coverage == lowered.stored.coverage
    # A run changes neither its input nor an earlier result.
    before = inputs[0].copy()
    first = runner(inputs[0])[0]
    kept = first.copy()
    runner(inputs[1])[0]
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(inputs[0], before)


@pytest.mark.slow
def test_metadata_are_what_ultralytics_reads(lowered: Lowered) -> None:
    from ultralytics.nn.backends.base import BaseBackend

    read = BaseBackend.read_metadata(lowered.path)
    assert read == lowered.metadata
    assert read["names"] == demo_checkpoint().names
    assert (read["imgsz"], read["stride"], read["task"], read["batch"]) == ([96, 96], 32, "detect", 1)
    assert (read["end2end"], read["dynamic"], read["channels"]) == (True, False, 3)


@pytest.mark.slow
def test_ultralytics_predicts_with_the_folder(lowered: Lowered) -> None:
    from ultralytics.engine.results import Results
    from ultralytics.models import YOLO

    rows = OpenVINORunner(lowered.path, 1)(demo_image(SMALL, CLEAR).numpy())[0][0]
    rows = rows[rows[:, 4] >= 0.25]
    assert len(rows) >= 1
    (result,) = YOLO(str(lowered.path), task="detect").predict(
        demo_images("val", CLEAR + 1)[CLEAR], imgsz=SMALL, conf=0.25, verbose=False, device="cpu"
    )
    assert isinstance(result, Results)
    assert result.names == demo_checkpoint().names
    assert result.boxes is not None
    np.testing.assert_allclose(result.boxes.conf.tolist(), rows[:, 4], atol=1e-3)
    assert result.boxes.cls.tolist() == rows[:, 5].tolist()
