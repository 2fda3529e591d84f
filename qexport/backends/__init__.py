"""The seam to runtimes: what a backend offers, and how one is found by name.

Built-in backends register under the same entry-point group as third-party ones, `qexport.backends`; only the one
that is asked for is imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qexport.errors import UsageError
from qexport.lowering.cpu import ANY
from qexport.lowering.device_fit import DeviceFit
from qexport.planning.profile import RuntimeProfile
from qexport.vocabulary import FORMAT_ALIASES, OTHER_FORMATS, closest, plain

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program

GROUP = "qexport.backends"


class Runner(Protocol):
    """A loaded artifact."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch (n, channels, height, width) in 0..1; return the decoded output, boxes in pixels."""
        ...

    def outputs(self, batch: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        """The same with every output: behind the decoded one the prototypes of masks, where there are any."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as read back from an artifact.

    Attributes:
        dtype: "int8", "float32", …
        scale, zero_point: as in `TensorQuant`; empty when the tensor is not quantised.
        integers: the values of a constant, in the program's layout, None for activations.
    """

    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    integers: NDArray[np.integer] | None = None


@dataclass(frozen=True)
class StoredGraph:
    """What an artifact says about itself.

    Attributes:
        tensors: by plan name; only those the file still names.
        integer_macs, total_macs: multiply-accumulates by the tensor types that the file says.
        operators: kernel name → how often it occurs.
        complete: the format keeps every name, so that a planned tensor that is not here is missing.
        arithmetic: type of arithmetic ("INT8", "BF16", "FP32", …) → multiply-accumulates that the runtime does in it on
            this machine, from the graph that it compiles the file to. Empty where that is not known here.
        needs: what the file needs to be run → the least version of it, such as "ONNX Runtime" → "1.14".
        biases: those that are stored as integers, by the name of the value that their kernel computes.
    """

    tensors: Mapping[str, StoredTensor]
    integer_macs: int
    total_macs: int
    operators: Mapping[str, int]
    complete: bool = False
    arithmetic: Mapping[str, int] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    biases: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def stored_coverage(self) -> float:
        """Share of the multiply-accumulates that the file has in integers, 0..1."""
        return self.integer_macs / self.total_macs if self.total_macs else 0.0

    @property
    def coverage(self) -> float:
        """Share of the multiply-accumulates that run in integer kernels, 0..1; the file's where nobody knows."""
        done = sum(count for kind, count in self.arithmetic.items() if kind.startswith("INT"))
        return done / self.total_macs if self.arithmetic and self.total_macs else self.stored_coverage


@dataclass(frozen=True)
class LowerOptions:
    """How a file is written, beside what is in it.

    Attributes:
        opset: ONNX operator set; None for the one that suits the runtime.
        io: type of what integer-only files take and give, "int8" or "uint8".
        float32: values whose operation stays FP32, weights included, where others are FP16.
        warn: takes what the report has to say of how the file was written.
    """

    opset: int | None = None
    io: str = "int8"
    float32: frozenset[str] = frozenset()
    warn: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built from a graph: see `qexport.backends.build_engine.Options`."""

    workspace: float | None = None
    timing_cache: Path | None = None
    most_images: int = 16
    likely_images: int = 1
    dla: int | None = None


@runtime_checkable
class EngineBuilder(Protocol):
    """A backend whose files are built into an engine for the machine, or the device, that they are for.

    Attributes:
        engine_suffix: what an engine's name ends with, behind the precision.
        engine_runtime: what runs an engine where it was built; "" if nothing does.
    """

    engine_suffix: str
    engine_runtime: str

    def write_script(self, folder: Path) -> None:
        """Write what builds the engine elsewhere."""
        ...

    def build(self, graph: Path, path: Path, metadata: Mapping[str, Any], options: EngineOptions) -> None:
        """Build the engine; raise `EngineNotBuiltError` where that cannot be done here."""
        ...


@runtime_checkable
class DeviceChecker(Protocol):
    """A backend for a device that is not here: its files are checked against what the device documents."""

    def fit(self, path: Path) -> DeviceFit:
        """Return what the device would make of the file."""
        ...


@runtime_checkable
class LowersFloats(Protocol):
    """A backend whose runtime computes floats in less than FP32 of its own accord where the CPU has it.

    FP32 files are what others are compared with, so its `runner`, `read` and `validation` keep those in FP32. Other
    files run as the runtime has them.
    """

    def by_default(self, path: Path, threads: int) -> tuple[str, Runner] | None:
        """The type that an FP32 file is computed in where nobody asks, and what runs it so; None where it is FP32."""
        ...


class Backend(Protocol):
    """One export format and the runtime that executes it.

    Attributes:
        suffix: what an artifact's name ends with.
        runtime: what `runner` runs artifacts with: interpreter and kernels.
        profiles: by precision, then by kind of CPU (`qexport.lowering.cpu`), "any" for those that are not listed.
        precisions: what it can be written as.
        dynamic: whether the number of images in a run can be left open.
        apart: whether writing it is slow and shares nothing with other formats, so that a second process may do it.
        timed: whether `runner` is the runtime that the artifact is for, so that its latency means something.
        half_scope: what FP16 files have in FP16: layers' "weights", all "constants", or the "arithmetic", too.
    """

    name: str
    suffix: str
    runtime: str
    profiles: Mapping[str, Mapping[str, RuntimeProfile]]
    precisions: frozenset[str]
    dynamic: bool
    apart: bool
    timed: bool
    half_scope: str

    def lower(
        self,
        program: Program,
        plan: QuantPlan | None,
        metadata: Mapping[str, Any],
        path: Path,
        options: LowerOptions = ...,
    ) -> None:
        """Write the artifact; with a plan obey it, without one write float. Raise `ConversionError` if it cannot.

        `metadata["precision"]` is one of `qexport.job.PRECISIONS`; "int8-dynamic" has a plan of nothing but weights.
        """
        ...

    def float_weights(self, program: Program) -> Mapping[str, str]:
        """Layers that keep float weights where all others' are INT8 ("int8-dynamic"), with the reason."""
        ...

    def read(self, path: Path) -> StoredGraph:
        """Read an artifact's tensor types and scales back from the file."""
        ...

    def runner(self, path: Path, threads: int) -> Runner:
        """Load an artifact for execution on the CPU."""
        ...

    def validation(self) -> AbstractContextManager[None]:
        """Conditions that Ultralytics' validator has to run the artifact under."""
        ...


@dataclass(frozen=True)
class Artifact:
    """A file that was written."""

    path: Path
    format: str
    precision: str
    sha256: str
    bytes: int


def describe_artifact(path: Path, format_name: str, precision: str) -> Artifact:
    """Hash and measure a written file, or the files of a folder in the order of their names."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    contents = [file.read_bytes() for file in files]
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    return Artifact(path, format_name, precision, digest, sum(map(len, contents)))


def profile_for(backend: Backend, precision: str, cpu: str) -> RuntimeProfile:
    """The backend's profile for a calibrated precision on a kind of CPU."""
    kinds = backend.profiles[precision]
    return kinds.get(cpu, kinds[ANY])


def available_formats() -> tuple[str, ...]:
    """Names of all registered backends, sorted; none of them is imported."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def formats_from_onnx() -> tuple[str, ...]:
    """Names of the formats that can be written from an ONNX file: those whose backend says `from_onnx = True`."""
    return tuple(name for name in available_formats() if getattr(find_class(name), "from_onnx", False))


def other_formats(name: str, precision: str) -> tuple[str, ...]:
    """Names of the formats that can be `precision` and do not share the code of the one called `name`."""
    own = find_class(name)
    others = {other: find_class(other) for other in available_formats()}
    related = {other for other, kind in others.items() if issubclass(kind, own) or issubclass(own, kind)}
    return tuple(other for other, kind in others.items() if other not in related and precision in kind.precisions)


def unknown_format(name: str) -> UsageError:
    """What is said of a name that no backend has."""
    formats = available_formats()
    if plain(name) in OTHER_FORMATS:
        return UsageError(f"format {name} has no backend in qexport", f"choose from {', '.join(formats)}")
    meant = closest(name, formats, FORMAT_ALIASES)
    return UsageError(
        f"unknown format {name}", f"choose from {', '.join(formats)}" + (f"; did you mean {meant}" if meant else "")
    )


def find_class(name: str) -> type[Backend]:
    """Import the class of the backend called `name`.

    Raises:
        UsageError: no such backend.
    """
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            found: type[Backend] = entry.load()
            return found
    raise unknown_format(name)


def find_backend(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        UsageError: no such backend.
        MissingExtraError: packages that it needs are not installed.
    """
    return find_class(name)()
