"""`--max-drop` with `--repair`: rounds of building and scoring against scores that are planted, and one whole run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import DEMO, demo_images
from test_sensitivity import IMAGES, chain
from trained import trained

from qexport.backends.artifact import Artifact
from qexport.backends.registry import find_backend
from qexport.calibration.calibrate import calibrate
from qexport.calibration.calibration_table import CalibrationTable
from qexport.errors import ConversionError
from qexport.job.options import make_job
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.candidate_file import load_candidate, save_candidate
from qexport.optimisation.float_sets import float_share
from qexport.pipeline import export
from qexport.planning.plan import QuantPlan, load_plan, save_plan
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.reporting.load import load_report
from qexport.steps.build import BuildRequest
from qexport.steps.model import read_model
from qexport.steps.plan import make_target, plan
from qexport.steps.repair import Score, lost_percent, repaired
from qexport.testing import FakeBackend, registered
from qexport.verification.result import ArtifactResult


class Workshop:
    """Builds nothing but plans, and scores them by what they keep in float."""

    def __init__(self, folder: Path, lost: Callable[[float], float | None]) -> None:
        self.program: Program = chain(300).candidate.program
        self.table: CalibrationTable = calibrate(self.program, IMAGES, lambda: None, 1)
        self.lost, self.shares = lost, list[float]()
        target = make_target("onnx", cpu="arm")
        self.request = BuildRequest(
            target, folder / "a.onnx", folder / "plan.json", tuple(IMAGES), "", table=self.table, images=tuple(IMAGES)
        )
        made = plan(self.program, self.table, target)
        assert made is not None
        self.plan, self.backend = made, find_backend("onnx")
        save_plan(made, self.request.plan_path)

    @property
    def first(self) -> ArtifactResult:
        artifact = Artifact(self.request.path, "onnx", "int8", "", 1)
        return ArtifactResult(artifact, self.backend, plan=self.request.plan_path)

    def build(self, asked: BuildRequest) -> ArtifactResult:
        if asked.candidate:
            candidate = load_candidate(asked.candidate, self.program)
            save_plan(candidate.plan, asked.plan_path)
        else:
            save_plan(asked.plan or self.plan, asked.plan_path)
        return self.first

    @property
    def written(self) -> QuantPlan:
        return load_plan(self.request.plan_path)

    def score(self, item: ArtifactResult) -> Score:
        self.shares.append(float_share(self.program, self.written))
        return Score(self.lost(self.shares[-1]), 10 + self.shares[-1])

    def repaired(self, max_drop: float, first: ArtifactResult | None = None) -> ArtifactResult:
        return repaired(self.request, first or self.first, self.program, max_drop, self.score, self.build, Silent())


def test_a_file_that_loses_little_stays(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, lambda _: 0.9)
    assert shop.repaired(1.0) == shop.first
    assert len(shop.shares) == 1


def test_more_is_kept_in_float_until_the_loss_is_small_enough(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, lambda share: 5.0 if share < 0.3 else 0.75)
    made = shop.repaired(1.0)
    record = made.repair
    assert record is not None
    assert record.met
    assert record.reason == "0.75 % of FP32's accuracy is lost, at most 1 %; it was 5.00 %"
    enough = [share for share in shop.shares if share >= 0.3]
    assert len(enough) > 1  # after the first there were files with less in float
    assert min(enough) == record.float_macs == float_share(shop.program, shop.written)
    assert [point.lost_percent for point in record.curve if point.chosen] == [0.75]
    built = [point for point in record.curve if point.lost_percent is not None]
    assert [(point.float_macs, point.latency_ms) for point in built] == [(s, 10 + s) for s in sorted(shop.shares)]
    floats = {name: why for name, why in record.floats.items() if not shop.written.is_quantised(name)}
    assert {shop.written.tensors[name].why for name in floats} == set(floats.values())
    assert all(why.startswith("float to meet --max-drop 1: ") for why in floats.values())
    assert not shop.written.integer & record.floats.keys()


def test_the_nearest_is_written_where_none_is_near_enough(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, lambda share: 3.0 if 0.1 < share < 0.2 else 5.0)
    record = shop.repaired(1.0).repair
    assert record is not None
    assert not record.met
    assert record.reason == "3.00 % of FP32's accuracy is lost, over 1 %; it was 5.00 %"
    assert 0.1 < float_share(shop.program, shop.written) < 0.2
    assert 0.4 < max(shop.shares) <= 0.5


def test_what_passes_have_changed_stays(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, lambda share: 5.0 if share < 0.1 else 0.5)
    bias = shop.program.graph.parameter("layers.1.bias") + 0.125
    changed = Candidate(shop.program, shop.plan, shop.program).with_parameters({"layers.1.bias": bias})
    save_candidate(changed, tmp_path / "candidate.npz")
    kept = list[Candidate]()
    build = shop.build

    def build_and_look(asked: BuildRequest) -> ArtifactResult:
        assert asked.candidate is not None
        kept.append(load_candidate(asked.candidate, shop.program))
        return build(asked)

    shop.build = build_and_look  # type: ignore[method-assign]
    record = shop.repaired(1.0, replace(shop.first, candidate=tmp_path / "candidate.npz")).repair
    assert record is not None
    assert record.met
    assert (kept[-1].program.graph.parameter("layers.1.bias") == bias).all()


def test_scales_that_were_learned_stay_and_need_no_table(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, lambda share: 5.0 if share < 0.1 else 0.5)
    profile = shop.request.target.profile
    assert profile is not None
    learned = trained(shop.program, shop.plan, profile)
    save_candidate(learned, tmp_path / "candidate.npz")
    save_plan(learned.plan, shop.request.plan_path)
    shop.request = replace(shop.request, learned=True, table=None)
    build = shop.build

    def build_and_look(asked: BuildRequest) -> ArtifactResult:
        assert asked.learned  # so that reports do not say of it that it was not used
        return build(asked)

    shop.build = build_and_look  # type: ignore[method-assign]
    record = shop.repaired(1.0, replace(shop.first, candidate=tmp_path / "candidate.npz")).repair
    assert record is not None
    assert record.met
    assert shop.written.integer < learned.plan.integer
    values = [name for name in shop.program.values if shop.written.is_quantised(name)]
    assert len(values) > 3
    assert all(shop.written.tensors[name].scale == learned.plan.tensors[name].scale for name in values)


def test_a_file_that_cannot_be_built_leaves_the_first(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, lambda _: 5.0)
    build, tries = shop.build, list[BuildRequest]()

    def fail_first(asked: BuildRequest) -> ArtifactResult:
        tries.append(asked)
        if len(tries) == 1:
            raise ConversionError("no")
        return build(asked)

    shop.build = fail_first  # type: ignore[method-assign]
    made = shop.repaired(1.0)
    assert len(tries) > 2  # the next ones were tried all the same
    assert tries[-1] == shop.request
    assert made.warnings == ("a plan with more in float was not written: no",)
    assert shop.written == shop.plan


def test_what_cannot_be_scored_is_not_repaired(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, lambda _: None)
    assert shop.repaired(1.0).warnings == ("not repaired: its loss could not be measured",)


@pytest.mark.parametrize(
    ("own", "exact", "percent"),
    [
        ((0.45, 0.9), (0.5, None), 10.0),
        ((0.45, 0.9), (0.0, None), None),
        ((float("nan"), 0.9), (float("nan"), None), 4.0),
        ((float("nan"), None), None, None),
    ],
)
def test_the_loss_is_of_map_and_of_fidelity_without_labels(own: Any, exact: Any, percent: float | None) -> None:
    made: Any = [
        SimpleNamespace(map=each[0], fidelity=each[1], fidelity_ceiling=0.9375) if each else None
        for each in (own, exact)
    ]
    assert lost_percent(*made) == (None if percent is None else pytest.approx(percent))


@pytest.mark.slow
def test_a_run_repairs_what_it_writes(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="needs the extra qexport[tflite]")
    for split, count in (("train", 2), ("val", 6)):
        lines = "\n".join(str(each) for each in demo_images(split, count))
        (tmp_path / f"{split}.txt").write_text(lines, encoding="utf-8")
    names = yaml.safe_load((DEMO / "shapes" / "shapes.yaml").read_text(encoding="utf-8"))["names"]
    data = tmp_path / "few.yaml"
    data.write_text(yaml.safe_dump({"path": str(tmp_path), "train": "train.txt", "val": "val.txt", "names": names}))
    options = {"model": str(DEMO / "shapes26.pt"), "data": str(data), "format": "fake", "int8": True, "imgsz": 64}
    asked_for = {"max_drop": 0.5, "repair": True, "effort": "none", "no_latency": True, "out": tmp_path / "out"}
    with registered(FakeBackend):
        job = make_job({**options, **asked_for})
        report = export(job)
        again = load_report(job.report_json)
    asked, exact = report.artifacts
    assert (asked.precision, exact.precision) == ("int8", "fp32")
    assert asked.repair is not None
    assert asked.accuracy is not None
    assert asked.accuracy.retention is not None
    assert report.gate is not None
    (chosen,) = (point for point in asked.repair.curve if point.chosen)
    assert chosen.lost_percent == pytest.approx(100 * (1 - asked.accuracy.retention), abs=2e-3)
    assert report.gate.passed == asked.repair.met
    assert max(point.lost_percent or 0 for point in asked.repair.curve) > 0
    assert asked.plan is not None
    program = read_model(DEMO / "shapes26.pt", imgsz=64).program
    assert float_share(program, load_plan(asked.plan)) == asked.repair.float_macs
    assert asked.verification is not None
    assert asked.verification.planned_coverage == pytest.approx(1 - asked.repair.float_macs)
    assert again == report
