"""What a plan makes of a program's outputs, whatever the program's graph is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

from torch import Tensor

from qexport.planning.plan import QuantPlan
from qexport.programs.captured_graph import CapturedGraph
from qexport.programs.graph import Graph
from qexport.programs.program import Program
from qexport.simulation.rewrite import simulated

Run = Callable[[Tensor], Any]
"""The input, (n, channels, height, width) float32, to the output or the tuple of outputs."""


def simulation(program: Program, plan: QuantPlan) -> Run:
    """The program in which every quantised value passes through its integers.

    Raises:
        ConversionError: the plan was made for another program.
    """
    return _simulation_of(program.graph, program, plan)


@singledispatch
def _simulation_of(graph: Graph, program: Program, plan: QuantPlan) -> Run:
    """Every graph can be written with its pairs as ONNX."""
    from qexport.lowering.onnx.simulation import OnnxSimulation

    return OnnxSimulation(program, plan)


@_simulation_of.register
def _in_torch(_: CapturedGraph, program: Program, plan: QuantPlan) -> Run:
    return simulated(program, plan)
