"""Plans as files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import synthetic_statistics

from qexport.errors import InputError
from qexport.planning.plan import QuantPlan, TensorQuant, check_plan, load_plan, to_json
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, OPENVINO, TENSORRT, TFLITE, WEIGHTS, for_saturating_cpus
from qexport.programs.program import Program

PLAN = QuantPlan(
    "tflite",
    "abc",
    frozenset({"a"}),
    {
        "w": TensorQuant("int8", (0.5, 0.25), (0, 0), 0, why="weights"),
        "a": TensorQuant("int8", (0.1,), (-128,), group="a", why="percentile: [0, 25.5]", rule="shared"),
        "b": TensorQuant("float32", why="between float operations"),
    },
)


def saved(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_plan_comes_back_as_it_was_saved(tmp_path: Path, tiny: Program) -> None:
    for plan in (PLAN, make_plan(tiny, synthetic_statistics(tiny.values), TFLITE)):
        again = load_plan(saved(tmp_path / "plan.json", to_json(plan)))
        assert again == plan
        assert list(again.tensors) == list(plan.tensors)
        assert again.fingerprint == plan.fingerprint


def test_the_file_is_json_with_one_tensor_a_line() -> None:
    content = json.loads(to_json(PLAN))
    assert content == {
        "schema": 2,
        "profile": "tflite",
        "program": "abc",
        "tensors": {
            "w": {
                "integer": False,
                "dtype": "int8",
                "scale": [0.5, 0.25],
                "zero_point": [0, 0],
                "axis": 0,
                "why": "weights",
            },
            "a": {
                "integer": True,
                "dtype": "int8",
                "scale": [0.1],
                "zero_point": [-128],
                "group": "a",
                "why": "percentile: [0, 25.5]",
                "rule": "shared",
            },
            "b": {"integer": False, "dtype": "float32", "why": "between float operations"},
        },
    }
    lines = to_json(PLAN).splitlines()
    assert [sum(f'"{name}": ' in line for line in lines) for name in ("w", "a", "b")] == [1, 1, 1]


SCHEMA_1 = """{
  "schema": 1,
  "profile": "tflite",
  "program": "abc",
  "tensors": {
    "w": {"integer": false, "dtype": "int8", "scale": [0.5, 0.25], "zero_point": [0, 0], "axis": 0, "why": "weights"},
    "a": {"integer": true, "dtype": "int8", "scale": [0.1], "zero_point": [-128], "group": "a", "why": "percentile: [0, 25.5]"},
    "b": {"integer": false, "dtype": "float32", "why": "between float operations"}
  }
}
"""  # noqa: E501
"""`PLAN` as version 1 of the schema has it."""


def test_the_fingerprint_is_that_of_schema_1(tmp_path: Path) -> None:
    """It stands in files that were written before there were rules."""
    assert PLAN.fingerprint == hashlib.sha256(SCHEMA_1.encode()).hexdigest()
    moved = replace(PLAN, tensors={**PLAN.tensors, "a": replace(PLAN.tensors["a"], rule="fixed")})
    assert moved.fingerprint == PLAN.fingerprint
    assert load_plan(saved(tmp_path / "plan.json", SCHEMA_1)) == PLAN


def test_schema_1_gives_rules_away(tmp_path: Path, tiny: Program) -> None:
    for profile in (TFLITE, TENSORRT, for_saturating_cpus(ONNXRUNTIME)):
        plan = make_plan(tiny, synthetic_statistics(tiny.values), profile)
        assert load_plan(saved(tmp_path / "plan.json", to_json(plan, schema=1))) == plan


def test_float_and_unknown_values_are_not_quantised() -> None:
    assert [PLAN.is_quantised(name) for name in ("a", "w", "b", "missing")] == [True, True, False, False]


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAN.tensors["a"].dtype = "float32"  # type: ignore[misc]


def altered(**changes: Any) -> str:
    return json.dumps({**json.loads(to_json(PLAN)), **changes})


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        '"plan"',
        altered(tensors={"a": {"dtype": "int8"}}),  # does not say whether it runs in integers
        altered(tensors={"a": {"integer": True, "dtype": "int8", "colour": "red"}}),
        altered(tensors=[]),
        altered(tensors={"a": 5}),
        altered(tensors={"a": {"integer": "yes", "dtype": "int8"}}),
        altered(tensors={"a": {"integer": True, "dtype": "int8", "scale": ["wide"], "zero_point": [0]}}),
        altered(tensors={"a": {"integer": True, "dtype": "int8", "scale": [0.1], "zero_point": [0.5]}}),
    ],
)
def test_what_is_no_plan_is_named(tmp_path: Path, text: str) -> None:
    path = saved(tmp_path / "mine.json", text)
    with pytest.raises(InputError, match=r"mine\.json is not a quantisation plan"):
        load_plan(path)


def test_a_missing_plan_and_a_later_schema_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json is not a quantisation plan"):
        load_plan(tmp_path / "gone.json")
    with pytest.raises(InputError, match=r"has plan schema 3, this version reads 2"):
        load_plan(saved(tmp_path / "later.json", altered(schema=3)))


def edited(program: Program, path: Path, name: str, **changes: Any) -> QuantPlan:
    """The program's plan after somebody has changed a line of its file; a type of "" takes the line away."""
    content = json.loads(to_json(make_plan(program, synthetic_statistics(program.values), TFLITE)))
    content["tensors"].setdefault(name, {"integer": False, "dtype": "float32"})
    content["tensors"][name] |= changes
    content["tensors"] = {name: entry for name, entry in content["tensors"].items() if entry.get("dtype")}
    return load_plan(saved(path, json.dumps(content)))


