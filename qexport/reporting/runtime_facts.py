"""What a runtime really does with a file on this machine: types of arithmetic, versions that it needs, and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qexport.measurement.latency import Latency
from qexport.measurement.measure import Figures
from qexport.verification.result import ArtifactResult


def listed_arithmetic(shares: Mapping[str, float]) -> str:
    """Shares of the multiply-accumulates as text, the largest first: INT8 96.3 %, BF16 3.7 %; one alone by its name."""
    shown = [(kind, share) for kind, share in sorted(shares.items(), key=lambda each: -each[1]) if share >= 0.0005]
    return shown[0][0] if len(shown) == 1 else ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in shown)


def listed_needs(needs: Mapping[str, str]) -> str:
    """What a file needs as text, without the list of its operators: ONNX Runtime 1.14, operator set 18."""
    return ", ".join(f"{what} {version}" for what, version in needs.items() if what != "operators")


def by_default_entry(figures: Figures) -> dict[str, Any] | None:
    """An FP32 file's latency in the type that its runtime takes where nobody asks for FP32; None where that is FP32."""
    if figures.by_default is None:
        return None
    kind, latency = figures.by_default
    return {"arithmetic": kind, "latency_ms": latency_entry(latency)}


def latency_entry(latency: Latency) -> dict[str, float]:
    """Milliseconds of a run."""
    return {name: round(getattr(latency, name), 2) for name in ("p50", "p95", "min")}


def by_default_speedup(figures: Figures, reference: Figures | None) -> float | None:
    """How much faster a file is than the FP32 one in the type that its runtime takes by itself."""
    if figures.latency is None or reference is None or reference.by_default is None:
        return None
    return round(reference.by_default[1].p50 / figures.latency.p50, 3)


def runtime_warnings(item: ArtifactResult, figures: Figures, reference: Figures | None) -> list[str]:
    """Say where a runtime does something else than the file says, or than it was asked for."""
    artifact, checked = item.artifact, item.verification
    found = []
    if checked is not None and checked.runs_less and checked.planned_coverage is not None:
        found.append(
            f"{artifact.format} runs {checked.coverage:.1%} of the arithmetic in integers on this CPU, the file has "
            f"{checked.planned_coverage:.1%}: the runtime has no integer kernel for the rest here"
        )
    if artifact.precision == "fp16" and item.stored and set(item.stored.arithmetic) == {"FP32"}:
        found.append(f"{artifact.format} computes FP16 files in FP32 on this CPU: they are smaller, not faster")
    speedup = by_default_speedup(figures, reference)
    if speedup is not None and speedup < 1 and reference is not None and reference.by_default is not None:
        found.append(
            f"{artifact.format} runs float32 files faster than {artifact.precision} on this CPU if nobody asks for "
            f"FP32: in {reference.by_default[0]}"
        )
    return found
