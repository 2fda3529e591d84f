"""What was kept in float to meet a bound: read with reports, where torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One plan that was tried.

    Attributes:
        float_macs: share of the multiply-accumulates that it keeps in float, 0..1.
        distance: mean distance from the float program on held-out images (`qexport.optimisation.distance`); None where
            it was not measured.
        lost_percent: of FP32's accuracy that its file loses, None where no file was made of it.
        latency_ms: of its file, the median; None where it was not measured.
        chosen: whether it is what was written.
    """

    float_macs: float
    distance: float | None = None
    lost_percent: float | None = None
    latency_ms: float | None = None
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class RepairRecord:
    """What a repair came to.

    Attributes:
        before, after: mean distance of the plan that was given and of the one that came of it.
        noise: standard error of what was gained, image by image.
        images: how many were held out.
        float_macs: share of the multiply-accumulates in float, 0..1; it was `float_macs_before`.
        met: whether the bound on the loss of accuracy is met.
        reason: what came of it, in one line.
        floats: values that are in float for it, each with why.
        curve: every plan that was measured.
    """

    before: float
    after: float
    noise: float | None
    images: int
    float_macs: float
    float_macs_before: float
    met: bool
    reason: str = ""
    floats: Mapping[str, str] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
