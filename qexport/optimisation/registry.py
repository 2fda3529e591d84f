"""Passes over weights by name, from here and from other packages; names are known without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from qexport import plugins
from qexport.errors import UsageError

if TYPE_CHECKING:
    from qexport.optimisation.passes import WeightPass

GROUP = "qexport.passes"
"""Entry points of other packages: what makes a pass, called without arguments."""


def _bias_correction() -> WeightPass:
    from qexport.optimisation.bias_correction import BiasCorrection

    return BiasCorrection()


PASSES: Mapping[str, Callable[[], WeightPass]] = {"bias-correction": _bias_correction}


def weight_passes() -> tuple[str, ...]:
    """Names of all passes, other packages' behind those that are here."""
    return (*PASSES, *(name for name in plugins.names(GROUP) if name not in PASSES))


def weight_pass(name: str) -> WeightPass:
    """Make the pass called `name`.

    Raises:
        UsageError: there is none.
    """
    if name in PASSES:
        return PASSES[name]()
    if name not in plugins.names(GROUP):
        raise UsageError(f"unknown pass {name}", f"choose from {', '.join(weight_passes())}")
    make = plugins.lookup(GROUP, name)
    if not callable(make):
        raise UsageError(f"pass {name} of {GROUP} cannot be called", "repair or uninstall its package")
    made: WeightPass = make()
    return made
