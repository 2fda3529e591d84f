"""Every backend does what backends promise, and the check that says so notices where one does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qexport.backends.protocol import Runner
from qexport.backends.registry import available_formats, find_backend
from qexport.errors import MissingExtraError
from qexport.lowering.request import Lowering
from qexport.lowering.stored import StoredGraph
from qexport.testing import FakeBackend, check_backend

TRIED = {
    "tflite": ("int8", "int8-dynamic"),
    "edgetpu": (),
    "onnx": ("fp32", "int8"),
    "openvino": ("int8", "int8-dynamic"),
    "tensorrt": ("int8",),
}
"""Precisions of slow converters that are tried here; the others have tests of their own."""


@pytest.mark.parametrize("name", available_formats())
def test_a_backend_that_is_installed_keeps_its_promises(name: str) -> None:
    try:
        backend = find_backend(name)
    except MissingExtraError as error:
        pytest.skip(str(error))
    check_backend(backend, TRIED.get(name))


def test_the_fake_backend_keeps_its_promises() -> None:
    check_backend(FakeBackend())


class Dated(FakeBackend):
    """Puts into every file how many there were before."""

    def lower(self, request: Lowering, path: Path) -> None:
        number = str(len(list(path.parent.iterdir())))
        super().lower(replace(request, metadata={**request.metadata, "number": number}), path)


class Lenient(FakeBackend):
    """Writes whatever precision it is asked for."""

    def lower(self, request: Lowering, path: Path) -> None:
        super().lower(replace(request, target=replace(request.target, precision="fp32")), path)


class Coarse(FakeBackend):
    """Does not tell which integers are in a file."""

    def read(self, path: Path) -> StoredGraph:
        stored = super().read(path)
        return replace(stored, tensors={name: replace(each, integers=None) for name, each in stored.tensors.items()})


class Wilful(FakeBackend):
    """Stores everything in float, whatever the plan says."""

    def lower(self, request: Lowering, path: Path) -> None:
        super().lower(replace(request, plan=None), path)


class Inverted(FakeBackend):
    """Computes something else than the file says."""

    def runner(self, path: Path, threads: int) -> Runner:
        runner = super().runner(path, threads)
        return lambda batch: runner(1 - batch)


class Forgetful(FakeBackend):
    """Writes no metadata."""

    def lower(self, request: Lowering, path: Path) -> None:
        super().lower(replace(request, metadata={}), path)


class Narrow(FakeBackend):
    """Says that any number of images can be run at once, and computes the first."""

    def runner(self, path: Path, threads: int) -> Runner:
        runner = super().runner(path, threads)
        return lambda batch: runner(batch[:1])


@pytest.mark.parametrize(
    ("broken", "precision", "words"),
    [
        (Dated, "fp32", "equal requests give different files"),
        (Lenient, "fp32", "is not refused"),
        (Coarse, "int8", "other weights than the plan's would not be noticed"),
        (Inverted, "fp32", "away from the plan"),
        (Forgetful, "fp32", "does not give the metadata back"),
        (Narrow, "fp32", "three images at once"),
    ],
)
def test_a_broken_promise_is_named(broken: Callable[[], FakeBackend], precision: str, words: str) -> None:
    with pytest.raises(AssertionError, match=f"^fake.*{words}"):
        check_backend(broken(), [precision])


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_a_plan_that_is_not_obeyed_is_refused_as_in_a_run(precision: str) -> None:
    from qexport.errors import VerificationError

    with pytest.raises(VerificationError, match=r"missing|weights"):
        check_backend(Wilful(), [precision])
