"""What benchmarks keep, and the tables of the documentation: nothing is measured here."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
results = pytest.importorskip("results", reason="a source distribution has no benchmarks")
tables = pytest.importorskip("tables")
MODULES = {name: pytest.importorskip(name) for name in ("main_job", "precisions", "tasks", "accuracy")}
incumbent = pytest.importorskip("against_incumbent")
ablation = pytest.importorskip("ablation")
HELD = {"map": 0.44, "map_float": 0.45, "retention": 0.99, "fidelity": 0.98, "fidelity_interval": [0.95, 0.99]}

TABLE = tables.Table(
    name="small",
    about="two",
    command="make bench",
    date="2026-11-27",
    machine=tables.Machine("AMD EPYC", ("AVX2",), 2, 1),
    columns=(
        tables.Column("file"),
        tables.Column("fidelity", "{:.3f}"),
        tables.Column("95 % interval", "{:.2f} to {:.2f}"),
        tables.Column("kept", "{:.1%}"),
    ),
    rows=(("a|b", 0.95349, [0.9, 1], 0.5), ("c", None, None, 1)),
    bounds="fidelity 0.90",
    broken=(),
    versions={"torch": "2.13.0"},
)
SHOWN = r"""`make bench`, 2026-11-27, AMD EPYC (AVX2, no VNNI), 2 cores, 1 thread: two. Measured with torch 2.13.0.

| file | fidelity | 95 % interval | kept |
| --- | --- | --- | --- |
| a\|b | 0.953 | 0.90 to 1.00 | 50.0% |
| c | – | – | 100.0% |

All bounds are held: fidelity 0.90."""


def test_the_pages_show_what_is_kept() -> None:
    """Where this fails: `make tables`."""
    before = results.texts(tables.PAGES)
    after = tables.filled(before, results.read(results.KEPT))
    assert [tables.name_of(page) for page in before if before[page] != after[page]] == []


def test_each_table_that_is_kept_is_on_a_page_once() -> None:
    marked = [place.name for page, text in results.texts(tables.PAGES).items() for place in tables.places_of(text, "")]
    assert sorted(marked) == sorted([*results.read(results.KEPT), tables.OVERVIEW])


def test_the_file_is_what_would_be_written() -> None:
    assert results.dumped(results.read(results.KEPT)) == results.KEPT.read_text(encoding="utf-8")


def test_a_table_as_markdown() -> None:
    assert tables.markdown(TABLE) == SHOWN


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"broken": ("a: fidelity 0.80 is under 0.90",)},
            "**Bounds that are broken**: a: fidelity 0.80 is under 0.90.",
        ),
        ({"remarks": ("Done in 3 s.",)}, "- All bounds are held: fidelity 0.90.\n- Done in 3 s."),
        ({"others": 0.41}, "two. Other programs kept 0.41 cores busy. Measured with"),
        ({"machine": tables.Machine("Xeon", ("AVX2", "AMX-INT8"))}, "2026-11-27, Xeon (AVX2, AMX-INT8): two"),
        ({"machine": tables.Machine("Cortex-A76", ("dotprod",), 4)}, "Cortex-A76 (dotprod), 4 cores: two"),
    ],
)
def test_what_a_table_says_of_its_run(change: dict[str, Any], words: str) -> None:
    assert words in tables.markdown(replace(TABLE, **change))


def test_little_that_others_do_and_bounds_that_are_not_there_are_not_mentioned() -> None:
    shown = tables.markdown(replace(TABLE, others=0.04, broken=None))
    assert "Other programs" not in shown
    assert "ounds" not in shown


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Top\n\nBy hand.\n\n<!-- table: small -->\nold\n<!-- end -->\n\nAlso by hand.", encoding="utf-8")
    assert results.write_pages({"small": TABLE}, [page]) == [page]
    filled = f"# Top\n\nBy hand.\n\n<!-- table: small -->\n\n{SHOWN}\n\n<!-- end -->\n\nAlso by hand.\n"
    assert page.read_text(encoding="utf-8") == filled
    assert results.write_pages({"small": TABLE}, [page]) == []


def test_the_overview_has_the_newest_first_and_leads_to_each_table(tmp_path: Path) -> None:
    text = "<!-- table: overview -->\n<!-- end -->\n## Old one's\n<!-- table: old -->\n<!-- end -->\n"
    other = "# New, one\n<!-- table: new -->\n<!-- end -->\n"
    kept = {
        "old": replace(TABLE, name="old", date="2025-01-02", broken=("a",)),
        "new": replace(TABLE, name="new", broken=None),
    }
    pages = {tmp_path / "page.md": text, tmp_path / "other.md": other, tmp_path / "far" / "away.md": other}
    shown = tables.filled(pages, kept)[tmp_path / "page.md"].splitlines()
    machine = "AMD EPYC (AVX2, no VNNI), 2 cores, 1 thread"
    assert shown[4:6] == [
        f"| [New, one](other.md#new-one) | 2026-11-27 | {machine} | `make bench` | – |",
        f"| [Old one's](#old-ones) | 2025-01-02 | {machine} | `make bench` | broken |",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\n<!-- table: small -->\n", "page.md:2: <!-- table: small --> has no <!-- end -->: write it below"),
        ("<!-- end -->\n", "page.md:1: <!-- end --> without a beginning: write <!-- table: NAME --> before it"),
        (
            "<!-- table: small -->\n<!-- table: small -->\n<!-- end -->\n",
            "page.md:2: <!-- table: small --> inside <!-- table: small -->: write <!-- end --> before it",
        ),
        ("<!-- table: -->\n<!-- end -->\n", "page.md:1: a marker without a name: write <!-- table: NAME -->"),
        (
            "<!-- table: smal -->\n<!-- end -->\n",
            "page.md:1: no table is called smal: measure it first, known are overview, small",
        ),
    ],
)
def test_a_broken_mark_is_one_clear_error_and_no_page_is_written(tmp_path: Path, text: str, said: str) -> None:
    good, page = tmp_path / "good.md", tmp_path / "page.md"
    good.write_text("<!-- table: small -->\n<!-- end -->\n", encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as raised, results.clear_errors():
        results.write_pages({"small": TABLE}, [good, page])
    assert raised.value.code == f"{tmp_path}/{said}"
    assert good.read_text(encoding="utf-8") == "<!-- table: small -->\n<!-- end -->\n"


def test_a_table_takes_the_place_of_its_own_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "results.json"
    run = results.Run("make bench", path, (0.0, None))
    results.keep(run, TABLE, replace(TABLE, name="other"))
    results.keep(run, replace(TABLE, date="2026-12-01"))
    assert results.read(path) == {"small": replace(TABLE, date="2026-12-01"), "other": replace(TABLE, name="other")}
    assert [each.name for each in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no file of results"),
        ('{"schema": 1, "tables": {"a": {"name": "a"}}}', "(tables.a.about): mend or remove it"),
        ('{"schema": 2, "tables": {}}', "has schema 2, this is 1"),
    ],
)
def test_a_broken_file_ends_a_benchmark_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, said: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text(content, encoding="utf-8")
    started = fake_qexport(monkeypatch, tmp_path, "tasks", HELD)
    with pytest.raises(SystemExit) as raised:
        run(monkeypatch, "tasks", "--results", str(path))
    assert said in str(raised.value.code)
    assert path.read_text(encoding="utf-8") == content
    assert not started.exists()


ARTIFACT = {
    "bytes": 500_000,
    "int8_mac_coverage": 0.98,
    "latency_ms": {"p50": 10.0},
    "latency_float_ms": {"p50": 40.0},
    "accuracy": HELD,
}


def fake_qexport(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, accuracy: dict[str, Any]) -> Path:
    """A program that writes a report of all that it is asked for; returns the list of what it was started with."""
    entry = json.dumps({**ARTIFACT, "accuracy": accuracy})
    program, started = folder / "qexport", folder / "started.txt"
    program.write_text(
        f"""#!{sys.executable} -S
