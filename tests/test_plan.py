"""Plans as files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from conftest import synthetic_statistics

from qexport.errors import InputError
from qexport.planning.plan import QuantPlan, TensorQuant, load_plan, to_json
from qexport.planning.planner import make_plan
from qexport.planning.profile import TFLITE
from qexport.programs.program import Program

PLAN = QuantPlan(
    "tflite",
    "abc",
    frozenset({"a"}),
    {
        "w": TensorQuant("int8", (0.5, 0.25), (0, 0), 0, why="weights"),
        "a": TensorQuant("int8", (0.1,), (-128,), group="a", why="percentile: [0, 25.5]"),
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
        "schema": 1,
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
            },
            "b": {"integer": False, "dtype": "float32", "why": "between float operations"},
        },
    }
    lines = to_json(PLAN).splitlines()
    assert [sum(f'"{name}": ' in line for line in lines) for name in ("w", "a", "b")] == [1, 1, 1]


def test_the_fingerprint_is_of_the_saved_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path / "plan.json", to_json(PLAN))
    assert PLAN.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


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
    ],
)
def test_what_is_no_plan_is_named(tmp_path: Path, text: str) -> None:
    path = saved(tmp_path / "mine.json", text)
    with pytest.raises(InputError, match=r"mine\.json is not a quantisation plan"):
        load_plan(path)


def test_a_missing_plan_and_a_later_schema_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json is not a quantisation plan"):
        load_plan(tmp_path / "gone.json")
    with pytest.raises(InputError, match=r"has plan schema 2, this version reads 1"):
        load_plan(saved(tmp_path / "later.json", altered(schema=2)))
