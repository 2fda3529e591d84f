"""The operators of a `.tflite` file with their tensors, for checks against what a device can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.tflite.file import load_file, operator_names, type_names

ITEM_BYTES = {"BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "FLOAT16": 2, "INT32": 4, "FLOAT32": 4, "INT64": 8}


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a file.

    Attributes:
        index: its place in the file: operators that share a tensor name the same one.
        dtype: as the schema names it.
        data: raw bytes of a constant, None for activations.
    """

    index: int
    shape: tuple[int, ...]
    dtype: str
    data: NDArray[np.uint8] | None

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return int(np.prod(self.shape)) * ITEM_BYTES[self.dtype]

    @property
    def integers(self) -> NDArray[np.int32] | None:
        """Values of an INT32 constant, such as paddings, in its shape; None for anything else."""
        if self.data is None or self.dtype != "INT32":
            return None
        return self.data.view(np.int32).reshape(self.shape)


@dataclass(frozen=True)
class FileOperator:
    """An operator of a file, in the order of execution."""

    kind: str
    options: Any
    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]


@dataclass(frozen=True)
class FileGraph:
    """A file's operators, and the indices of the tensors that it takes and gives."""

    operators: tuple[FileOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_graph(path: Path) -> FileGraph:
    """Read a file's only subgraph."""
    model = load_file(path)
    graph = model.subgraphs[0]
    ends = (tuple(int(index) for index in side) for side in (graph.inputs, graph.outputs))
    return FileGraph(tuple(_operators(model)), *ends)


def _operators(model: Any) -> Iterator[FileOperator]:
    graph, kinds, types = model.subgraphs[0], operator_names(), type_names()

    def tensor(index: int) -> FileTensor:
        stored = graph.tensors[index]
        data = model.buffers[stored.buffer].data
        constant = None if data is None or not len(data) else np.asarray(data, dtype=np.uint8)
        shape = tuple(int(size) for size in (stored.shape if stored.shape is not None else ()))
        return FileTensor(int(index), shape, types[stored.type], constant)

    for operator in graph.operators:
        yield FileOperator(
            kinds[model.operatorCodes[operator.opcodeIndex].builtinCode],
            operator.builtinOptions,
            tuple(tensor(index) for index in operator.inputs if index >= 0),
            tuple(tensor(index) for index in operator.outputs),
        )
