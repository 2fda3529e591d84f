"""Graph modules of PyTorch's: their tensors by path, and copies that share what they do not change."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from qexport.programs.graph import check_replacement


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every path that they have."""
    parameters = dict[str, Tensor](module.named_parameters(remove_duplicate=False))
    return parameters | dict(module.named_buffers(remove_duplicate=False))


def sharing_copy(module: GraphModule) -> GraphModule:
    """A copy whose nodes may be changed, and whose tensors are the original's own."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors(module).values()})


def put(module: nn.Module, path: str, tensor: Tensor) -> None:
    """Let a parameter or buffer be another one; the tensor that it was is left as it is."""
    folder, _, name = path.rpartition(".")
    holder = module.get_submodule(folder)
    if name in dict(holder.named_buffers(recurse=False)):
        holder.register_buffer(name, tensor)
    else:
        holder.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def with_tensors(module: GraphModule, changed: Mapping[str, Tensor]) -> GraphModule:
    """A copy that has other parameters, by path; what is not changed is shared.

    Raises:
        KeyError: there is none of that name.
        ValueError: of another shape or type.
    """
    held, made = tensors(module), sharing_copy(module)
    for path, tensor in changed.items():
        check_replacement(path, held[path], tensor)
        for alias in (name for name, each in held.items() if each is held[path]):
            put(made, alias, tensor)
    return made


def nodes_by_name(module: GraphModule) -> dict[str, Node]:
    """The nodes that compute or hold something: PyTorch calls its last one "output", and so may a file call a value."""
    return {node.name: node for node in module.graph.nodes if node.op != "output"}


def end_at(module: GraphModule, nodes: Sequence[Node]) -> GraphModule:
    """Let a graph end at some of its nodes, whose results it then gives as a tuple, and return it."""
    graph = module.graph
    graph.output_node().args = (tuple(nodes),)
    graph.set_codegen(CodeGen())  # what torch.export wrote folds the outputs into the form that they had
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return module
