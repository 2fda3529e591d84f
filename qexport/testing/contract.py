"""What every backend must do, third-party ones too; each rule that is broken is named."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qexport.backends.info import BackendInfo, options_from, profile_for, target_for
from qexport.backends.protocol import Backend, Runner
from qexport.errors import QexportError, UsageError, VerificationError
from qexport.lowering.request import Lowering, Target
from qexport.lowering.stored import StoredGraph
from qexport.system.machine import ANY, KINDS

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program

MAX_ERROR = {"fp32": 1e-3, "fp16": 2e-2}
"""Distance of what a runtime computes from what the plan says, relative to its length: rounding."""
MAX_INTEGER_ERROR = 0.1
"""The same of integers: kernels may round otherwise than the simulation, and one step is worth a hundredth."""
CALIBRATED = frozenset({"int8", "int8-full", "w8a16"})
"""Precisions whose activations are integers, by the rules of a profile."""
HALF_SCOPES = ("weights", "constants", "arithmetic")


def check_backend(backend: Backend, precisions: Iterable[str] | None = None) -> None:
    """Write a small detector in every precision, and hold the files to what backends promise.

    Equal requests give equal files. The plan is in the file, and is read back from it: another scale and another weight
    are noticed. Metadata come back. The runtime computes what the plan says, and any number of images where `dynamic`
    (in FP32).
    A precision that `info` does not list is refused without a file. Importing the backend imports no runtime.

    Args:
        precisions: those to try; None for all of `backend.info`.

    Raises:
        AssertionError: one of these does not hold; the text says which.
        QexportError: the backend raises it.
    """
    _check_info(backend)
    info = backend.info
    _check_import(backend)
    with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
        _check_refusal(backend, Path(scratch))
        tried = sorted(info.precisions if precisions is None else precisions)
        for precision in tried:
            _check_precision(_Case(backend, precision, Path(scratch)))
        if info.dynamic and "fp32" in tried:
            _check_dynamic(_Case(backend, "fp32", Path(scratch), dynamic=True))


@dataclass(frozen=True)
class _Case:
    backend: Backend
    precision: str
    folder: Path
    dynamic: bool = False

    def hold(self, good: bool, rule: str) -> None:
        """Raise `AssertionError` where a rule is broken."""
        if not good:
            raise AssertionError(f"{self.backend.info.name} {self.precision}: {rule}")

    def path(self, name: str) -> Path:
        """Where a file may be written."""
        return self.folder / f"{name}_{self.precision}{self.backend.info.suffix}"

    def request(self, program: Program, plan: QuantPlan | None) -> Lowering:
        """What the backend is asked for."""
        from qexport.testing.program import metadata

        info = self.backend.info
        target = target_for(info, self.precision)
        return Lowering(program, target, metadata(program, self.precision), plan, options_from(info, {}))


def _check_info(backend: Backend) -> None:
    name, info = type(backend).__name__, getattr(backend, "info", None)
    assert isinstance(info, BackendInfo), f"{name}: info is no BackendInfo"
    for method in ("lower", "read", "runner"):
        assert callable(getattr(backend, method, None)), f"{info.name}: {name} has no method {method}"
    for what in ("name", "title", "suffix", "runtime", "precisions"):
        assert getattr(info, what), f"{info.name}: info has no {what}"
    assert info.suffix[0] in "._", f"{info.name}: {info.suffix} does not set itself off from a name: begin with . or _"
    assert isinstance(info.precisions, Set), f"{info.name}: info.precisions is no set"
    assert info.half_scope in HALF_SCOPES, f"{info.name}: half_scope is none of {', '.join(HALF_SCOPES)}"
    assert info.profiles.keys() <= info.precisions, f"{info.name}: profiles of precisions that it does not list"
    without = CALIBRATED & info.precisions - info.profiles.keys()
    assert not without, f"{info.name}: no profile for {', '.join(sorted(without))}: nothing would become integers"
    for precision, kinds in info.profiles.items():
        assert ANY in kinds, f"{info.name} {precision}: no profile for a CPU of any kind"
        assert kinds.keys() <= {ANY, *KINDS}, f"{info.name} {precision}: a profile for a CPU that does not exist"


def _check_import(backend: Backend) -> None:
    slow = sorted({"torch", *backend.info.modules})
    code = f"import sys; import {type(backend).__module__}; print(*[m for m in {slow!r} if m in sys.modules])"
    start = f"sys.path[:] = {sys.path!r}; "
    done = subprocess.run([sys.executable, "-c", f"import sys; {start}{code}"], capture_output=True, text=True)
    assert done.returncode == 0, f"{backend.info.name}: its module cannot be imported: {done.stderr[-300:]}"
    assert not done.stdout.split(), f"{backend.info.name}: importing its module imports {done.stdout.strip()}"


def _check_refusal(backend: Backend, folder: Path) -> None:
    from qexport.testing.program import program

    path = folder / f"unknown{backend.info.suffix}"
    try:
        backend.lower(Lowering(program(), Target(backend.info.name, "int3"), {}), path)
    except UsageError:
        assert not path.exists(), f"{backend.info.name}: a precision that is refused leaves a file"
        return
    except QexportError as error:
        raise AssertionError(f"{backend.info.name}: an unknown precision is no UsageError") from error
    raise AssertionError(f"{backend.info.name}: a precision that info does not list is not refused")


def _check_precision(case: _Case) -> None:
    from qexport.testing.program import program

    made_of = program()
    plan = _planned(case, made_of)
    paths = [case.path(name) for name in ("one", "other")]
    for path in paths:
        case.backend.lower(case.request(made_of, plan), path)
        case.hold(path.exists(), f"lower() returns, and there is no file {path.name}")
    case.hold(_contents(paths[0]) == _contents(paths[1]), "equal requests give different files")
    stored = case.backend.read(paths[0])
    _check_stored(case, made_of, stored)
    if plan is not None:
        _check_plan(case, made_of, plan, stored)
    given = {key: str(value) for key, value in case.request(made_of, plan).metadata.items()}
    read = {key: str(stored.metadata.get(key)) for key in given}
    case.hold(given == read, "read() does not give the metadata back")
    _check_outputs(case, made_of, plan, case.backend.runner(paths[0], 1))


def _planned(case: _Case, program: Program) -> QuantPlan | None:
    from qexport.calibration.calibrate import calibrate
    from qexport.planning.planner import make_plan
    from qexport.planning.runtime_profiles import WEIGHTS
    from qexport.testing.program import pictures

    info = case.backend.info
    if case.precision in info.profiles:
        table = calibrate(program, pictures(case.folder), lambda: None)
        return make_plan(program, table.statistics, profile_for(info, case.precision, ANY), "minmax")
    if case.precision == "int8-dynamic":
        return make_plan(program, None, WEIGHTS, float_values=info.float_weights(program))
    return None


def _check_stored(case: _Case, program: Program, stored: StoredGraph) -> None:
    """What is read has the form that others rely on, and all of the arithmetic."""
    from qexport.verification.coverage import covers_the_same

    case.hold(isinstance(stored, StoredGraph), f"read() gives a {type(stored).__name__}, not a StoredGraph")
    for name, tensor in stored.tensors.items():
        numbers = tensor.scale, tensor.zero_point
        case.hold(
            all(isinstance(each, tuple) for each in numbers), f"read(): scale or zero point of {name} is no tuple"
        )
    total = sum(value.macs for value in program.values.values())
    case.hold(
        covers_the_same(stored.total_macs / total, 1.0),
        f"read() counts {stored.total_macs} multiply-accumulates (total_macs), the program has {total}",
    )


def _check_plan(case: _Case, program: Program, plan: QuantPlan, stored: StoredGraph) -> None:
    """The file holds the plan, and would not pass for one of another scale or of other weights."""
    from qexport.verification.constants import check_biases, check_weights
    from qexport.verification.coverage import check_coverage
    from qexport.verification.verify import check_plan

    def check(of: Program, by: QuantPlan) -> None:
        if by.integer:
            check_plan(of, by, stored)
            check_biases(of, by, stored)
            check_coverage(of, by, stored)
        else:
            check_weights(of, by, stored)

    try:
        check(program, plan)
    except VerificationError as error:
        rule = "lower() does not obey the plan, or read() says so"
        raise AssertionError(f"{case.backend.info.name} {case.precision}: {rule}: {error.what}") from error
    weight = next(value.weight for value in program.values.values() if plan.is_quantised(value.weight))
    wider = replace(plan.tensors[weight], scale=tuple(4 * scale for scale in plan.tensors[weight].scale))
    shifted = replace(plan, tensors={**plan.tensors, weight: wider})
    others: dict[str, tuple[Program, QuantPlan]] = {"other weights": (_negated(program, weight), plan)}
    if plan.integer:
        others["another scale of a weight"] = program, shifted
    for what, other in others.items():
        try:
            check(*other)
        except VerificationError:
            continue
        case.hold(False, f"{what} than the plan's would not be noticed: read() tells too little of {weight}")


def _negated(program: Program, weight: str) -> Program:
    """The program with one weight of the other sign."""
    return program.with_parameters({weight: -program.graph.parameter(weight)})


def _check_outputs(case: _Case, program: Program, plan: QuantPlan | None, runner: Runner) -> None:
    import torch

    from qexport.programs.program import every_output
    from qexport.simulation.simulate import simulation
    from qexport.testing.program import batches

    reference = simulation(program, plan) if plan else program.graph
    allowed = MAX_ERROR.get(case.precision, MAX_INTEGER_ERROR)
    for batch in batches():
        with torch.no_grad():
            expected = [each.numpy() for each in every_output(reference(torch.from_numpy(batch)))]
        actual = runner(batch)
        case.hold(isinstance(actual, tuple), "a runner does not give a tuple")
        kinds = [str(getattr(each, "dtype", type(each).__name__)) for each in actual if not _is_float32(each)]
        case.hold(not kinds, f"a runner gives {', '.join(kinds)} where NumPy's float32 was to come")
        shapes = [each.shape for each in actual], [each.shape for each in expected]
        case.hold(shapes[0] == shapes[1], f"a runner gives {shapes[0]} where {shapes[1]} was to come")
        for rows in (slice(4), slice(4, None)):  # boxes in pixels, then scores
            error = _distance(actual[0][:, rows], expected[0][:, rows])
            case.hold(error <= allowed, f"the runtime is {error:.3g} away from the plan, {allowed} is the most")


def _is_float32(output: object) -> bool:
    return isinstance(output, np.ndarray) and output.dtype == np.float32


def _distance(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def _check_dynamic(case: _Case) -> None:
    from qexport.testing.program import batches, program

    path = case.path("dynamic")
    case.backend.lower(case.request(program(dynamic=True), None), path)
    runner = case.backend.runner(path, 1)
    single = [runner(batch)[0] for batch in batches(3)]
    together = runner(np.concatenate(batches(3)))[0]
    case.hold(together.shape == (3, *single[0].shape[1:]), "three images at once give no three results")
    case.hold(np.allclose(together, np.concatenate(single), atol=1e-3), "images at once differ from one by one")


def _contents(path: Path) -> dict[str, bytes]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.name if file != path else "": file.read_bytes() for file in files}