import json, os, sys
words = sys.argv[1:]
open({str(started)!r}, "a").write(" ".join(words) + "\\n")
if words[0] == "verify": sys.exit(0)
after = lambda name, other: words[words.index(name) + 1] if name in words else other
entry, out = json.loads('''{entry}'''), after("--out", "")
kinds = ["fp32", after("--precision", "int8")]
made = [dict(entry, format=f, precision=p, path="x", bytes=entry["bytes"] * (4 if p == "fp32" else 1))
        for f in after("--format", "").split(",") for p in kinds]
os.makedirs(out)
report = dict(artifacts=made, evaluation=dict(metrics=["mAP50-95"]), seconds={{"calibrate": 1}})
json.dump(report, open(out + "/report.json", "w"))
""",
        encoding="utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setattr({**MODULES, "against_incumbent": incumbent}[name], "QEXPORT", program)
    return started


def run(monkeypatch: pytest.MonkeyPatch, name: str, *words: str) -> int:
    """Run a benchmark as from a command line."""
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *words])
    code: int = {**MODULES, "against_incumbent": incumbent}[name].main()
    return code


CASES = {
    "main_job": (["--shared", "{shared}"], ["main-job"]),
    "precisions": (["int8-dynamic", "int8-full", "--shared", "{shared}"], ["precisions"]),
    "tasks": (["obb"], ["tasks"]),
    "accuracy": (
        ["--shared", "{shared}", "--models", "m"],
        ["accuracy-balanced", "accuracy-best", "accuracy-few-images", "accuracy-integer-only", "accuracy-tasks"],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fidelity", [0.985, 0.5])
def test_a_benchmark_keeps_what_it_has_measured_also_where_a_bound_is_broken(
    name: str, fidelity: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fidelity has bounds everywhere but among the tasks, where it is retention's turn to break."""
    accuracy = {**HELD, "fidelity": fidelity, "retention": 0.99 if fidelity > 0.9 else 0.9}
    fake_qexport(monkeypatch, tmp_path, name, accuracy)
    words, names = CASES[name]
    path = tmp_path / "results.json"
    given = [word.format(shared=tmp_path) for word in words]
    code = run(monkeypatch, name, *given, f"--results={path}")
    kept, printed = results.read(path), capsys.readouterr().out
    assert sorted(kept) == names
    assert code == (1 if fidelity < 0.9 else 0)
    for table in kept.values():
        assert bool(table.broken) == (fidelity < 0.9)
        assert tables.markdown(table) in printed
        assert [line for line in table.broken if f"BROKEN {line}" not in printed] == []
        assert [row for row in table.rows if fidelity not in row] == []
        assert {"qexport", "torch"} <= set(table.versions)
    short = " ".join(word for word in words if "shared" not in word)
    target = "make bench" if name == "main_job" else f"benchmarks/{name}.py {short}"
    assert {table.command for table in kept.values()} == {target}


