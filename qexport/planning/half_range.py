"""What FP16 cannot hold: such operations compute in FP32, where all others are given half the bits.

FP16 ends at 65504, where it becomes infinite and the next difference NaN. Below 2^-14 its steps no longer shrink with
the number, and below 2^-25 there is nothing but zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from qexport.calibration.statistics import Statistics
from qexport.programs.program import Program, Region, Value, observed_sources

MAX_HALF = float(np.finfo(np.float16).max)
MIN_NORMAL = float(np.finfo(np.float16).smallest_normal)
HEADROOM = 2
"""Images that nobody has seen yet may drive an activation this much further."""
MAX_LOSS = 2**-8
"""Share of a filter's largest weight that rounding may take: INT8 takes as much."""
NEGLIGIBLE = 2**-40
"""Share of a tensor's largest weight below which a filter is dead: not even FP16's largest factor, 2^16, makes its
smallest number, 2^-24, of it."""


def unfit_for_half(program: Program, peaks: Mapping[str, float], weights_only: bool = False) -> dict[str, str]:
    """Values of the body that must be computed in FP32, with the reason, in order of computation.

    What an activation overflows in is its own operation and all that read it.

    Args:
        peaks: largest magnitudes that were seen, by name; empty where activations are float32 anyway.
        weights_only: nothing but layers' weights is stored in FP16.
    """
    body = {
        name: value
        for name, value in program.values.items()
        if value.region is Region.BODY and value.operation != "input"
    }
    found: dict[str, list[str]] = {}
    for name, array in program.graph.constants():
        reason = unfit_constant(array) if not weights_only or array.ndim > 1 else ""
        if reason and name in body:
            found.setdefault(name, []).append(reason)
    for value in body.values():
        reason = _unfit_activation(_peak(program, value, peaks))
        for name in (value.name, *(reader.name for reader in program.readers[value.name])) if reason else ():
            found.setdefault(name, []).append(reason if name == value.name else f"reads {value.name}, which {reason}")
    return {name: found[name][0] for name in body if name in found}


def unfit_constant(array: NDArray[np.floating]) -> str:
    """Why FP16 cannot hold a constant, "" where it can; infinities stay what they are."""
    finite = np.where(np.isfinite(array), array, 0).astype(np.float64)
    peak = float(np.abs(finite).max(initial=0.0))
    if peak > MAX_HALF:
        return f"has constants up to {peak:.3g}, and FP16 ends at {MAX_HALF:.0f}"
    rows = np.abs(finite).reshape(len(finite), -1) if finite.ndim > 1 else np.abs(finite).reshape(1, -1)
    lost = np.abs(rows - rows.astype(np.float16)).max(axis=1, initial=0.0)
    largest = rows.max(axis=1, initial=0.0)
    faint = (lost > MAX_LOSS * largest) & (largest > NEGLIGIBLE * peak)
    return (
        f"has constants of {largest[faint].min():.3g} at most, and FP16's steps are too coarse" if faint.any() else ""
    )


def _unfit_activation(peak: float) -> str:
    if peak * HEADROOM > MAX_HALF:
        return f"reaches {peak:.3g}, and FP16 ends at {MAX_HALF:.0f}"
    return f"reaches {peak:.3g} only, where FP16's steps are too coarse" if 0 < peak < MIN_NORMAL else ""


def _peak(program: Program, value: Value, peaks: Mapping[str, float]) -> float:
    return max((peaks.get(source, 0.0) for source in observed_sources(program, value.name)), default=0.0)


def peaks_of(statistics: Mapping[str, Statistics]) -> dict[str, float]:
    """The largest magnitude of every value that was calibrated."""
    return {name: max(-seen.minimum, seen.maximum) for name, seen in statistics.items()}


def described(unfit: Mapping[str, str], reasons: int = 3) -> Iterator[str]:
    """What a report says of values that stay FP32: one line with every name, and why for the first of them."""
    if unfit:
        named = "; ".join(f"{name} {why}" for name, why in list(unfit.items())[:reasons])
        others = "; ".join(["", *list(unfit)[reasons:]])
        yield f"{len(unfit)} operations stay FP32, because FP16 cannot hold them: {named}{others}"
