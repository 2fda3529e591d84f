"""The body of an ONNX graph, from the input to the raw outputs, as a graph module of PyTorch's.

What ONNX Runtime runs stays what is written and verified. This is the same arithmetic with a node for each value, so
that modules can be put behind values, and gradients flow. Each body is compared with ONNX Runtime before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import Graph, GraphModule, Node

from qexport.errors import first_line
from qexport.programs.onnx.torch_elements import ELEMENTS
from qexport.programs.onnx.torch_layers import LAYERS
from qexport.programs.onnx.torch_shapes import SHAPES
from qexport.programs.onnx.torch_site import Builder, Call, Site, UntranslatableError
from qexport.programs.onnx.values import FLOAT, Shapes
from qexport.programs.program import INPUT

BUILDERS: Mapping[str, Builder] = {**LAYERS, **ELEMENTS, **SHAPES}
"""ONNX operator → what builds its torch call."""

KNOWS_SHAPES = ("Shape", "Size")
"""Operators whose results no image changes, whatever they read."""
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
MAX_DIFFERENCE = 1e-3
"""Largest difference from ONNX Runtime, of a raw output's largest number."""

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Sequence[str], NDArray[np.float32]], Sequence[NDArray[Any]]]
"""Tensors of the ONNX graph by name, for an input."""


@dataclass(frozen=True)
class Body:
    """A translated body; `module` is None where there is an `obstacle`, which says what it is."""

    module: GraphModule | None = None
    obstacle: str = ""


def translated(proto: onnx.ModelProto, shapes: Shapes, ends: Sequence[str], run: Run) -> Body:
    """Translate what leads from the input to the values called `ends`, which become a tuple.

    Args:
        proto: in its normal form.
        shapes: of every tensor.
        run: ONNX Runtime's, which the body is compared with.
    """
    if not ends:
        return Body(obstacle="the file has no layer that raw outputs could come from")
    try:
        constants = _constants(proto, ends, shapes, run)
        module = _Assembly(proto, shapes, constants).module(ends)
        found = _difference(module, shapes, ends, run)
    except UntranslatableError as error:
        return Body(obstacle=str(error))
    except Exception as error:  # torch's operators raise whatever their checks do
        return Body(obstacle=f"torch cannot compute the file's graph ({first_line(error)})")
    return Body(obstacle=found) if found else Body(module)


