"""One tree of errors, one line each, one exit code each."""

from __future__ import annotations

import inspect
import re

import pytest

from qexport import errors
from qexport.errors import QexportError


def classes() -> list[type[QexportError]]:
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return [kind for kind in found if issubclass(kind, QexportError)]


def test_exit_codes_are_those_of_the_documentation() -> None:
    documented = dict(re.findall(r"(\w+Error)\s+exit (\d)", errors.__doc__ or ""))
    assert {kind.__name__: str(kind.exit_code) for kind in classes()} == documented
    assert sorted(set(documented.values())) == ["1", "2", "3", "4", "5", "6", "7", "8", "9"]


@pytest.mark.parametrize("kind", classes())
def test_an_error_is_what_and_remedy(kind: type[QexportError]) -> None:
    error = kind("x.pt is broken", "give another")
    assert str(error) == "x.pt is broken: give another"
    assert (error.what, error.remedy) == ("x.pt is broken", "give another")
    assert str(kind("x.pt is broken")) == "x.pt is broken"
    assert isinstance(error, QexportError)