def test_the_incumbent_stands_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qexport(monkeypatch, tmp_path, "against_incumbent", HELD)
    theirs: list[dict[str, Any]] = [
        {"model": "m", "tool": "ultralytics", "format": form, "precision": kind, "path": f"{form}-{kind}", "map": score}
        | {"fidelity": 0.9 if kind == "int8" else None}
        for form in ("onnx", "openvino")
        for kind, score in (("fp32", 0.4), ("int8", 0.3))
    ]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "ultralytics.json").write_text(json.dumps(theirs), encoding="utf-8")

    def timed(rows: list[Any], _: Path) -> None:
        for row in rows:
            row.ms = (1.0 if row.precision == "fp32" else 0.5) * (2 if row.tool == "ultralytics" else 1), 9.0

    monkeypatch.setattr(incumbent, "time_rows", timed)
    path = tmp_path / "results.json"
    words = ["m", "--keep", str(tmp_path), "--shared", str(tmp_path), "--results", str(path)]
    assert run(monkeypatch, "against_incumbent", *words) == 1
    kept = results.read(path)
    long, short = kept["against-incumbent"], kept["against-incumbent-short"]
    assert list(long.rows[0]) == ["m", "onnx", "qexport", 0.98, 0.44 / 0.44, [0.44, 0.44], 0.98, 4.75, 0.75, 0.75]
    assert [list(row) for row in short.rows] == [
        ["m", form, 0.98, 0.9, 1.0, pytest.approx(0.75), 0.75] for form in ("onnx", "openvino")
    ]
    assert long.broken == ("m onnx: INT8 / incumbent's 0.750 is over 0.400",)
    assert long.command == f"benchmarks/against_incumbent.py m --keep {tmp_path}"


def test_a_run_with_options_is_kept_only_where_results_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results.KEPT.read_bytes()
    fake_qexport(monkeypatch, tmp_path, "tasks", HELD)
    assert run(monkeypatch, "tasks", "obb") == 0
    assert "not kept, as options were given: --results FILE keeps it" in capsys.readouterr().out
    assert results.KEPT.read_bytes() == before


def test_a_run_without_options_writes_file_and_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, path = tmp_path / "page.md", tmp_path / "results.json"
    page.write_text("<!-- table: tasks -->\n<!-- end -->\n", encoding="utf-8")
    path.write_text(results.dumped({"tasks": replace(TABLE, name="tasks")}), encoding="utf-8")
    monkeypatch.setattr(results, "KEPT", path)
    monkeypatch.setattr(results, "PAGES", (page,))
    fake_qexport(monkeypatch, tmp_path, "tasks", HELD)
    assert run(monkeypatch, "tasks") == 0
    shown = page.read_text(encoding="utf-8").splitlines()
    assert shown[2].startswith("`make bench-tasks`, 20")
    assert "| segment | mAP50-95 | onnx int8 | 0.4500 → 0.4400 | 99.0% | 0.980 | 98.0% |" in shown


def test_gains_of_several_models_stand_side_by_side() -> None:
    row = ablation.Row
    found = {
        "m": [row("all", "auto", 0.2, 0.5, 0.07), row("none", "auto", 0.3, -0.1, 0.02)],
        "n": [row("all", "auto", 0.1, 0.25, 0.01), row("none", "auto", 0.4, 0.0, 0.03)],
    }
    assert list(ablation.side_by_side(found)) == [
        ["all", "auto", [0.5, 0.07], [0.25, 0.01]],
        ["none", "auto", [-0.1, 0.02], [0.0, 0.03]],
    ]
    assert tables.cell([-0.1, 0.02], tables.Column("m", ablation.GAIN)) == "-0.100 ± 0.020"
