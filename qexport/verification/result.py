"""What is known of an artifact once it was written and verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qexport.backends.artifact import Artifact
from qexport.backends.device_fit import DeviceFit
from qexport.backends.protocol import Backend
from qexport.lowering.stored import StoredGraph
from qexport.optimisation.pass_record import PassRecord
from qexport.optimisation.repair_record import RepairRecord
from qexport.optimisation.tune_record import TuneRecord
from qexport.verification.likeness import Likeness
from qexport.verification.outcome import Verification


@dataclass(frozen=True)
class Summary:
    """What a reader of the report wants to know of a file's inside.

    Attributes:
        arithmetic: type → share of the multiply-accumulates that the runtime does in it on this machine, 0..1.
        needs: what runs the file, such as "ONNX Runtime", → the least version.
        macs: multiply-accumulates of one run; 0 where nobody counted.
    """

    arithmetic: Mapping[str, float]
    needs: Mapping[str, str]
    macs: int = 0


def summary_of(stored: StoredGraph) -> Summary:
    """Leave out the tensors, which are large."""
    total = sum(stored.arithmetic.values())
    return Summary({kind: count / total for kind, count in stored.arithmetic.items()}, stored.needs, total)


@dataclass(frozen=True)
class ArtifactResult:
    """An artifact that is on disk.

    Attributes:
        verification: what was verified of it, None for float ones.
        plan: the file that its plan was saved to, None for float ones.
        quantisation: integer types and the kind of CPU that they were chosen for.
        fit: what the device that it is for makes of it, where that is not this machine.
        sqnr: signal to quantisation-noise ratio in dB of the plan's values, see `qexport.simulation.meters`; None for
            float ones.
        stored: what the file says of itself, and what its runtime makes of it here; None for engines.
        warnings: what a user must know of how it was written.
        passes: over the weights, in the order in which they were tried.
        candidate: the file that its program and plan were saved to, None where no pass changed them.
        likeness: to FP32 on calibration images; None without those, and where activations are float.
        repair: what was kept in float for it to meet a budget, None where nothing was asked for or had to be.
        tuning: what was tried to make it faster, None where nothing was asked for.
        engine: it was built from a graph, for one machine or device.
        taken: when the earlier run built it that it is taken from, in UTC; "" where this run has built it.
    """

    artifact: Artifact
    backend: Backend
    verification: Verification | None = None
    plan: Path | None = None
    quantisation: dict[str, str] | None = None
    fit: DeviceFit | None = None
    sqnr: Mapping[str, float | None] | None = None
    stored: Summary | None = None
    warnings: tuple[str, ...] = ()
    passes: tuple[PassRecord, ...] = ()
    candidate: Path | None = None
    likeness: Likeness | None = None
    repair: RepairRecord | None = None
    tuning: TuneRecord | None = None
    engine: bool = False
    taken: str = ""

    @property
    def runtime_here(self) -> str | None:
        """What runs it on this machine; None where nothing does."""
        info = self.backend.info
        return info.engine.runtime if self.engine and info.engine else info.runtime

    @property
    def runs_here(self) -> bool:
        """Whether anything on this machine runs it, so that it can be scored."""
        return self.runtime_here is not None

    @property
    def timed(self) -> bool:
        """Whether the runtime that it is for runs here, so that latency means something."""
        return self.runs_here if self.engine else self.backend.info.timed

    @property
    def own_runtime(self) -> bool:
        """Whether `runtime` is what it is for: not where another computes the same, or the device is not here."""
        return self.timed and self.fit is None

    @property
    def runtime(self) -> str:
        """What it was verified, scored and timed with."""
        device = f", in place of {self.fit.device}" if self.fit and self.timed and not self.engine else ""
        return f"{self.runtime_here or ''}{device}"


def float_counterparts(written: Sequence[ArtifactResult]) -> dict[Path, Path]:
    """For every artifact that is not FP32 the FP32 one of the same format, where there is one."""
    floats = {item.backend.info.name: item.artifact.path for item in written if item.artifact.precision == "fp32"}
    others = (item for item in written if item.artifact.precision != "fp32")
    return {item.artifact.path: floats[item.backend.info.name] for item in others if item.backend.info.name in floats}
