"""What `qexport doctor` found out: this machine, formats and what they need, what each type of arithmetic is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from qexport.backends.installed import FormatState
from qexport.measurement.peaks import INT8, Peaks, RuntimePeaks
from qexport.system.capabilities import Capabilities
from qexport.system.json_form import to_plain
from qexport.system.machine import Environment
from qexport.system.packages import Misfit
from qexport.version import __version__

SCHEMA = 1
MIN_GAIN = 1.25
"""INT8 over FP32 below which quantising is hardly worth its loss."""
DOT_PRODUCTS = ("AVX512-VNNI", "AVX-VNNI", "AMX-INT8", "dotprod", "i8mm")
"""Features of CPUs whose kernels add four products of bytes at once, without which integers gain little."""


@dataclass(frozen=True)
class Fit:
    """Why torchvision does not work beside torch, "" where it does, and the command that mends it."""

    fault: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All of it.

    Attributes:
        formats: every registered one.
        misfits: packages that are missing for all of them, or of other versions than qexport was tried with.
        torchvision: whether it works beside torch; None where nobody tried.
        peaks: multiply-accumulates per second; None where nobody measured.
        kept: the file that reports of exports find the peaks in; None where there is none.
    """

    environment: Environment
    capabilities: Capabilities
    formats: tuple[FormatState, ...]
    misfits: tuple[Misfit, ...] = ()
    torchvision: Fit | None = None
    peaks: Peaks | None = None
    kept: str | None = None

    @property
    def able(self) -> tuple[FormatState, ...]:
        """Formats that can be written here: none without what every run needs."""
        return () if self.lacking else tuple(each for each in self.formats if not each.problem)

    @property
    def lacking(self) -> tuple[Misfit, ...]:
        """Packages without which nothing can be written."""
        return tuple(each for each in self.misfits if each.version is None)


def to_json(found: Diagnosis) -> str:
    """One object, indented; `peaks` has what is said of each runtime beside its figures."""
    content = to_plain(found)
    if found.peaks:
        for entry, each in zip(content["peaks"]["runtimes"], found.peaks.runtimes, strict=True):
            entry |= {"int8_gain": each.int8_gain, "verdict": verdict(each, found.capabilities.features)}
    able = [each.format for each in found.able]
    return json.dumps({"schema": SCHEMA, "qexport": __version__, "able": able, **content}, indent=2) + "\n"


def verdict(found: RuntimePeaks, features: Mapping[str, bool] | None) -> str:
    """What INT8 is worth in a runtime here, as a sentence without a full stop."""
    gain = found.int8_gain
    if gain is None:
        return f"not measured: {found.failure}" if found.failure else "INT8 or FP32 does not run"
    if gain >= MIN_GAIN:
        said = f"INT8 is {gain:.1f}× as fast as FP32"
    else:
        said = f"INT8 is {'hardly faster than' if gain >= 1 else 'slower than'} FP32 ({gain:.2f}×)"
        if features is not None and not any(features.get(name) for name in DOT_PRODUCTS):
            said += f": this CPU has no {'dotprod' if 'NEON' in features else 'VNNI'}"
    if found.half is None:
        return said
    against = found.peaks[INT8] / found.peaks[found.half]
    return f"{said}, {against:.1f}× as fast as {found.half}"
