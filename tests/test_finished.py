"""What a run that was killed had finished is taken by the next one, and by no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import whole_run
from PIL import Image
from qexport.steps.finished import SUFFIX, build_once, forget_finished
from refusals import MODEL

from qexport import pipeline
from qexport.calibration import calibrate as calibration
from qexport.calibration.calibrate import calibrate, kept_table
from qexport.calibration.calibration_table import save_table
from qexport.cli.app import main
from qexport.programs.program import Program
from qexport.steps import finished
from qexport.steps.build import BuildRequest, Built
from qexport.steps.plan import make_target
from qexport.verification.likeness import Likeness
from qexport.verification.result import ArtifactResult


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, ...]:
    (tmp_path / "images").mkdir()
    paths = tuple(tmp_path / "images" / f"{number}.png" for number in range(4))
    for number, path in enumerate(paths):
        Image.new("RGB", (16, 16), (number, 50, 90)).save(path)
    return paths


class Builds:
    """Counts what is built; leaves an artifact, its plan, and all that may be known of it."""

    def __init__(self, folder: Path) -> None:
        self.count, self.folder = 0, folder

    def __call__(self, source: Any, request: BuildRequest, *, progress: Any) -> Built:
        self.count += 1
        request.path.write_bytes(b"artifact")
        request.plan_path.write_bytes(b"plan")
        (self.folder / "m.cc").write_bytes(b"array")
        made = whole_run.results()[0]
        assert made.fit
        artifact = replace(made.artifact, path=request.path)
        fit = replace(made.fit, files=(self.folder / "m.cc",))
        seen = Likeness(4, {"boxes": 30.5, "classes": None}, 0.9, 3, 4)
        return Built(replace(made, artifact=artifact, plan=request.plan_path, fit=fit, likeness=seen), {"lower": 1.0})


Make = Callable[..., ArtifactResult]


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    made = Builds(tmp_path)
    monkeypatch.setattr(finished, "build", made)
    return made


@pytest.fixture
def make(builds: Builds, tiny: Program, tmp_path: Path, images: tuple[Path, ...]) -> Make:
    """Build what is finished already or not; what differs is named."""
    table = calibrate(tiny, images, lambda: None)

    def once(model: str = "a" * 64, program: Program = tiny, **changes: Any) -> ArtifactResult:
        request = BuildRequest(
            make_target("tflite", "int8", "arm"), tmp_path / "m.tflite", tmp_path / "plan.json", images[:1], model
        )
        source: Any = SimpleNamespace(checkpoint=SimpleNamespace(fingerprint=model), program=program)
        return build_once(source, replace(request, **{"table": table, "images": images, **changes})).result

    return once


def test_what_is_finished_is_not_built_again(make: Make, builds: Builds, tmp_path: Path) -> None:
    first = make()
    again = make()
    assert builds.count == 1
    assert again == replace(first, backend=again.backend)
    assert type(again.backend) is type(first.backend)
    forget_finished(tmp_path)
    assert not list(tmp_path.glob(f"*{SUFFIX}"))
    make()
    assert builds.count == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "b" * 64},
        {"ranges": "minmax"},
        {"options": {"opset": 17}},
        {"passes": ("bias-correction",)},
        {"table": None},
        {"images": ()},
        {"threads": 1},
        {"target": make_target("tflite", "int8", "vnni")},
    ],
    ids=lambda changes: "".join(changes),
)
def test_another_request_is_built(make: Make, builds: Builds, changes: dict[str, Any]) -> None:
    make()
    make(**changes)
    assert builds.count == 2


def test_another_program_image_table_or_version_is_built(
    make: Make, builds: Builds, tiny: Program, images: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    make(program=replace(tiny, fingerprint="another"))
    make(table=calibrate(tiny, images[:3], lambda: None))
    Image.new("RGB", (16, 16), (200, 0, 0)).save(images[3])
    make()
    monkeypatch.setattr(finished, "__version__", "another")
    make()
    assert builds.count == 5


@pytest.mark.parametrize("name", ["m.tflite", "plan.json", "m.cc"])
def test_files_that_are_other_than_what_was_written_are_built(
    make: Make, builds: Builds, tmp_path: Path, name: str
) -> None:
    make()
    (tmp_path / name).write_bytes(b"edited")
    make()
    (tmp_path / name).unlink()
    make()
    assert builds.count == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": 1}', "null"])
def test_a_record_that_is_damaged_is_none(make: Make, builds: Builds, tmp_path: Path, content: str) -> None:
    make()
    record = tmp_path / f"m.tflite{SUFFIX}"
    whole = json.loads(record.read_text(encoding="utf-8"))
    record.write_text(content, encoding="utf-8")
    make()
    record.write_text(json.dumps({**whole, "result": {**whole["result"], "warnings": 3}}), encoding="utf-8")
    make()
    assert builds.count == 3


def test_the_calibration_of_an_earlier_run(
    tiny: Program, images: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calibration.npz"
    assert kept_table(path, tiny, images, weighted=True) is None
    made = calibrate(tiny, images, lambda: None, weighted=True)
    save_table(made, path)
    kept = kept_table(path, tiny, images, weighted=True)
    assert kept is not None
    assert (kept.image_names, kept.made_by) == (made.image_names, made.made_by)
    assert finished.identity_of_table(kept) == finished.identity_of_table(made)
    assert kept_table(path, tiny, images, weighted=False) is None
    assert kept_table(path, tiny, images[1:], weighted=True) is None
    assert kept_table(path, replace(tiny, fingerprint="other weights"), images, weighted=True) is None
    turned = replace(tiny, input=replace(tiny.input, form=replace(tiny.input.form, bgr=True)))
    assert kept_table(path, turned, images, weighted=True) is None
    with monkeypatch.context() as patch:
        patch.setattr(calibration, "__version__", "another")
        assert kept_table(path, tiny, images, weighted=True) is None
    Image.new("RGB", (16, 16), (200, 0, 0)).save(images[0])
    assert kept_table(path, tiny, images, weighted=True) is None


def test_a_run_that_ended_behind_its_artifacts_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [str(MODEL), "--format", "onnx", "--imgsz", "64", "--no-eval", "--no-latency", "--out", str(tmp_path)]

    def killed(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "measure_run", killed)
        with pytest.raises(SystemExit):
            main(words)
    artifact = (tmp_path / "shapes26_fp32.onnx").read_bytes()
    assert [path.name for path in tmp_path.glob("*.json")] == [f"shapes26_fp32.onnx{SUFFIX}"]
    capfd.readouterr()
    assert main(words) == 0
    assert "Taking shapes26_fp32.onnx of a run that was not finished" in capfd.readouterr().err
    assert (tmp_path / "shapes26_fp32.onnx").read_bytes() == artifact
    assert not list(tmp_path.glob(f"*{SUFFIX}"))
