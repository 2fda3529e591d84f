"""Keep in float what a plan has in float: the converter makes integers of it, too, where integers are around it.

Weights it quantises by their largest element, results with the scale that their readers want; a concatenation of floats
with integers gets the integers' scale, and what had none is clipped to it, or the conversion fails. So a barrier stands
on every way between integers and floats while it converts: an operator that has no integer kernel. Then they are taken
out of the file.
"""

from __future__ import annotations

import operator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torchao.quantization.pt2e  # noqa: F401  (registers the quantized_decomposed operators)
from torch import Tensor
from torch.fx import GraphModule, Node

from qexport.backends.tflite.file import BARRIER, load_file, operator_names, save_file
from qexport.programs.program import INPUT, Program, Region
from qexport.programs.tags import OWNER
from qexport.simulation.insert import SEEN

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan

quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def add_barriers(graph: GraphModule, program: Program, plan: QuantPlan) -> None:
    """Put a barrier between integers and what computes in float, on either side; the graph is changed in place."""
    moved = _scores_alike(program, plan)
    for node in list(graph.graph.nodes):
        for source in node.all_input_nodes:
            if source.target is dequantize:
                regions = _float_regions(node, program, plan)
                crossed = Region.DECODE in regions and source.meta.get(SEEN) not in moved
                crossed |= not regions <= {Region.DECODE}
            else:
                crossed = node.target is quantize and bool(_float_regions(source, program, plan))
            if crossed:
                _put_between(graph, source, node)
    graph.graph.lint()
    graph.recompile()


def _scores_alike(program: Program, plan: QuantPlan) -> frozenset[str]:
    """Raw scores that the decode may move as integers: all have one scale, and nothing else is joined with them."""
    scores = frozenset(program.raw.scores)
    stored = {(plan.tensors[name].scale, plan.tensors[name].zero_point) for name in scores}
    return scores if len(stored) == 1 and not program.guessed else frozenset()


def _float_regions(node: Node, program: Program, plan: QuantPlan) -> set[Region]:
    """Where the values lie that an operator computes in float; a split's are all of its parts."""
    whole = node.all_input_nodes[0] if node.target is operator.getitem else node
    names = {node.name} if node.name in program.values else {str(node.meta.get(OWNER, ""))}
    if not isinstance(whole.meta.get("val"), Tensor) or whole is not node:
        names = {part.name for part in whole.users}
    values = [program.values[name] for name in names if name in program.values]
    return {value.region for value in values if value.name not in (INPUT, *plan.integer)}


def _put_between(graph: GraphModule, source: Node, reader: Node) -> None:
    with graph.graph.inserting_after(source):
        barrier = graph.graph.call_function(torch.ops.aten.ceil.default, (source,))
    barrier.meta = {**source.meta, OWNER: BARRIER}
    reader.replace_input_with(source, barrier)


def remove_barriers(path: Path) -> None:
    """Let readers of barriers in a file read what is in front of them."""
    model, codes = load_file(path), operator_names()
    graph = model.subgraphs[0]
    behind: dict[int, int] = {}
    operators = []
    for each in graph.operators:
        each.inputs = [behind.get(int(index), int(index)) for index in each.inputs]
        kind, result = codes[model.operatorCodes[each.opcodeIndex].builtinCode], int(each.outputs[0])
        if kind == "CEIL" and BARRIER in graph.tensors[result].name.decode():
            behind[result] = each.inputs[0]
        else:
            operators.append(each)
    if not behind:
        return
    graph.operators = operators
    graph.outputs = [behind.get(int(index), int(index)) for index in graph.outputs]
    for signature in model.signatureDefs or ():
        for output in signature.outputs:
            output.tensorIndex = behind.get(int(output.tensorIndex), int(output.tensorIndex))
    save_file(model, path)
