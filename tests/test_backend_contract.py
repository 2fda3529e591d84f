"""Every backend does what backends promise, and the check that says so notices where one does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from qexport.backends.info import check_precision
from qexport.backends.protocol import Runner
from qexport.backends.registry import available_formats, find_backend
from qexport.errors import MissingExtraError
from qexport.lowering.request import Lowering
from qexport.lowering.stored import StoredGraph
from qexport.testing import FakeBackend, check_backend

TRIED = {
    "tflite": ("int8", "int8-dynamic", "w8a16"),
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


class Lazy(FakeBackend):
    """Writes nothing."""

    def lower(self, request: Lowering, path: Path) -> None:
        check_precision(self.info, request.target.precision)


class Listing(FakeBackend):
    """Gives scales as lists."""

    def read(self, path: Path) -> StoredGraph:
        stored = super().read(path)
        listed: Any = {name: replace(each, scale=cast(Any, [*each.scale])) for name, each in stored.tensors.items()}
        return replace(stored, tensors=listed)


class Miscounting(FakeBackend):
    """Leaves out half of the arithmetic."""

    def read(self, path: Path) -> StoredGraph:
        stored = super().read(path)
        return replace(stored, total_macs=stored.total_macs // 2)


class Silent(FakeBackend):
    """Reads nothing."""

    def read(self, path: Path) -> StoredGraph:
        return cast(StoredGraph, None)


class Double(FakeBackend):
    """Gives outputs in another precision than asked for."""

    def runner(self, path: Path, threads: int) -> Runner:
        runner = super().runner(path, threads)
        return cast(Runner, lambda batch: tuple(each.astype(np.float64) for each in runner(batch)))


class Unplanned(FakeBackend):
    """Has a calibrated precision without rules for it."""

    info = replace(FakeBackend.info, profiles={})


@pytest.mark.parametrize(
    ("broken", "precision", "words"),
    [
        (Dated, "fp32", "equal requests give different files"),
        (Lenient, "fp32", "is not refused"),
        (Coarse, "int8", "other weights than the plan's would not be noticed"),
        (Inverted, "fp32", "away from the plan"),
        (Forgetful, "fp32", "does not give the metadata back"),
        (Narrow, "fp32", "three images at once"),
        (Wilful, "int8", "does not obey the plan.*missing"),
        (Wilful, "int8-dynamic", "does not obey the plan.*weights"),
        (Lazy, "fp32", "there is no file one_fp32.fake"),
        (Listing, "int8", "scale or zero point of .* is no tuple"),
        (Miscounting, "fp32", r"counts 73728 multiply-accumulates .* the program has 147456"),
        (Silent, "fp32", "read.. gives a NoneType, not a StoredGraph"),
        (Double, "fp32", "gives float64 where NumPy's float32 was to come"),
        (Unplanned, "fp32", "no profile for int8"),
    ],
)
def test_a_broken_promise_is_named(broken: Callable[[], FakeBackend], precision: str, words: str) -> None:
    with pytest.raises(AssertionError, match=f"^fake.*{words}"):
        check_backend(broken(), [precision])
