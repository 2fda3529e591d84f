"""A graph that `torch.export` captured and `normalise` brought into its form."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule

from qexport.programs.graph import See
from qexport.programs.graph_module import put, sharing_copy, tensors, with_tensors
from qexport.programs.naming import operation_of
from qexport.programs.program import Program

ARITHMETIC = frozenset({"mul", "add", "sub", "div"})
"""Operations whose whole numbers are operands; those of others are sizes and axes."""


@dataclass(frozen=True, eq=False)
class CapturedGraph:
    """A `Graph` of PyTorch's operations.

    Attributes:
        module: not to be changed: `copied` gives one that may be.
    """

    module: GraphModule

    instrumentable = True
    obstacle = ""
    whole = True

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """See `Graph`: none, because no file has named its values."""
        return {}

    @property
    def outputs(self) -> tuple[str, ...]:
        """See `Graph`."""
        return tuple(f"output{number}" for number in range(len(self.module.graph.output_node().all_input_nodes)))

    def __call__(self, images: Tensor, /) -> Any:
        """Compute the outputs."""
        return self.module(images)

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        return tensors(self.module)

    def parameter(self, path: str, /) -> Tensor:
        """See `Graph`."""
        return self._tensors[path].detach()

    def with_parameters(self, changed: Mapping[str, Tensor], /) -> CapturedGraph:
        """See `Graph`; what is not changed is shared."""
        return CapturedGraph(with_tensors(self.module, changed))

    def fingerprint(self) -> str:
        """See `Graph`."""
        digest = hashlib.sha256(str(self.module.graph).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def constants(self) -> Iterator[tuple[str, NDArray[np.floating]]]:
        """See `Graph`."""
        held = self._tensors
        for node in self.module.graph.nodes:
            if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
                continue
            kinds = (int, float) if operation_of(node) in ARITHMETIC else (float,)
            yield from ((node.name, np.array(float(arg))) for arg in node.args if isinstance(arg, kinds))
            for source in node.all_input_nodes:
                tensor = held.get(str(source.target)) if source.op == "get_attr" else None
                if tensor is not None and tensor.is_floating_point():
                    yield node.name, tensor.detach().numpy()

    def watched(self, names: Collection[str], see: See, /) -> Callable[[Tensor], object]:
        """See `Graph`; values are freed as soon as nothing reads them."""
        module = _channels_last(sharing_copy(self.module))
        nodes = [node for node in module.graph.nodes if node.name in names]
        for number, node in enumerate(nodes):
            module.add_module(f"watch_{number}", _Watch(node.name, see))
            with module.graph.inserting_after(node):
                module.graph.call_module(f"watch_{number}", (node,))
        module.recompile()
        return lambda images: module(images.contiguous(memory_format=torch.channels_last))


class _Watch(nn.Module):
    """Shows a value in the place where it is computed."""

    def __init__(self, name: str, see: See) -> None:
        super().__init__()
        self.name, self.see = name, see

    def forward(self, tensor: Tensor) -> None:
        """Show one run's tensor."""
        self.see(self.name, tensor)


def _channels_last(module: GraphModule) -> GraphModule:
    """Convolutions of this size are a sixth quicker with the channels innermost; results are the same values."""
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default  # a view may not fit the other order
    for path, tensor in tensors(module).items():
        if tensor.dim() == 4:
            put(module, path, tensor.detach().contiguous(memory_format=torch.channels_last))
    return module


def module_of(program: Program) -> GraphModule:
    """The graph of a program as PyTorch's operations, one node for each value, not to be changed.

    That of a checkpoint computes the program's outputs; that of a file ends with a tuple of the raw outputs, in the
    order of `program.raw.all` (`Graph.whole`).

    Raises:
        ConversionError: a file has operators that torch does not compute (`Graph.obstacle`).
    """
    return program.graph.module


def shared_copy(program: Program) -> GraphModule:
    """`module_of` as a copy whose nodes may be changed, and whose weights are the program's own."""
    return sharing_copy(module_of(program))


def on_device(program: Program, device: str) -> GraphModule:
    """`shared_copy` with all tensors on a device of PyTorch's; on the CPU they stay the program's own."""
    graph = shared_copy(program)
    if device == "cpu":
        return graph
    for path, tensor in tensors(graph).items():
        put(graph, path, tensor.detach().to(device))
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.update_kwarg("device", torch.device(device))
    graph.recompile()
    return graph


def copied(program: Program) -> GraphModule:
    """`module_of` as a copy that may be changed, weights included."""
    return copy.deepcopy(module_of(program))
