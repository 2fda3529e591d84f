"""A package of somebody else: its format, its range estimator and its pass, with nothing of it in qexport."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import DEMO
from guides import blocks, page

import qexport
from qexport import BackendInfo, Quantiser, Statistics
from qexport.calibration.statistics import BINS
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.passes import WeightPass, optimise
from qexport.optimisation.registry import weight_pass
from qexport.planning.arithmetic import INT8
from qexport.progress import Silent
from qexport.testing import check_backend
from qexport.testing.program import pictures, program

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tests" / "plugin_package"
METADATA = "Metadata-Version: 2.1\nName: qexport-archive\nVersion: 1.2\n"
QUICK = ("--imgsz", "64", "--calib-images", "4", "--no-latency", "--effort", "none")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what pip leaves of the package beside its code."""
    site = tmp_path_factory.mktemp("site")
    (site / "qexport_archive").symlink_to(PACKAGE / "qexport_archive")
    project, info = ConfigParser(), site / "qexport_archive-1.2.dist-info"
    info.mkdir()
    project.read(PACKAGE / "pyproject.toml")
    groups = {re.sub(r'project.entry-points."(.*)"', r"\1", name): name for name in project if "entry-points" in name}
    lines = [
        line
        for group, name in groups.items()
        for line in (f"[{group}]", *(f"{key} = {json.loads(value)}" for key, value in project[name].items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    (info / "METADATA").write_text(METADATA, encoding="utf-8")
    return site


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package in this process."""
    monkeypatch.syspath_prepend(str(site))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "qexport_archive"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def run(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The command line in a process of its own."""
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    folder = tmp_path_factory.mktemp("run")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT))), "OMP_NUM_THREADS": "1"}

    def started(*words: str) -> subprocess.CompletedProcess[str]:
        start = [sys.executable, "-m", "qexport", *words]
        return subprocess.run(start, capture_output=True, text=True, env=environment, cwd=folder)

    data = ("--data", str(DEMO / "shapes" / "shapes.yaml"), *QUICK, "--int8", "--format", "archive")
    given = (str(DEMO / "shapes26.pt"), *data, "--ranges", "three-sigma", "--option", "level=9", "--out", "out")
    done = started(*given, "--no-eval", "--report", "page.html")
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(qexport=started, out=folder / "out", said=done)


def test_its_file_is_written_by_its_own_plan_and_reported(run: Any) -> None:
    assert (run.out / "shapes26_int8.qzip").is_file()
    report = json.loads((run.out / "report.json").read_text())
    (artifact,) = report["artifacts"]
    assert (artifact["format"], artifact["runtime"]) == ("archive", "ONNX Runtime, nothing fused")
    assert artifact["verification"]["unnamed"] == 0
    assert report["environment"]["packages"]["qexport-archive"] == "1.2"
    tensors = json.loads((run.out / "plan.json").read_text())["tensors"].values()
    assert sum(each["why"].startswith("three-sigma") for each in tensors) > 50
    assert not any(each["why"].startswith("percentile") for each in tensors)
    assert "Archive INT8" in (run.out.parent / "page.html").read_text()


def test_its_file_is_verified_like_others(run: Any) -> None:
    verified = run.qexport("verify", "out/shapes26_int8.qzip")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "tensors as planned" in verified.stdout


def test_qexport_lists_it_and_holds_nothing_of_it(run: Any) -> None:
    assert "archive: fp32, int8\n" in run.qexport("formats").stdout
    wrong = run.qexport(str(DEMO / "shapes26.pt"), "--format", "archive", "--no-eval", "--option", "level=11")
    assert wrong.returncode == 2
    assert "option level cannot be 11" in wrong.stderr
    names = re.compile(r"qexport_archive|ArchiveBackend|three[-_]sigma")
    assert not [path for path in (ROOT / "qexport").rglob("*.py") if names.search(path.read_text(encoding="utf-8"))]


def test_its_backend_keeps_its_promises(installed: None) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    from qexport.backends.registry import find_backend

    check_backend(find_backend("archive"))


def outcome_of(each: WeightPass, folder: Path) -> Any:
    """What becomes of a pass on the small detector, planned with the package's estimator."""
    made_of, images = program(), pictures(folder, 8)
    table = qexport.calibrate(made_of, images)
    plan = qexport.plan(made_of, table, qexport.make_target("archive", "int8"), ranges="three-sigma")
    assert plan
    before = Candidate(made_of, plan, made_of)
    after, (record,) = optimise(before, [each], images, Silent())
    assert after == before
    return record


def test_its_pass_is_found_and_reverted_as_it_improves_nothing(installed: None, tmp_path: Path) -> None:
    record = outcome_of(weight_pass("idle"), tmp_path)
    assert (record.name, record.kept, record.images) == ("idle", False, 4)
    assert record.before == record.after is not None
    assert record.reason.startswith("reverted")


def test_the_recipes_in_the_documentation_run(installed: None, tmp_path: Path) -> None:
    text = page("plugins.md")
    code: dict[str, Any] = {}
    for block in blocks(text, "python"):
        exec(block, code)
    assert outcome_of(code["Idle"](), tmp_path).reason.startswith("reverted")
    assert isinstance(code["ArchiveBackend"].info, BackendInfo)
    entry = r'"(qexport\.\w+)"\]\n([\w-]+) = "(.*)"'
    assert re.findall(entry, text) == re.findall(entry, (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")) != []
    # By hand: 97 zeros, and 3 of four: mean 0.12, deviation 0.68.
    counts = np.zeros(BINS, np.int64)
    counts[BINS // 2], counts[-1] = 97, 3
    low, high = code["three_sigma"](Statistics(0.0, 4.0, 4.0, counts), Quantiser(INT8))
    assert (low, high) == (0.0, pytest.approx(0.12 + 3 * 0.6824, abs=0.005))
