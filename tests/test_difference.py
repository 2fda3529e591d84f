"""Rows of `qexport diff`: what is called equal was compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from qexport.inspection.difference import Row, are_equal, tensor_rows
from qexport.lowering.stored import StoredTensor

COUNT = 5


def quantised(scale: float = 0.5, channels: int = 1, weight: int | None = None) -> StoredTensor:
    integers = None if weight is None else np.full((2, 3), weight, np.int8)
    return StoredTensor("int8", (scale,) * channels, (0,) * channels, integers)


def graph(tensor: StoredTensor, **others: StoredTensor) -> Mapping[str, StoredTensor]:
    return {**{f"conv{number}.weight": tensor for number in range(COUNT)}, **others}


FLOAT = StoredTensor("float32", (), ())


def rows(a: Mapping[str, StoredTensor], b: Mapping[str, StoredTensor]) -> dict[str, Row]:
    return {row.what: row for row in tensor_rows(a, b)}


def test_weights_that_one_side_has_in_floats_are_not_equal() -> None:
    found = rows(graph(quantised(weight=3)), graph(FLOAT))
    assert not any("equal" in row.a for row in found.values())
    assert found["scales in one alone"] == Row("scales in one alone", False, "5 tensors", "–")
    precision = found["precision of tensors: 5 of 5"]
    assert (precision.a, precision.b) == ("int8", "float32")
    assert len(found) == 3, "one row says that B is in floats"
    assert not any("channel" in row.a + row.b for row in found.values())


def test_floats_have_no_rows_of_integers() -> None:
    found = rows(graph(FLOAT), graph(FLOAT))
    assert set(found) == {"named tensors", "precision of tensors"}
    assert are_equal(list(found.values()))


@pytest.mark.parametrize(
    ("other", "what", "a", "b"),
    [
        (quantised(weight=4), "weights in integers: 1 of 6", "last int8", "last int8"),
        (quantised(0.25, weight=3), "scales: 1 of 6", "last 0.5", "last 0.25"),
        (quantised(channels=2, weight=3), "scales: 1 of 6", "last of 1 channel", "last of 2 channels"),
        (FLOAT, "scales in one alone", "last", "–"),
        (FLOAT, "precision of tensors: 1 of 6", "last int8", "last float32"),
    ],
)
def test_what_differs_is_named_and_the_rest_is_equal(other: StoredTensor, what: str, a: str, b: str) -> None:
    same = quantised(weight=3)
    found = rows(graph(same, last=same), graph(same, last=other))
    assert found[what] == Row(what, False, a, b)
    equal = {name.split(":")[0] for name in ("precision of tensors", "scales", "weights in integers")}
    for name in equal - {what.split(":")[0]}:
        if name in found:
            assert found[name].a == f"equal in {COUNT + (name == 'precision of tensors' or other.scale != ())}"