def _difference(module: GraphModule, shapes: Shapes, ends: Sequence[str], run: Run) -> str:
    """What torch computes otherwise than ONNX Runtime on a picture of noise, in words; "" where nothing is."""
    picture = torch.rand(shapes[INPUT][0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = module(picture)
    for name, one, other in zip(ends, run(ends, picture.numpy()), ours, strict=True):
        if one.shape != tuple(other.shape):
            return f"torch computes {name} in the shape {tuple(other.shape)}, not {one.shape}"
        largest = float(np.abs(one).max(initial=0))
        difference = float(np.abs(one - other.numpy()).max(initial=0))
        if not difference <= MAX_DIFFERENCE * largest:
            return f"torch computes {name} otherwise than ONNX Runtime, by {difference:.3g}"
    return ""


def _constants(proto: onnx.ModelProto, ends: Sequence[str], shapes: Shapes, run: Run) -> Arrays:
    """Tensors that no image changes, and that the body reads: initialisers, and what follows from shapes."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    fixed = set(constants)
    for node in proto.graph.node:
        known = node.op_type in KNOWS_SHAPES or all(name in fixed for name in node.input if name)
        if known and node.op_type not in RANDOM:
            fixed.update(node.output)
    nodes = list(_leading_to(proto, ends, fixed))
    read = dict.fromkeys(name for name in (*ends, *(name for node in nodes for name in node.input)) if name in fixed)
    computed = [name for name in read if name not in constants]
    if computed:
        blank = np.zeros(shapes[INPUT][0], dtype=np.float32)
        constants |= dict(zip(computed, run(computed, blank), strict=True))
    return {name: constants[name] for name in read}


def _leading_to(proto: onnx.ModelProto, ends: Collection[str], known: Collection[str]) -> Iterator[onnx.NodeProto]:
    """Nodes that `ends` are computed by, the last first; behind the input, and without what is known."""
    wanted = set(ends)
    for node in reversed(proto.graph.node):
        if INPUT not in node.output and any(name in wanted and name not in known for name in node.output):
            wanted.update(node.input)
            yield node


class _Assembly:
    """A torch graph in the making."""

    def __init__(self, proto: onnx.ModelProto, shapes: Shapes, constants: Arrays) -> None:
        self._proto, self._shapes, self._constants = proto, shapes, constants
        self._stored = {tensor.name for tensor in proto.graph.initializer}
        self._root, self._graph = nn.Module(), Graph()
        self._made: dict[str, Node] = {}

    def module(self, ends: Sequence[str]) -> GraphModule:
        """Translate node by node."""
        made = self._graph.placeholder(INPUT)
        self._record(INPUT, made)
        for node in reversed(list(_leading_to(self._proto, ends, self._constants))):
            try:
                self._translate(node)
            except UntranslatableError as error:
                kind = ".".join(filter(None, (node.domain, node.op_type)))
                raise UntranslatableError(f"operator {kind} of node {node.name} {error}") from None
        self._graph.output(tuple(self._operand(name) for name in ends))
        self._graph.eliminate_dead_code()
        module = GraphModule(self._root, self._graph)
        module.graph.lint()
        return module.eval()

    def _translate(self, node: onnx.NodeProto) -> None:
        build = None if node.domain else BUILDERS.get(node.op_type)
        if build is None:
            raise UntranslatableError("has no translation")
        results = [name for name in node.output if name]
        if any(self._shapes[name][1] != FLOAT for name in results):
            raise UntranslatableError("computes other numbers than float32 from the image")
        call = build(Site(node, self._constants, self._shapes, self._operand))
        if node.op_type == "Split":
            self._split(results, call)
        elif len(results) > 1:
            raise UntranslatableError("has no translation with several results")
        else:
            self._record(results[0], self._call(call, results[0]))

    def _split(self, results: Sequence[str], call: Call) -> None:
        """One node for the split, one for each of its parts: only those are values."""
        whole = self._call(call, f"{results[0]}_split")
        whole.meta["val"] = [self._example(name) for name in results]
        for number, name in enumerate(results):
            self._record(name, self._call(Call(getitem, (whole, number)), name))

    def _call(self, call: Call, name: str) -> Node:
        return self._graph.create_node("call_function", call.target, call.args, dict(call.kwargs), name=name)

    def _record(self, name: str, node: Node) -> None:
        if node.name != name:
            raise UntranslatableError("has a result whose name Python has another use for")
        node.meta["val"] = self._example(name)
        self._made[name] = node

    def _example(self, name: str) -> torch.Tensor:
        return torch.empty(self._shapes[name][0], device="meta")

    def _operand(self, name: str) -> Node:
        if name not in self._made:
            self._made[name] = self._constant(name)
        return self._made[name]

    def _constant(self, name: str) -> Node:
        """A constant under the path that it has as a parameter; one that follows from shapes is a value by its name."""
        path = name if "." in name else f"constants.{name}"
        folder, _, last = path.rpartition(".")
        holder = _submodule(self._root, folder)
        tensor = torch.from_numpy(self._constants[name].copy())
        if tensor.is_floating_point():
            holder.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        else:
            holder.register_buffer(last, tensor)
        called = f"constant_{re.sub(r'[^0-9A-Za-z]', '_', path)}" if name in self._stored else name
        return self._graph.create_node("get_attr", path, name=called)


def _submodule(root: nn.Module, path: str) -> nn.Module:
    """What is at a path, made where it is missing."""
    for part in filter(None, path.split(".")):
        if part not in dict(root.named_children()):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root
