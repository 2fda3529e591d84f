"""A float graph that came as an ONNX file: run and watched by ONNX Runtime."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import version_converter
from torch import Tensor
from torch.fx import GraphModule

from qexport.errors import ConversionError, first_line
from qexport.programs.graph import See, check_replacement
from qexport.programs.graph_module import tensors, with_tensors
from qexport.programs.onnx.normal_form import OPEN
from qexport.programs.onnx.session import session_options
from qexport.programs.onnx.torch_body import Body, translated
from qexport.programs.onnx.values import MAC_OPERATORS

AT_ONCE = 2**25
"""Elements of watched values that are in memory together, 128 MiB."""


class OnnxGraph:
    """A `Graph` of ONNX operators in its normal form (`normal_form`).

    Attributes:
        names: see `Graph`.
        ends: values that `module` ends with.
        opset: operator set that it is in.
    """

    whole = False

    def __init__(self, model: ir.Model, names: Mapping[str, tuple[str, ...]], ends: Sequence[str] = ()) -> None:
        self.names, self.ends = names, tuple(ends)
        self.proto: onnx.ModelProto = ir.serde.serialize_model(model)
        self.opset = model.opset_imports[""]

    def ending(self, ends: Sequence[str]) -> OnnxGraph:
        """Return the same graph with other `ends`, before its `module` is asked for."""
        made = copy.copy(self)
        made.ends = tuple(ends)
        return made

    @cached_property
    def _body(self) -> Body:
        def run(names: Sequence[str], images: np.ndarray) -> Sequence[np.ndarray]:
            made: list[np.ndarray] = self._watched.run(list(names), {self.input: images})
            return made

        return translated(self.proto, self.shapes, self.ends, run)

    @property
    def module(self) -> GraphModule:
        """See `Graph`; made by the first who asks."""
        if self._body.module is None:
            raise ConversionError(f"torch cannot take the file's graph: {self.obstacle}", "give the .pt file")
        return self._body.module

    @property
    def instrumentable(self) -> bool:
        """See `Graph`."""
        return not self.obstacle

    @property
    def obstacle(self) -> str:
        """See `Graph`: an operator without a translation, or one that torch computes otherwise."""
        return self._body.obstacle

    @property
    def outputs(self) -> tuple[str, ...]:
        """The file's names of its outputs."""
        return tuple(output.name for output in self.proto.graph.output)

    @property
    def content(self) -> bytes:
        """What identifies structure and weights."""
        content: bytes = self.proto.SerializeToString(deterministic=True)
        return content

    def fingerprint(self) -> str:
        """See `Graph`."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def _weights(self) -> dict[str, np.ndarray]:
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in self.proto.graph.initializer}

    def parameter(self, path: str, /) -> Tensor:
        """See `Graph`."""
        return torch.from_numpy(self._weights[path].copy())

    def with_parameters(self, changed: Mapping[str, Tensor], /) -> OnnxGraph:
        """See `Graph`; a file cannot share its weights, so that those that stay are copied."""
        model = ir.serde.deserialize_model(self.proto)
        for path, tensor in changed.items():
            check_replacement(path, self.parameter(path), tensor)
            model.graph.initializers[path].const_value = ir.tensor(tensor.detach().numpy(), name=path)
        made = OnnxGraph(model, self.names, self.ends)
        made.shapes = self.shapes
        if self.instrumentable:
            held = tensors(self.module)
            made._body = Body(with_tensors(self.module, {path: each for path, each in changed.items() if path in held}))
        return made

    def constants(self) -> Iterator[tuple[str, np.ndarray]]:
        """See `Graph`."""
        for node in self.proto.graph.node:
            arrays = (self._weights[name] for name in node.input if name in self._weights)
            yield from ((node.output[0], array) for array in arrays if array.dtype == np.float32)

    def __call__(self, images: Tensor) -> Any:
        """Run once."""
        found = self._watched.run(list(self.outputs), {self.input: _given(images)})
        made = tuple(torch.from_numpy(output) for output in found)
        return made[0] if len(made) == 1 else made

    @property
    def input(self) -> str:
        """The file's name of its input."""
        return str(self.proto.graph.input[0].name)

    @cached_property
    def _watched(self) -> Any:
        """A session of one thread that has every tensor for an output; several threads may run it."""
        import onnxruntime

        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        known = {output.name for output in proto.graph.output}
        made = (name for node in proto.graph.node for name in node.output if name and name not in known)
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        options = session_options(1)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    @cached_property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of every tensor, from a run with as many images as the graph has, or one."""
        given = self.proto.graph.input[0].type.tensor_type.shape.dim
        blank = np.zeros([each.dim_value or 1 for each in given], dtype=np.float32)
        names = [output.name for output in self._watched.get_outputs()]
        arrays = self._watched.run(names, {self.input: blank})
        found = {name: (array.shape, array.dtype) for name, array in zip(names, arrays, strict=True)}
        return {self.input: (blank.shape, blank.dtype), **found}

    def watched(self, names: Collection[str], see: See, /) -> Callable[[Tensor], object]:
        """See `Graph`."""
        groups = list(self._groups([name for name in names if name != self.input]))

        def run(images: Tensor) -> None:
            if self.input in names:
                see(self.input, images)
            for group in groups:
                for name, array in zip(group, self._watched.run(group, {self.input: _given(images)}), strict=True):
                    see(name, torch.from_numpy(array))

        return run

    def _groups(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Values that are in memory together, `AT_ONCE` elements at most."""
        group: list[str] = []
        held = 0
        for name in names:
            size = int(np.prod(self.shapes[name][0]))
            if group and held + size > AT_ONCE:
                yield group
                group, held = [], 0
            group.append(name)
            held += size
        if group:
            yield group

    def exported(self, opset: int) -> ir.Model:
        """Return a copy in an operator set that is at least `opset`.

        Raises:
            ConversionError: ONNX's converter refuses it.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        if opset > self.opset:
            try:
                proto = version_converter.convert_version(proto, opset)
            except Exception as error:  # the converter raises whatever its checks do
                raise ConversionError(
                    f"the model cannot be brought to operator set {opset} ({first_line(error)})", "leave out the format"
                ) from error
        model = ir.serde.deserialize_model(proto)
        self._set_shapes(model)
        return model

    def _set_shapes(self, model: ir.Model) -> None:
        """Note the shapes that tensors had when the graph ran; with an open batch only where nothing else is known."""
        is_open = not isinstance(model.graph.inputs[0].shape[0], int) if model.graph.inputs[0].shape else False
        for node in model.graph:
            for output in node.outputs:
                if output.name not in self.shapes or (is_open and output.shape is not None):
                    continue
                shape, kind = self.shapes[output.name]
                output.type = ir.TensorType(ir.DataType.from_numpy(kind))
                if not is_open:
                    output.shape = ir.Shape(shape)
                elif node.op_type in MAC_OPERATORS:
                    output.shape = ir.Shape([OPEN, *shape[1:]])


def _given(images: Tensor) -> np.ndarray:
    given: np.ndarray = np.ascontiguousarray(images.numpy())
    return given
