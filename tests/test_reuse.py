"""What an earlier run has made is taken by one that would make the same, and by no other."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache as remembered
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import whole_run
from conftest import DEMO
from PIL import Image
from refusals import MODEL

from qexport import opening, pipeline
from qexport.backends.artifact import describe_artifact
from qexport.calibration.calibrate import calibrate
from qexport.calibration.calibration_table import save_table
from qexport.cli.app import main
from qexport.clock import Clock
from qexport.data.dataset import fingerprint
from qexport.inspection.run_folder import manifests_in
from qexport.job import offload
from qexport.measurement import measure
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.programs.build import Source, read_source
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.steps import reuse
from qexport.steps.build import BuildRequest, Built
from qexport.steps.plan import make_target
from qexport.steps.reuse import (
    artifact_key,
    build_once,
    calibration_key,
    identity_of_table,
    keep_table,
    kept_table,
    open_cache,
)
from qexport.system.cache import Cache
from qexport.verification.likeness import Likeness
from qexport.verification.result import ArtifactResult


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, ...]:
    (tmp_path / "images").mkdir()
    paths = tuple(tmp_path / "images" / f"{number}.png" for number in range(4))
    for number, path in enumerate(paths):
        Image.new("RGB", (16, 16), (number, 50, 90)).save(path)
    return paths


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", {"torch": "2"})


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
        artifact = describe_artifact(request.path, "tflite", "int8")
        fit = replace(made.fit, files=(self.folder / "m.cc",))
        seen = Likeness(4, {"boxes": 30.5, "classes": None}, 0.9, 3, 4)
        return Built(replace(made, artifact=artifact, plan=request.plan_path, fit=fit, likeness=seen), {"lower": 1.0})


Make = Callable[..., ArtifactResult]


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    made = Builds(tmp_path)
    monkeypatch.setattr(reuse, "build", made)
    return made


@pytest.fixture
def make(builds: Builds, tiny: Program, tmp_path: Path, images: tuple[Path, ...], cache: Cache) -> Make:
    """Build what is finished already or not; what differs is named."""
    table = calibrate(tiny, images, lambda: None)

    def once(model: str = "a" * 64, program: Program = tiny, cache: Cache = cache, **changes: Any) -> ArtifactResult:
        request = BuildRequest(
            make_target("tflite", "int8", "arm"), tmp_path / "m.tflite", tmp_path / "plan.json", images[:1], model
        )
        source: Any = SimpleNamespace(checkpoint=SimpleNamespace(fingerprint=model), program=program)
        request = replace(request, **{"table": table, "images": images, **changes})
        return build_once(source, request, cache, artifact_key(cache, source, request, fingerprint)).result

    return once


def test_what_is_finished_is_not_built_again(make: Make, builds: Builds, tmp_path: Path) -> None:
    first = make()
    again = make()
    assert builds.count == 1
    assert again == replace(first, backend=again.backend, taken=again.taken)
    assert (first.taken, again.taken[:2]) == ("", "20")
    assert type(again.backend) is type(first.backend)


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
    make: Make, builds: Builds, tiny: Program, images: tuple[Path, ...], cache: Cache
) -> None:
    make()
    make(program=replace(tiny, fingerprint="another"))
    make(table=calibrate(tiny, images[:3], lambda: None))
    Image.new("RGB", (16, 16), (200, 0, 0)).save(images[3])
    make()
    make(cache=replace(cache, conditions={"torch": "3"}))
    make()
    assert builds.count == 5


def test_another_program_of_the_same_graph_is_built(make: Make, builds: Builds, tiny: Program) -> None:
    """A classifier's graph says neither how many images it takes, nor whether that is open."""
    make()
    for given in (replace(tiny.input, batch=4), replace(tiny.input, dynamic=True)):
        make(program=replace(tiny, input=given))
    make(program=replace(tiny, layout=replace(tiny.layout, max_detections=9)))
    assert builds.count == 4


def test_a_plan_with_another_rule_is_another_one(make: Make, builds: Builds) -> None:
    """Passes may change a scale that was estimated, and none that a kernel prescribes."""
    estimated = TensorQuant("int8", (0.5,), (0,))
    for tensor in (estimated, replace(estimated, rule="fixed"), estimated):
        make(plan=QuantPlan("p", "q", frozenset(), {"a": tensor}))
    assert builds.count == 2


