"""Passes over weights by name, from here and from other packages; names are known without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.plugins import Functions

if TYPE_CHECKING:
    from qexport.optimisation.passes import WeightPass

PASSES = Functions(
    "qexport.passes",
    "pass",
    {
        "mixed-precision": "qexport.optimisation.mixed_precision:MixedPrecision",
        "equalisation": "qexport.optimisation.equalisation:Equalisation",
        "weight-scales": "qexport.optimisation.weight_scales:WeightScales",
        "adaptive-rounding": "qexport.optimisation.adaptive_rounding:AdaptiveRounding",
        "reconstruction": "qexport.optimisation.reconstruction:Reconstruction",
        "bias-correction": "qexport.optimisation.bias_correction:BiasCorrection",
        "score-shift": "qexport.optimisation.score_shift:ScoreShift",
    },
)
"""What makes each, called without arguments."""


def weight_passes() -> tuple[str, ...]:
    """Names of all passes, other packages' behind those that are here."""
    return PASSES.names


def weight_pass(name: str) -> WeightPass:
    """Make the pass called `name`.

    Raises:
        UsageError, PluginError: see `Functions.find`.
    """
    made: WeightPass = PASSES.find(name)()
    return made
