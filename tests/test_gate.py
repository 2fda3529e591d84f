"""Rules of the gate on reports by hand, and what the command line makes of their bounds."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from refusals import DATA, FLOAT, INT8, MODEL, USAGE, Refusal
from reports import FEW, RESTLESS, accuracy, artifact, report

from qexport.errors import QexportError
from qexport.job.bounds import bounds_of
from qexport.job.options import make_job
from qexport.job.units import BOUNDS
from qexport.reporting.gate import RULES, accuracy_of, check
from qexport.reporting.rule import NumberFormat, Rule
from qexport.testing.registered import entry_point

NAMES = ("max-drop", "min-retention", "min-fidelity", "min-speedup", "max-size", "max-latency-ms")
MEASURED = {"model": "a.pt", "data": "a.yaml", "int8": True}


@pytest.mark.parametrize(
    ("rule", "held", "broken", "line"),
    [
        (
            "max-drop",
            1.0,
            0.99,
            "loss of mAP 1.00% (95 % interval -0.30% to 2.30%) of yolo26n_int8.onnx is over 0.99%",
        ),
        (
            "min-retention",
            0.99,
            0.991,
            "retention 99.00% (95 % interval 97.70% to 100.30%) of yolo26n_int8.onnx is under 99.10%",
        ),
        ("min-fidelity", 0.953, 0.96, "fidelity 0.953 of yolo26n_int8.onnx is under 0.960"),
        ("min-speedup", 1.5, 1.6, "speed-up 1.50× of yolo26n_int8.onnx is under 1.60×"),
        ("max-size", 2.86, 2.5, "size 2.86 MB of yolo26n_int8.onnx is over 2.50 MB"),
        ("max-latency-ms", 40.0, 39.9, "latency (p50) 40.0 ms of yolo26n_int8.onnx is over 39.9 ms"),
    ],
)
def test_a_bound_holds_up_to_the_figure_itself(rule: str, held: float, broken: float, line: str) -> None:
    (kept,) = check(report(), {rule: held}, "int8")
    assert kept.passed
    assert (" is at least " in kept.text) == rule.startswith("min")
    assert (" is at most " in kept.text) == rule.startswith("max")
    (failed,) = check(report(), {rule: broken}, "int8")
    assert not failed.passed
    assert (failed.rule, failed.artifact, failed.bound) == (rule, "yolo26n_int8.onnx", broken)
    assert failed.text == line


def test_every_rule_is_an_option_of_the_same_name() -> None:
    assert tuple(rule.name for rule in RULES) == NAMES
    assert set(bounds_of(make_job({**MEASURED, **dict.fromkeys(BOUNDS, "1")}))) == set(NAMES)


def test_without_rules_nothing_is_checked() -> None:
    assert check(report(), {}, "int8") == ()


def test_figures_without_interval_have_none() -> None:
    bare = report(artifact(accuracy=accuracy(retention_interval=None)))
    (found,) = check(bare, {"min-retention": 0.98}, "int8")
    assert (found.interval, found.text) == (None, "retention 99.00% of yolo26n_int8.onnx is at least 98.00%")


def test_a_figure_just_beside_its_bound_is_told_from_it() -> None:
    near = report(artifact(accuracy=accuracy(retention=0.97996, retention_interval=None)))
    (found,) = check(near, {"min-retention": 0.98}, "int8")
    assert found.text == "retention 97.996% of yolo26n_int8.onnx is under 98.000%"


def test_only_what_was_asked_for_is_checked() -> None:
    both = report(artifact(), artifact("fp32", bytes=9_800_000), artifact(format_="tflite", bytes=4_000_000))
    found = check(both, {"max-size": 3.0}, "int8")
    assert [(each.artifact, each.passed) for each in found] == [
        ("yolo26n_int8.onnx", True),
        ("yolo26n_int8.tflite", False),
    ]


def test_what_could_not_be_measured_does_not_pass() -> None:
    """A float model that finds nothing leaves no retention."""
    blind = report(artifact(accuracy=accuracy(retention=None, map_float=0.0, retention_interval=None)))
    (found,) = check(blind, {"min-retention": 0.5}, "int8")
    assert (found.passed, found.figure) == (False, None)
    assert found.text == "retention of yolo26n_int8.onnx could not be measured; at least 50.00%"


def test_what_labels_are_missing_for_says_so() -> None:
    bare = accuracy(map=None, map50=None, map_float=None, retention=None, retention_interval=None)
    evaluation = {"images": 100, "labelled": False}
    blind = report(
        artifact(accuracy={**bare, "fidelity_interval": [0.94, 0.96], "fidelity_ceiling": 0.995}), evaluation=evaluation
    )
    lost, kept, alike = check(blind, {"max-drop": 1.0, "min-retention": 0.5, "min-fidelity": 0.9}, "int8")
    said = "of yolo26n_int8.onnx could not be measured: the evaluation images have no labels"
    words = "loss of FP32's fidelity to itself, as there are no labels,"
    of_fidelity = f"{words} 4.22% (95 % interval 3.52% to 5.53%) of yolo26n_int8.onnx"
    assert (lost.passed, lost.text) == (False, f"{of_fidelity} is over 1.00%")
    assert (kept.passed, kept.text) == (False, f"retention {said}; at least 50.00%")
    assert alike.text == "fidelity 0.953 (95 % interval 0.940 to 0.960) of yolo26n_int8.onnx is at least 0.900"


def test_an_engine_is_timed_in_place_of_its_graph() -> None:
    graph = artifact(format_="tensorrt", latency_ms=None, latency_float_ms=None, speedup=None)
    engine = artifact(format_="tensorrt", path="out/yolo26n_int8.engine", engine=True, speedup=1.2)
    found = check(report(graph, engine), {"min-speedup": 1.5}, "int8")
    assert [(each.artifact, each.passed) for each in found] == [("yolo26n_int8.engine", False)]


@pytest.mark.parametrize(
    ("rule", "shown"),
    [("min-retention", FEW), ("max-drop", FEW), ("min-fidelity", FEW), ("max-latency-ms", RESTLESS), ("max-size", "")],
)
@pytest.mark.parametrize("bound", [0.01, 50.0])
def test_the_line_carries_the_warnings_of_its_figure(rule: str, shown: str, bound: float) -> None:
    (found,) = check(report(artifact(warnings=[FEW, RESTLESS])), {rule: bound}, "int8")
    assert [warning for warning in (FEW, RESTLESS) if warning in found.text] == ([shown] if shown else [])


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("min_retention", "0.97", 0.97),
        ("min_retention", "97%", 0.97),
        ("min_retention", " 97 %", 0.97),
        ("min_fidelity", 0.9, 0.9),
        ("max_drop", "2", 2.0),
        ("max_drop", "1.5%", 1.5),
        ("min_speedup", "1.3", 1.3),
        ("max_size", "3.2", 3.2),
        ("max_size", "3.2MB", 3.2),
        ("max_size", "900 kB", 0.9),
        ("max_size", "2MiB", 2.097152),
        ("max_latency_ms", 12, 12.0),
    ],
)
def test_bounds_with_and_without_units(field: str, value: Any, expected: float) -> None:
    assert getattr(make_job({**MEASURED, field: value}), field) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("--min-retention", "97", "a share such as 0.97, or a percentage such as 97%"),
        ("--min-fidelity", "-0.1", "a share such as 0.97"),
        ("--max-drop", "120", "a percentage of FP32's mAP, such as 2"),
        ("--min-speedup", "0", "a factor such as 1.5"),
        ("--max-size", "3 bananas", "megabytes, or a size such as 900kB or 3MiB"),
        ("--max-latency-ms", "nan", "milliseconds"),
    ],
)
def test_a_bound_that_means_nothing_is_refused(option: str, value: str, wanted: str, refused: Refusal) -> None:
    message = refused(str(MODEL), "--int8", "--data", DATA, option, value, code=USAGE)
    assert message.startswith(f"{option} cannot be '{value}': give {wanted}")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((*INT8, "--data", DATA, "--min-retention", "0.9"), "--min-retention and --no-eval exclude each other"),
        ((*INT8, "--data", DATA, "--max-drop", "2"), "--max-drop and --no-eval exclude each other"),
        ((*INT8, "--data", DATA, "--min-speedup", "1"), "--min-speedup and --no-latency exclude each other"),
        ((*FLOAT, "--min-fidelity", "0.9"), "--min-fidelity compares with FP32, and that is what is asked for"),
        (
            (str(MODEL), "--format", "tensorrt", "--int8", "--no-build", "--data", DATA, "--max-latency-ms", "5"),
            "--max-latency-ms needs latency, which this run does not measure for tensorrt",
        ),
        (
            (str(MODEL), "--target", "mcu", "--data", DATA, "--max-latency-ms", "5"),
            "--max-latency-ms and --target mcu exclude each other",
        ),
    ],
)
def test_a_rule_about_what_is_not_measured_is_refused_at_once(
    words: tuple[str, ...], reason: str, refused: Refusal
) -> None:
    assert refused(*words, code=USAGE).startswith(reason)


def test_the_size_needs_no_measurement() -> None:
    assert make_job({"model": "a.pt", "no_eval": True, "no_latency": True, "max_size": "3"}).max_size == 3.0


def test_rules_of_a_config_file(tmp_path: Path) -> None:
    config = tmp_path / "gate.yaml"
    config.write_text("min-retention: 97%\nmax-size: 3MB\nmin_speedup: 1.2\n")
    job = make_job({**MEASURED, "min_speedup": "1.4"}, config)
    assert bounds_of(job) == {"min-retention": 0.97, "max-size": 3.0, "min-speedup": 1.4}


def test_outcomes_are_json() -> None:
    from dataclasses import asdict

    (found,) = check(report(), {"min-retention": 0.98}, "int8")
    content = json.loads(json.dumps(asdict(found)))
    assert set(content) == {"rule", "artifact", "figure", "interval", "bound", "passed", "text"}
    assert content["interval"] == [0.977, 1.003]


PLUGGED = Rule("min-odd", "oddness", "artifact", False, True, lambda each: each.bytes % 2, NumberFormat(1, "%", 100))
FAILING = Rule("min-odd", "oddness", "artifact", False, True, lambda each: 1 / 0, NumberFormat(1))
EARLIER = Rule("min-odd", "oddness", "accuracy", True, True, accuracy_of("fidelity"), NumberFormat(3))
OTHER_NAME = Rule("odd", "oddness", "artifact", False, True, lambda each: None, NumberFormat(1))


def plugged(name: str) -> AbstractContextManager[None]:
    return entry_point("qexport.rules", f"min-odd = test_gate:{name}", "odd-things")


def test_another_packages_rule_is_an_option_like_others() -> None:
    with plugged("PLUGGED"):
        bounds = bounds_of(make_job({**MEASURED, "rule": "min-odd=50%", "max_size": 3}))
        assert bounds == {"max-size": 3.0, "min-odd": 0.5}
        size, odd = check(report(artifact(bytes=1_000_001)), bounds, "int8")
        assert (size.rule, odd.rule, odd.figure, odd.passed) == ("max-size", "min-odd", 1.0, True)
        (even,) = check(report(artifact(bytes=1_000_000)), {"min-odd": 0.5}, "int8")
    assert (even.passed, even.text) == (False, "oddness 0.0% of yolo26n_int8.onnx is under 50.0%")


def test_another_packages_rule_that_fails_is_broken_and_no_other() -> None:
    with plugged("FAILING"):
        size, odd = check(report(artifact(bytes=1_000_000)), {"max-size": 3.0, "min-odd": 0.5}, "int8")
    assert (size.passed, odd.passed, odd.figure) == (True, False, None)
    why = "(ZeroDivisionError: division by zero)"
    assert odd.text == f"oddness of yolo26n_int8.onnx could not be measured {why}; at least 0.5"


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("PLUGGED", "min-odd=much", "--rule min-odd=much has no bound: give min-odd=NUMBER, or one with % behind it"),
        ("PLUGGED", "min-odd", "--rule min-odd has no bound: give min-odd=NUMBER"),
        ("PLUGGED", "min-odd=inf", "--rule min-odd=inf has no bound"),
        ("PLUGGED", "min-ood=1", "--rule min-ood is out of range: give min-odd; did you mean min-odd"),
        ("PLUGGED", "max-size=3MB", "--rule max-size=3MB has an option of its own: give --max-size 3MB"),
        ("EARLIER", "min-odd=1", "--rule min-odd and --no-eval exclude each other"),
        ("OTHER_NAME", "min-odd=1", r"min-odd in qexport.rules: .* is no Rule of this name: repair or uninstall its"),
    ],
)
def test_a_rule_that_is_none_or_has_no_bound_is_refused(name: str, given: str, line: str) -> None:
    with plugged(name), pytest.raises(QexportError, match=line):
        make_job({**MEASURED, "no_eval": True, "rule": given})


def test_a_rule_that_no_package_brings_is_refused() -> None:
    with pytest.raises(QexportError, match=r"^--rule min-odd is none: no package that is installed brings rules"):
        make_job({**MEASURED, "rule": "min-odd=1"})
