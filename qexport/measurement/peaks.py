"""What each runtime's arithmetic is worth on this machine: multiply-accumulates per second of bare convolutions.

Each runtime is measured in a process of its own: one that this CPU kills loses its own line only, and no runtime's
threads wait beside another's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from qexport.backends.protocol import Backend, RunsConvolutions
from qexport.backends.registry import find_backend
from qexport.compat.quiet import quiet_libraries
from qexport.lowering.convolutions import ConvolutionStack
from qexport.measurement.latency import PAUSE, RUNS, WARM_UP, measure_latency
from qexport.system.apart import ApartError, text_from
from qexport.system.json_form import from_plain, parse_json, to_plain

SECONDS = 1.5
"""For timing one runtime; slow machines take longer for `MIN_ROUNDS`."""
MIN_ROUNDS, MAX_ROUNDS = 2, 6
HANGING = 60
"""Seconds after which a runtime is given up."""
MAX_LACK = 0.25
"""Cores that others may take from the threads that are timed."""
FP32, INT8 = "FP32", "INT8"


@dataclass(frozen=True)
class RuntimePeaks:
    """One runtime's.

    Attributes:
        format: whose runtime it is.
        peaks: type that the runtime computes in → multiply-accumulates in a second, by the median run.
        failure: why there are none, "" where there are.
    """

    format: str
    peaks: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""

    @property
    def int8_gain(self) -> float | None:
        """How many times as fast as FP32 integers are."""
        return self.peaks[INT8] / self.peaks[FP32] if {INT8, FP32} <= self.peaks.keys() else None

    @property
    def half(self) -> str | None:
        """What else floats are computed in here, such as BF16; None for nothing."""
        return next((kind for kind in self.peaks if kind not in (FP32, INT8)), None)


@dataclass(frozen=True)
class Peaks:
    """What was measured of every runtime here that can be.

    Attributes:
        threads: CPU threads of each.
        runtimes: by the names of their formats.
        load: cores that other processes kept busy meanwhile, on average; None where the system does not say.
    """

    threads: int
    runtimes: tuple[RuntimePeaks, ...] = ()
    load: float | None = None

    def of(self, name: str) -> RuntimePeaks | None:
        """Those of a format's runtime; None where nothing was measured."""
        return next((each for each in self.runtimes if each.format == name and each.peaks), None)

    def crowded(self, cores: int) -> bool:
        """Whether threads had to wait for cores, of which there are so many: figures are too low then."""
        return self.load is not None and self.load + self.threads > max(cores, self.threads) + MAX_LACK


def measurable(formats: Iterable[str]) -> tuple[str, ...]:
    """Those of the formats, which can be written here, whose runtimes can be measured without a model."""
    return tuple(name for name in formats if isinstance(find_backend(name), RunsConvolutions))


def peaks_apart(name: str, threads: int) -> RuntimePeaks:
    """Measure the runtime of a format in a process of its own."""
    try:
        return from_plain(RuntimePeaks, parse_json(text_from(measured, name, threads, seconds=HANGING)))
    except ApartError as error:
        return RuntimePeaks(name, failure=str(error))


def measured(name: str, threads: int) -> str:
    """What that process does: the peaks as JSON."""
    quiet_libraries()
    return json.dumps(to_plain(peaks_of(find_backend(name), threads)))


def peaks_of(backend: Backend, threads: int, stack: ConvolutionStack | None = None) -> RuntimePeaks:
    """Measure a runtime in this process, its types of arithmetic in turns.

    Args:
        backend: one that is `RunsConvolutions`.
        stack: what is timed; None for the usual one.

    Raises:
        Exception: whatever the runtime does.
    """
    assert isinstance(backend, RunsConvolutions)
    timed = stack or ConvolutionStack()
    runs = backend.convolutions(timed, threads)
    runners = {kind: partial(_run, each) for kind, each in runs.items()}
    found = measure_latency(runners, timed.batch(), _rounds(runs.values()))
    return RuntimePeaks(
        backend.info.name, {kind: float(f"{timed.macs / each.p50 * 1e3:.4g}") for kind, each in found.items()}
    )


def _run(convolutions: Callable[[], object], _: object) -> tuple[()]:
    """One run as `measure_latency` makes it: the batch is there already."""
    convolutions()
    return ()


def _rounds(runs: Iterable[Callable[[], object]]) -> int:
    """How many rounds of `measure_latency` fit into `SECONDS`, by a second run of each."""
    each_round = 0.0
    for run in runs:
        run()
        started = time.perf_counter()
        run()
        each_round += PAUSE + (1 + RUNS) * (time.perf_counter() - started)
    return max(MIN_ROUNDS, min(MAX_ROUNDS, int(SECONDS / each_round) - WARM_UP))
