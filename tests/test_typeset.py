"""How the page writes figures and names."""

from __future__ import annotations

from typing import Any

import pytest

from qexport.reporting.names import precision_name
from qexport.reporting.page.gallery import Label, place
from qexport.reporting.page.typeset import form_of, typeset


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("artifacts.0.bytes", 2_861_234, "2.86"),
        ("artifacts.0.accuracy.map_interval.1", 0.50431, "0.5043"),
        ("artifacts.0.accuracy.drop", -0.00004, "0.0000"),
        ("artifacts.0.accuracy.drop", -0.0021, "−0.0021"),
        ("artifacts.0.accuracy.retention", 0.98461, "98.5\u202f%"),
        ("artifacts.0.accuracy.confidence.p50", -0.0079, "−0.008"),
        ("artifacts.0.latency_ms.p50", 42.26, "42.3"),
        ("artifacts.0.speedup", 1.446, "1.45×"),
        ("artifacts.0.layers.3.macs", 5_529_600, "5,529,600"),
        ("artifacts.0.layers.3.scale", [0.1, 0.2], "2 values"),
        ("artifacts.0.device.memory.tensor arena", 4_961_000, "4.96"),
        ("seconds.lower_onnx_int8", 21.04, "21.0"),
        ("artifacts.0.speedup", None, "–"),
    ],
)
def test_figures_in_type(path: str, value: Any, shown: str) -> None:
    assert typeset(value, form_of(path)) == shown


def test_names_of_precisions_and_of_boxes() -> None:
    assert [precision_name(each) for each in ("int8", "int8-full", "w8a16")] == ["INT8", "INT8 full", "W8A16"]
    taken: list[Label] = []
    size = 28.0
    left = place("dog 0.30", (10, 200, 60, 260), 640, size, taken)
    assert (left.x, left.anchor) == (10, "start")
    right = place("dog 0.31", (600, 2, 639, 90), 640, size, taken)
    assert (right.x, right.anchor) == (639, "end")
    assert right.y > 2  # no room above
    below = place("dog 0.32", (30, 201, 60, 260), 640, size, taken)
    assert left.y + 0.95 * size <= below.y <= left.y + 2 * size
    assert taken == [left, right, below]
