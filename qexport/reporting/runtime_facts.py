"""What a runtime really does with a file on this machine: types of arithmetic, versions that it needs, and warnings."""

from __future__ import annotations

from collections.abc import Mapping

from qexport.measurement.latency import Latency
from qexport.measurement.measure import Figures
from qexport.measurement.peaks import RuntimePeaks
from qexport.reporting.report import ARTIFACT, LATENCY, DefaultRun, LatencyInfo, Warning
from qexport.verification.result import ArtifactResult


def listed_arithmetic(shares: Mapping[str, float]) -> str:
    """Shares of the multiply-accumulates as text, the largest first: INT8 96.3 %, BF16 3.7 %; one alone by its name."""
    shown = [(kind, share) for kind, share in sorted(shares.items(), key=lambda each: -each[1]) if share >= 0.0005]
    return shown[0][0] if len(shown) == 1 else ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in shown)


def listed_needs(needs: Mapping[str, str]) -> str:
    """What a file needs as text, without the list of its operators: ONNX Runtime 1.14, operator set 18."""
    return ", ".join(f"{what} {version}" for what, version in needs.items() if what != "operators")


def latency_of(latency: Latency | None) -> LatencyInfo | None:
    """Milliseconds of a run, in hundredths."""
    return LatencyInfo(*(round(each, 2) for each in (latency.p50, latency.p95, latency.min))) if latency else None


def speedup(latency: Latency | None, exact: Latency | None) -> float | None:
    """How much faster a file is than the FP32 one."""
    return round(exact.p50 / latency.p50, 3) if latency and exact else None


def default_run(figures: Figures) -> DefaultRun | None:
    """An FP32 file's latency in the type that its runtime takes where nobody asks for FP32; None where that is FP32."""
    kind, latency = figures.by_default or ("", None)
    measured = latency_of(latency)
    return DefaultRun(kind, measured) if measured else None


def by_default_speedup(figures: Figures, reference: Figures | None) -> float | None:
    """How much faster a file is than the FP32 one in the type that its runtime takes by itself."""
    if figures.latency is None or reference is None or reference.by_default is None:
        return None
    return round(reference.by_default[1].p50 / figures.latency.p50, 3)


def peak_share(item: ArtifactResult, figures: Figures, peaks: RuntimePeaks | None) -> float | None:
    """How much of the median run the multiply-accumulates would take at the runtime's peaks; see `ArtifactReport`."""
    latency, stored = figures.latency, item.stored
    if latency is None or stored is None or not stored.macs or peaks is None:
        return None
    if not stored.arithmetic.keys() <= peaks.peaks.keys():
        return None
    seconds = sum(share * stored.macs / peaks.peaks[kind] for kind, share in stored.arithmetic.items())
    return round(seconds * 1e3 / latency.p50, 3)


def slower_than_float(name: str, precision: str, peaks: RuntimePeaks | None) -> Warning:
    """Say that a format's FP32 file is the faster one, and what `qexport doctor` measured of that, if it did."""
    text = f"{name} runs float32 files faster than {precision} on this CPU"
    gain = peaks.int8_gain if peaks else None
    if gain:
        text += f"; bare convolutions in INT8 are {gain:.2f}× as fast as in FP32 there, by qexport doctor"
    return Warning(LATENCY, text)


def runtime_warnings(item: ArtifactResult, figures: Figures, reference: Figures | None) -> list[Warning]:
    """Say where a runtime does something else than the file says, or than it was asked for."""
    artifact, checked = item.artifact, item.verification
    found = []
    if checked is not None and checked.runs_less and checked.planned_coverage is not None:
        text = (
            f"{artifact.format} runs {checked.coverage:.1%} of the arithmetic in integers on this CPU, the file has "
            f"{checked.planned_coverage:.1%}: the runtime has no integer kernel for the rest here"
        )
        found.append(Warning(ARTIFACT, text))
    if artifact.precision == "fp16" and item.stored and set(item.stored.arithmetic) == {"FP32"}:
        text = f"{artifact.format} computes FP16 files in FP32 on this CPU: they are smaller, not faster"
        found.append(Warning(ARTIFACT, text))
    speedup = by_default_speedup(figures, reference)
    if speedup is not None and speedup < 1 and reference is not None and reference.by_default is not None:
        text = (
            f"{artifact.format} runs float32 files faster than {artifact.precision} on this CPU if nobody asks for "
            f"FP32: in {reference.by_default[0]}"
        )
        found.append(Warning(LATENCY, text))
    return found
