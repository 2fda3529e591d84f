"""The package that people copy: its format, range estimator, pass and rule, with nothing of it in qexport."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import DEMO, synthetic_statistics
from guides import DOCS, blocks, page

from qexport import BackendInfo
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.registry import weight_pass
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.testing.program import program

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "examples" / "plugin"
OWN_TESTS = PACKAGE / "tests" / "test_archive.py"
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

    gate = ("--rule", "min-integer-share=90%", "--optimise", "fitted-weights")
    data = ("--data", str(DEMO / "shapes" / "shapes.yaml"), *QUICK, "--int8", "--format", "archive")
    given = (str(DEMO / "shapes26.pt"), *data, "--ranges", "three-sigma", "--option", "level=9", "--out", "out")
    done = started(*given, *gate, "--no-eval", "--report", "page.html")
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
    listed = run.qexport("formats").stdout
    assert re.search(
        r"^archive: fp32, int8 \(qexport-archive 1\.2, .*\), a plug-in of qexport-archive 1\.2$", listed, re.M
    )
    for besides in ("range estimator three-sigma", "pass fitted-weights", "rule min-integer-share"):
        assert f"{besides}: a plug-in of qexport-archive 1.2\n" in listed
    wrong = run.qexport(str(DEMO / "shapes26.pt"), "--format", "archive", "--no-eval", "--option", "level=11")
    assert wrong.returncode == 2
    assert "option level cannot be 11" in wrong.stderr
    names = re.compile(r"qexport_archive|ArchiveBackend|three[-_]sigma|fitted[-_]weights|integer_share")
    assert not [path for path in (ROOT / "qexport").rglob("*.py") if names.search(path.read_text(encoding="utf-8"))]


def test_its_rule_has_judged_it(run: Any) -> None:
    report = json.loads((run.out / "report.json").read_text())
    (artifact,), (outcome,) = report["artifacts"], report["gate"]["rules"]
    share = f"{100 * artifact['int8_mac_coverage']:.1f}%"
    line = f"share of the arithmetic in integers {share} of shapes26_int8.qzip is at least 90.0%"
    assert (outcome["rule"], outcome["text"], outcome["passed"]) == ("min-integer-share", line, True)


def test_its_pass_was_tried_on_images_that_it_did_not_see(run: Any) -> None:
    (artifact,) = json.loads((run.out / "report.json").read_text())["artifacts"]
    (record,) = artifact["passes"]
    assert (record["name"], record["images"]) == ("fitted-weights", 2)
    assert record["before"] != record["after"]
    whys = [each["why"] for each in json.loads((run.out / "plan.json").read_text())["tensors"].values()]
    assert any(why.endswith("fitted-weights") for why in whys) == record["kept"]


@pytest.mark.parametrize("name", re.findall(r"^def (test_\w+)", OWN_TESTS.read_text(encoding="utf-8"), re.M))
def test_its_own_tests_pass(name: str, installed: None) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    runpy.run_path(str(OWN_TESTS))[name]()


def test_it_runs_on_no_plan_of_another_format(installed: None) -> None:
    made_of = program()
    plan = make_plan(made_of, synthetic_statistics(made_of.values), TFLITE)
    assert weight_pass("fitted-weights").requires(Candidate(made_of, plan, made_of)) == "it is for archives"


@pytest.mark.skipif(not DOCS.is_dir(), reason="a source distribution has no documents")
def test_the_page_shows_the_package(installed: None) -> None:
    text = page("plugins.md")
    *parts, outline, test = blocks(text, "python")
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((PACKAGE / "qexport_archive").glob("*.py")))
    assert [part for part in parts if part.strip() not in code] == []
    found: dict[str, Any] = {}
    exec(outline + test, found)
    assert isinstance(found["ArchiveBackend"].info, BackendInfo)
    entry = r'"(qexport\.\w+)"\]\n([\w-]+) = "(.*)"'
    assert re.findall(entry, text) == re.findall(entry, (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")) != []
