"""Signal to quantisation noise of every value: the simulated program against the float one, both in one graph.

SQNR is 10 log10(sum of squares of the float value / sum of squares of its error), over all elements of all images; a
uniform quantiser of b bits that its input fills has 6.02 b dB (Bennett, "Spectra of Quantized Signals", 1948). The
error of a value is what its readers see: its own rounding, if the plan quantises it, and all that came before it.
What the plan cuts on purpose counts, too: class logits that end at -8 have a low figure by design.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen
from torch.fx.node import map_arg

from qexport.planning.plan import QuantPlan
from qexport.planning.ranges import LOGIT_FLOOR
from qexport.programs.captured_graph import module_of
from qexport.programs.graph_module import nodes_by_name
from qexport.programs.program import Program
from qexport.simulation.insert import Make, insert, seen_by_readers
from qexport.simulation.rewrite import Pair

MAX_DB = 150.0
"""What float32 itself keeps; an exact value is given this figure, not infinity."""


class _Meter(nn.Module):
    """Notes the power of a value and of its error in each run; what is below `floor` counts as that.

    Runs may be in several threads: whichever comes first, their exact sum is the same.
    """

    _is_impure = True  # torch.fx keeps its calls, though nothing reads a result

    def __init__(self, name: str, floor: float) -> None:
        super().__init__()
        self.name, self.floor = name, floor
        self.signals, self.noises = list[float](), list[float]()

    def forward(self, real: Tensor, approximate: Tensor) -> None:
        """Note one run's value and its approximation, of one shape."""
        if self.floor > -math.inf:
            real, approximate = real.clamp(min=self.floor), approximate.clamp(min=self.floor)
        self.signals.append(_power(real))
        self.noises.append(_power(real - approximate))

    @property
    def decibels(self) -> float | None:
        """None where nothing was seen but zeros."""
        signal, noise = math.fsum(self.signals), math.fsum(self.noises)
        if not signal:
            return None
        return MAX_DB if not noise else min(MAX_DB, 10 * math.log10(signal / noise))


def _power(values: Tensor) -> float:
    flat = values.flatten()
    return float(torch.dot(flat, flat))


def raw_floors(program: Program) -> dict[str, float]:
    """The raw outputs, for `metered`: class logits are told apart down to where plans end them, all else is whole."""
    return dict.fromkeys(program.raw.all, -math.inf) | dict.fromkeys(program.raw.scores, LOGIT_FLOOR)


def metered(
    program: Program,
    plan: QuantPlan,
    reference: Program | None = None,
    floors: Mapping[str, float] | None = None,
    make: Make = Pair,
    both: bool = False,
) -> GraphModule:
    """Return `insert(program, plan, make)` with a float program beside it, value by value, and a meter on each pair.

    It is called like the simulated program and gives its outputs. Both halves advance together, so that no value is
    kept for longer than something reads it, and neither half is run twice.

    Args:
        reference: the float program to measure against, of the same values; `program` itself where its weights are
            those that it came with.
        floors: values to measure, each with the number below which nothing is told apart (-inf: all is); every value
            by default.
        make: what stands behind a quantised tensor, for `insert`.
        both: it gives two tuples, the float program's outputs and the simulated one's.
    """
    reference = reference or program
    graph = insert(program, plan, make)
    twins, seen = nodes_by_name(graph), seen_by_readers(graph)
    measurable = {
        name: (floors or {}).get(name, -math.inf) for name in _measurable(reference) if floors is None or name in floors
    }
    real: dict[Node, Node] = {}
    for node in module_of(reference).graph.nodes:
        twin = twins.get(node.name)
        if node.op in ("placeholder", "get_attr") and twin is not None:
            real[node] = _own(graph, module_of(reference), twin) if node.op == "get_attr" else twin
        if node.op != "call_function" and node.name not in measurable:
            continue
        assert twin is not None
        last = seen.get(node.name, twin)
        if node.op == "call_function":
            with graph.graph.inserting_after(last):
                real[node] = graph.graph.node_copy(node, lambda each: real[each])
        if node.name in measurable:
            graph.add_module(f"meter_{node.name}", _Meter(node.name, measurable[node.name]))
            with graph.graph.inserting_after(real[node] if node.op == "call_function" else last):
                graph.graph.call_module(f"meter_{node.name}", (real[node], last))
    if both:
        _end_at_both(graph, reference, real)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph


def _end_at_both(graph: GraphModule, reference: Program, real: Mapping[Node, Node]) -> None:
    output = graph.graph.output_node()
    exact = map_arg(module_of(reference).graph.output_node().args[0], lambda node: real[node])
    output.args = ((exact, output.args[0]),)
    graph.graph.set_codegen(CodeGen())  # what torch.export wrote folds one program's outputs into their form


def _own(graph: GraphModule, reference: GraphModule, twin: Node) -> Node:
    """The reference's own constant, where it is another than the simulated program's."""
    path = str(twin.target)
    tensor = attrgetter(path)(reference)
    if tensor is attrgetter(path)(graph):
        return twin
    name = f"reference_{path.replace('.', '_')}"
    graph.register_buffer(name, tensor.detach())
    with graph.graph.inserting_before(twin):
        return graph.graph.get_attr(name)


def show(graph: GraphModule, inputs: Iterable[NDArray[np.float32]]) -> None:
    """Let a graph's meters see batches (n, channels, height, width)."""
    with torch.no_grad():
        for batch in inputs:
            graph(torch.from_numpy(batch))


def sqnr_of(graph: GraphModule) -> dict[str, float | None]:
    """SQNR in dB of every metered value after the graph's runs, by name."""
    return {meter.name: meter.decibels for meter in _meters(graph)}


def _meters(graph: GraphModule) -> Iterator[_Meter]:
    return (part for part in graph.modules() if isinstance(part, _Meter))


def _measurable(program: Program) -> Iterator[str]:
    """Names of the values that correspond element by element: no indices, and nothing that indices have picked.

    Behind a ranking the same row of both programs need not be the same anchor.
    """
    picked: set[Node] = set()
    for node in module_of(program).graph.nodes:
        if any(source in picked for source in node.all_input_nodes) or not _only_floats(node):
            picked.add(node)
        elif node.op != "output" and node.name in program.values:
            yield node.name


def _only_floats(node: Node) -> bool:
    made = node.meta.get("val")
    parts = made if isinstance(made, list | tuple) else (made,)
    return all(part.is_floating_point() for part in parts if isinstance(part, Tensor))
