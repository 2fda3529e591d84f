"""Refuse a model whose own numbers are none, before anything slow or puzzling happens to it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qexport.errors import InputError

REMEDY = "its training diverged or the file is damaged: take an earlier checkpoint"


def refuse_damaged(named: Iterable[tuple[str, NDArray[np.floating] | Tensor]], origin: str) -> None:
    """Refuse parameters that no format could hold.

    Args:
        named: layers' parameters.
        origin: what they belong to.

    Raises:
        InputError: one has elements that are NaN or infinite.
    """
    for name, parameter in named:
        array = parameter.detach().cpu().float().numpy() if isinstance(parameter, Tensor) else parameter
        wrong = array.size - int(np.isfinite(array).sum())
        if wrong:
            raise InputError(f"{origin} has {name} with {wrong} of {array.size} numbers NaN or infinite", REMEDY)


def refuse_endless(outputs: Iterable[Tensor], origin: str) -> None:
    """Raise `InputError` where a model of sound parameters computes NaN or infinity from a plain picture."""
    if not all(bool(output.isfinite().all()) for output in outputs if output.is_floating_point()):
        raise InputError(f"{origin} computes NaN or infinity from a plain picture", REMEDY)
