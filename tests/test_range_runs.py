"""Runs with ranges that reckon with the outputs: what is measured, kept, read again and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEMO, demo_images

from qexport import pipeline
from qexport.calibration.calibrate import calibrate
from qexport.calibration.calibration_table import load_table
from qexport.job.options import make_job
from qexport.planning.plan import QuantPlan, load_plan
from qexport.planning.planner import make_plan
from qexport.programs.program import Program
from qexport.steps.model import read_model
from qexport.steps.plan import make_target, plan
from qexport.testing import FakeBackend, registered
from qexport.testing.fake import PROFILE

MODEL, DATA = DEMO / "shapes26.pt", DEMO / "shapes" / "shapes.yaml"
pytest.importorskip("torchao", reason="needs the extra qexport[tflite]")


def run(out: Path, **options: Any) -> Path:
    fixed = {"model": str(MODEL), "data": str(DATA), "format": "fake", "int8": True, "imgsz": 64, "calib_images": 4}
    with registered(FakeBackend):
        pipeline.export(
            make_job({**fixed, "no_eval": True, "no_latency": True, "effort": "none", "out": out, **options})
        )
    return out


@pytest.fixture(scope="module")
def auto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with `--ranges auto`."""
    return run(tmp_path_factory.mktemp("auto") / "out", ranges="auto")


def reasons(made: QuantPlan) -> list[str]:
    """Of activations whose ranges were chosen."""
    chosen = [each for each in made.tensors.values() if not each.is_float and each.rule in ("own", "shared")]
    return [each.why for each in chosen if each.axis is None]


def test_a_plan_says_whose_range_won_and_leaves_raw_outputs_their_rules(auto: Path) -> None:
    said = reasons(load_plan(auto / "plan.json"))
    assert any(why.startswith("auto (weighted-mse): [") for why in said)
    assert any(why.startswith("auto (weighted-mse) above SiLU's flat tail: [") for why in said)
    assert all(why.startswith(("auto (", "minmax")) for why in said)
    assert not any(why.startswith("auto:") for why in said)


def test_a_saved_table_gives_the_same_plan(auto: Path) -> None:
    program = read_model(MODEL, imgsz=64).program
    table = load_table(auto / "calibration.npz")
    assert sum(each.importance is not None for each in table.statistics.values()) > 50
    with registered(FakeBackend):
        assert plan(program, table, make_target("fake"), ranges="auto") == load_plan(auto / "plan.json")


def test_what_needs_no_importance_measures_none_and_sees_the_same(auto: Path, tmp_path: Path) -> None:
    plain = run(tmp_path / "out", ranges="average-minmax")
    with_importance, without = (load_table(folder / "calibration.npz").statistics for folder in (auto, plain))
    assert all(each.importance is None for each in without.values())
    assert {each.images for each in without.values()} == {4, 1}  # what a sigmoid gives is known without
    for name, each in without.items():
        assert (each.minimum, each.highest) == (with_importance[name].minimum, with_importance[name].highest)
        np.testing.assert_array_equal(each.counts, with_importance[name].counts)


def test_without_importance_a_plan_says_that_a_percentile_was_taken(tiny: Program) -> None:
    statistics = calibrate(tiny, demo_images("train", 2), lambda: None).statistics
    for method in ("weighted-mse", "auto"):
        said = reasons(make_plan(tiny, statistics, PROFILE, method))
        assert any(why.startswith(f"{method} (percentile): [") for why in said)
        assert all(why.startswith((f"{method} (percentile)", "minmax")) for why in said)