def test_a_plan_of_ones_own_is_taken(tiny: Program, demo_program: Program, tmp_path: Path) -> None:
    for program in (tiny, demo_program):
        for profile in (TFLITE, ONNXRUNTIME, OPENVINO, TENSORRT, WEIGHTS):
            check_plan(make_plan(program, synthetic_statistics(program.values), profile), program, tmp_path)
    wider = edited(tiny, tmp_path / "mine.json", "deep_conv", group="", scale=[1], zero_point=[-3])
    check_plan(wider, tiny, tmp_path / "mine.json")
    assert wider.tensors["deep_conv"].scale == (1.0,)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("colour", {}, "decides colour, which the program does not have"),
        ("box_conv", {"dtype": ""}, "says nothing of box_conv"),
        ("box_conv", {"dtype": "int4"}, "box_conv has the type int4, and can have int8, uint8, int16, float32"),
        ("box.weight", {"dtype": "int16"}, "box.weight has the type int16, and can have int8, float32"),
        ("box_conv", {"scale": [0.0]}, "box_conv has a scale of 0.0"),
        ("box_conv", {"scale": [-1.0]}, "box_conv has a scale of -1.0"),
        ("box_conv", {"scale": [float("nan")]}, "box_conv has a scale of nan"),
        ("box_conv", {"scale": [float("inf")]}, "box_conv has a scale of inf"),
        ("box_conv", {"scale": []}, "box_conv has 0 scales and 1 zero points, and needs 1"),
        ("box.weight", {"scale": [0.1]}, "box.weight has 1 scales and 4 zero points, and needs 4"),
        ("box_conv", {"zero_point": [128]}, "box_conv has a zero point of 128, and can have -128 to 127"),
        ("box.weight", {"zero_point": [0, 0, 1, 0]}, "box.weight has a zero point of 1, and can have 0 to 0"),
        ("box.weight", {"axis": 1}, "box.weight has scales along axis 1, not 0"),
        ("box_conv", {"rule": "mine"}, "box_conv has the rule mine, and can have own, shared, fixed, derived"),
        ("program_cat", {"scale": [9.0]}, r"\w+ and stem_mul must share one scale \(group stem_mul\)"),
        (
            "box.weight",
            {"dtype": "float32", "scale": [], "zero_point": []},
            "box_conv is to run in integers, and its weight box.weight is float32",
        ),
        ("box.weight", {"integer": True}, "box.weight is to run in integers, and is no value"),
        ("decode_cat", {"integer": True}, "decode_cat is to run in integers, and is no part of the network's body"),
    ],
)
def test_an_edited_plan_is_refused_with_what_is_wrong(
    tiny: Program, tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    plan = edited(tiny, tmp_path / "mine.json", name, **changes)
    with pytest.raises(InputError, match=rf"mine\.json cannot be used: (it )?{message}.*: correct it"):
        check_plan(plan, tiny, tmp_path / "mine.json")


def test_a_plan_of_another_program_is_refused(tiny: Program, demo_program: Program, tmp_path: Path) -> None:
    plan = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE)
    with pytest.raises(InputError, match=r"mine\.json is a plan of another model, image size, batch or head"):
        check_plan(plan, demo_program, tmp_path / "mine.json")
