"""The verb `report`: where the page is written, and files that are no reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from page_reader import read_page
from sample_report import bare, sample_report

from qexport.cli.app import main


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return sample_report()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("hello", "cannot be read"),
        ("[]", "is not a report"),
        ('{"schema": 2}', "is not a report"),
        ("changed", "has schema 3"),
        ("cut", "is not a report"),
    ],
)
def test_what_is_not_a_report_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], report: dict[str, Any], content: str, said: str
) -> None:
    source = tmp_path / "report.json"
    made = {"changed": {**report, "schema": 3}, "cut": {**report, "artifacts": [{"path": "a"}]}}.get(content)
    source.write_text(json.dumps(made) if made else content, encoding="utf-8")
    assert main(["report", str(source)]) == 3
    output, errors = capfd.readouterr()
    assert output == ""
    (line,) = errors.splitlines()
    assert said in line
    assert str(source) in line
    assert not (tmp_path / "report.html").exists()


def test_the_verb_writes_beside_the_report_or_where_it_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], report: dict[str, Any]
) -> None:
    source = tmp_path / "report.json"
    source.write_text(json.dumps(bare(report)).replace("0.95312", "NaN"), encoding="utf-8")
    assert main(["report", str(source)]) == 0
    assert capfd.readouterr() == (f"wrote {tmp_path / 'report.html'}\n", "")
    assert main(["report", str(source), "--out", str(tmp_path / "other.html"), "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "other.html").read_bytes() == (tmp_path / "report.html").read_bytes()
    main_part = read_page((tmp_path / "other.html").read_text(encoding="utf-8")).all("main")[0]
    assert "nan" not in main_part.text.lower()
    before = source.read_bytes()
    assert main(["report", str(source), "--out", str(source)]) == 2
    assert main(["report", str(source), "--out", str(tmp_path / "none" / "page.html")]) == 3
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.html", "report.html", "report.json"]


def test_a_part_that_is_missing_is_named_and_leaves_nothing_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], report: dict[str, Any]
) -> None:
    source = tmp_path / "report.json"
    broken = bare(report)
    del broken["artifacts"][0]["accuracy"]["per_class"][0]["class"]
    source.write_text(json.dumps(broken), encoding="utf-8")
    assert main(["report", str(source)]) == 3
    assert "(its artifacts.0.accuracy.per_class.0.class)" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
