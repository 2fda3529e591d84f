"""The seam to runtimes: what a backend offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qexport.backends.device_fit import DeviceFit
from qexport.lowering.stored import StoredGraph
from qexport.planning.profile import RuntimeProfile

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program


class Runner(Protocol):
    """A loaded artifact."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch (n, channels, height, width) in 0..1; return the decoded output, boxes in pixels."""
        ...

    def outputs(self, batch: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        """The same with every output: behind the decoded one the prototypes of masks, where there are any."""
        ...


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
    """How an engine is built from a graph: see `qexport.backends.tensorrt.build_engine.Options`."""

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

    FP32 files are what others are compared with, so its `runner` and `read` keep those in FP32. Other
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
        profiles: by precision, then by kind of CPU (`qexport.system.machine`), "any" for those that are not listed.
        precisions: what it can be written as.
        dynamic: whether the number of images in a run can be left open.
        offloadable: whether writing it is slow and shares nothing with other formats, so that a worker may do it.
        timed: whether `runner` is the runtime that the artifact is for, so that its latency means something.
        half_scope: what FP16 files have in FP16: layers' "weights", all "constants", or the "arithmetic", too.
    """

    name: str
    suffix: str
    runtime: str
    profiles: Mapping[str, Mapping[str, RuntimeProfile]]
    precisions: frozenset[str]
    dynamic: bool
    offloadable: bool
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

        `metadata["precision"]` is one of `PRECISIONS`; "int8-dynamic" has a plan of nothing but weights.
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
