"""The plan value by value beside the noise that it makes: what a reader looks at when a figure is bad."""

from __future__ import annotations

from collections.abc import Mapping

from qexport.measurement.evidence.parts import Layer
from qexport.planning.plan import QuantPlan
from qexport.programs.program import Program

Decibels = Mapping[str, float | None]
"""Signal to quantisation-noise ratio by value name, see `qexport.simulation.meters`."""


def layers(program: Program, plan: QuantPlan, sqnr: Decibels) -> tuple[Layer, ...]:
    """Every value that the plan decides on, in order of computation; weights are left out."""
    found = []
    for value in program.values.values():
        tensor = plan.tensors.get(value.name)
        if tensor is None:
            continue
        decibels = sqnr.get(value.name)
        found.append(
            Layer(
                name=value.name,
                operation=value.operation,
                dtype=tensor.dtype,
                scale=tensor.scale[0] if tensor.scale else None,
                zero_point=tensor.zero_point[0] if tensor.zero_point else None,
                group=tensor.group,
                why=tensor.why,
                macs=value.macs,
                sqnr_db=None if decibels is None else round(decibels, 2),
            )
        )
    return tuple(found)