def test_what_changes_while_it_is_built_is_not_kept(
    make: Make, builds: Builds, images: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is as it was before when the next run looks; or it is gone, which costs nobody the artifact."""
    before = images[3].read_bytes()

    def build(source: Any, request: BuildRequest, *, progress: Any) -> Built:
        Image.new("RGB", (16, 16), (200, 0, 0)).save(images[3])
        if builds.count:
            images[3].unlink()
        return builds(source, request, progress=progress)

    monkeypatch.setattr(reuse, "build", build)
    for _ in range(3):
        make()
        images[3].write_bytes(before)
    assert builds.count == 3


def test_the_calibration_of_images_that_change_meanwhile_is_not_kept(
    tiny: Program, images: tuple[Path, ...], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, made = images[3].read_bytes(), list[str]()

    def changed(*given: Any, **options: Any) -> Any:
        Image.new("RGB", (16, 16), (200, 0, 0)).save(images[3])
        made.append("table")
        return calibrate(*given, **options)

    monkeypatch.setattr(opening, "calibrate", changed)
    run: Any = SimpleNamespace(
        job=SimpleNamespace(views=False),
        source=SimpleNamespace(program=tiny),
        images=SimpleNamespace(calibration=images),
        clock=Clock(Silent()),
        cache=cache,
    )
    for _ in range(2):
        run.fingerprint = remembered(fingerprint)  # a run's own
        assert opening._calibrated_once(run, weighted=False)[1] == ""
        images[3].write_bytes(before)
    assert len(made) == 2


@pytest.mark.parametrize("name", ["m.tflite", "plan.json", "m.cc"])
def test_files_come_back_whatever_lies_in_their_place(make: Make, builds: Builds, tmp_path: Path, name: str) -> None:
    make()
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(b"edited")
    make()
    assert (tmp_path / name).read_bytes() == whole
    (tmp_path / name).unlink()
    make()
    assert (tmp_path / name).read_bytes() == whole
    assert builds.count == 1


def test_they_are_written_where_another_run_wants_them(make: Make, builds: Builds, tmp_path: Path) -> None:
    make()
    other = tmp_path / "other"
    other.mkdir()
    found = make(path=other / "m.tflite", plan_path=other / "plan_tflite.json", others=("onnx",))
    assert builds.count == 1
    assert (found.artifact.path, found.plan) == (other / "m.tflite", other / "plan_tflite.json")
    assert found.fit
    assert found.fit.files == (other / "m.cc",)
    assert sorted(path.name for path in other.iterdir()) == ["m.cc", "m.tflite", "plan_tflite.json"]
    make(path=tmp_path / "another_name.tflite")  # which a C array has in it
    assert builds.count == 2


def test_a_folder_of_files_comes_back(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(source: Any, request: BuildRequest, *, progress: Any) -> Built:
        request.path.mkdir()
        for name in ("model.xml", "model.bin"):
            (request.path / name).write_bytes(name.encode())
        artifact = describe_artifact(request.path, "openvino", "int8")
        return Built(replace(whole_run.results()[0], artifact=artifact, plan=None, fit=None), {})

    monkeypatch.setattr(reuse, "build", build)
    first = make(path=tmp_path / "m_openvino_model")
    (tmp_path / "there").mkdir()
    again = make(path=tmp_path / "there" / "m_openvino_model")
    assert again.taken
    assert again.artifact.sha256 == first.artifact.sha256
    assert (again.artifact.path / "model.bin").read_bytes() == b"model.bin"


@pytest.mark.parametrize("change", ["artifact", "plan", "result", "identity"])
def test_an_entry_that_somebody_has_changed_is_none(
    make: Make, builds: Builds, cache: Cache, tmp_path: Path, change: str
) -> None:
    """With checksums that are right, as nothing but a program can make them."""
    make()
    (entry,) = (cache.folder or tmp_path).iterdir()
    with zipfile.ZipFile(entry) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    finished = json.loads(files["finished.json"])
    if change in ("artifact", "plan"):
        files[change] = b"another"
    elif change == "result":
        finished["result"]["warnings"] = 3
    else:
        finished["result"]["artifact"]["sha256"] = "0" * 64
    with zipfile.ZipFile(entry, "w") as archive:
        for name, content in {**files, "finished.json": json.dumps(finished).encode()}.items():
            archive.writestr(name, content)
    make()
    assert builds.count == 2


def test_without_a_cache_everything_is_built(make: Make, builds: Builds) -> None:
    make(cache=Cache())
    make(cache=Cache())
    assert builds.count == 2


def test_the_calibration_of_an_earlier_run(
    tiny: Program, images: tuple[Path, ...], cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(
        program: Program = tiny, chosen: tuple[Path, ...] = images, weighted: bool = True, views: bool = True
    ) -> str:
        return calibration_key(cache, program, chosen, weighted, views, fingerprint)

    made, wanted = calibrate(tiny, images, lambda: None, weighted=True), key()
    assert kept_table(cache, wanted) is None
    keep_table(cache, wanted, made)
    kept = kept_table(cache, key())
    assert kept is not None
    assert (kept[0].image_names, kept[0].made_by) == (made.image_names, made.made_by)
    assert identity_of_table(kept[0]) == identity_of_table(made)
    save_table(made, tmp_path / "made.npz")
    save_table(kept[0], tmp_path / "kept.npz")
    assert (tmp_path / "made.npz").read_bytes() == (tmp_path / "kept.npz").read_bytes()
    turned = replace(tiny, input=replace(tiny.input, form=replace(tiny.input.form, bgr=True)))
    others = [
        key(weighted=False),
        key(views=False),
        key(chosen=images[1:]),
        key(replace(tiny, fingerprint="other weights")),
        key(turned),
    ]
    others.append(calibration_key(replace(cache, conditions={"torch": "0"}), tiny, images, True, True, fingerprint))
    images[0].rename(images[0].with_name("renamed.png"))
    others.append(key(chosen=(images[0].with_name("renamed.png"), *images[1:])))
    Image.new("RGB", (16, 16), (200, 0, 0)).save(images[0])
    others.append(key())
    assert not any(cache.holds(each) for each in others)


def test_a_run_that_ended_behind_its_artifacts_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whole runs of the demo model: the second one builds nothing, the third one, with a gate, measures nothing."""
    monkeypatch.setenv("QEXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "qexport.measurement.latency.WIDE_SPREAD", 1000
    )  # how restless this machine is matters not here
    monkeypatch.setattr(offload, "cores", lambda: 1)  # no second process, whose builds nothing here would see
    _read_once(monkeypatch)
    few = sorted((DEMO / "shapes" / "images" / "val").glob("*"))[:3]
    (tmp_path / "few.txt").write_text("\n".join(map(str, few)), encoding="utf-8")
    words = [str(MODEL), "--format", "onnx", "--int8", "--effort", "none", "--calib-images", "2", "--threads", "1"]
    words += ["--data", str(DEMO / "shapes" / "shapes.yaml"), "--eval-data", str(tmp_path / "few.txt"), "--imgsz", "64"]
    begun, first, second = (tmp_path / name for name in ("begun", "first", "second"))

    def ends(*_: Any, **__: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "measure_run", ends)
        with pytest.raises(SystemExit):
            main([*words, "--out", str(begun)])
    left = json.loads((begun / "report.json").read_text(encoding="utf-8"))
    assert [Path(each["path"]).name for each in left["artifacts"]] == ["shapes26_int8.onnx", "shapes26_fp32.onnx"]
    assert left["warnings"][-1] == "the run ended before everything was measured"
    assert {each["sha256"] for each in left["artifacts"]} == {
        manifest["sha256"] for manifest in manifests_in(begun).values()
    }
    monkeypatch.setattr(reuse, "build", ends)
    monkeypatch.setattr(opening, "calibrate", ends)
    capfd.readouterr()
    assert main([*words, "--out", str(first)]) == 0
    shown = capfd.readouterr()
    assert "Taking shapes26_fp32.onnx of the run of 20" in shown.err
    assert "taken from the cache: shapes26_fp32.onnx: file of 20" in " ".join(shown.out.split())
    monkeypatch.setattr(measure, "evaluate_shards", ends)
    monkeypatch.setattr(measure, "measure_latency", ends)
    assert main([*words, "--max-size", "1kB", "--out", str(second)]) == 9, capfd.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--no-cache", "--out", str(tmp_path / "third")])
    for name in ("shapes26_int8.onnx", "shapes26_fp32.onnx", "plan.json", "calibration.npz"):
        assert len({(folder / name).read_bytes() for folder in (begun, first, second)}) == 1, name
    assert (first / "samples.npz").read_bytes() == (second / "samples.npz").read_bytes()
    _compare(*(json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in (first, second)))


def _read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the runs of a test share the model that they read, for the time that it takes."""
    sources = list[Source]()

    def once(path: Path, options: CaptureOptions, check: Callable[[Any], None]) -> Source:
        if sources:
            check(sources[0].checkpoint)
        else:
            sources.append(read_source(path, options, check))
        return sources[0]

    monkeypatch.setattr(opening, "read_source", once)


def _compare(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Reports of a run that has measured and of one that has taken all of it."""
    assert one["calibration"] == other["calibration"]
    whens = [one["calibration"]["taken"], *(when for each in other["artifacts"] for when in each["taken"].values())]
    assert len(whens) == 7
    assert all(datetime.fromisoformat(each) <= datetime.now(UTC) for each in whens)
    for now, before in zip(other["artifacts"], one["artifacts"], strict=True):
        assert (set(before.pop("taken")), set(now.pop("taken"))) == ({"file"}, {"accuracy", "file", "latency"})
        before["path"] = before["path"].replace("first", "second")
        before["plan"] = before["plan"] and before["plan"].replace("first", "second")
        assert now == before


def test_other_packages_count_by_their_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in is edited where it lies while it is written."""
    monkeypatch.setenv("QEXPORT_CACHE", str(tmp_path / "cache"))
    package, info = tmp_path / "theirs_of_cache", tmp_path / "theirs_of_cache-1.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("raise SystemExit\n")  # nothing is imported
    (package / "ranges.py").write_text("one = 1\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs-of-cache\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[qexport.ranges]\ntheirs = theirs_of_cache.ranges:one\n")
    without = open_cache().conditions
    monkeypatch.syspath_prepend(str(tmp_path))
    before = open_cache().conditions
    assert before["packages"]["theirs-of-cache"] == "1"
    (package / "ranges.py").write_text("one = 2\n")
    after = open_cache().conditions
    assert len({json.dumps(each) for each in (without, before, after)}) == 3
    assert open_cache(wanted=False).folder is None
