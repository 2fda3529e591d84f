"""How much memory a file's activations need at the same time on a microcontroller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qexport.backends.tflite.operators import FileGraph

ALIGNMENT = 16
"""Bytes that TensorFlow Lite Micro rounds every buffer up to."""


@dataclass(frozen=True)
class Buffer:
    """Bytes that are needed from one operator to another, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at the same time."""
        return self.first <= other.last and other.first <= self.last


def arena_bytes(graph: FileGraph) -> int:
    """Bytes for all activations, as TensorFlow Lite Micro's greedy planner lays them out.

    Largest first, each at the lowest place that is free for as long as it is needed (Pisarchyk and Lee, "Efficient
    Memory Management for Deep Neural Net Inference", 2020).
    """
    placed: list[tuple[int, Buffer]] = []
    latest_first = list(buffers_of(graph))[::-1]  # decides between buffers of one size, as there
    for buffer in sorted(latest_first, key=lambda buffer: -buffer.size):
        rivals = [(offset, other.size) for offset, other in placed if other.meets(buffer)]
        placed.append((_lowest_gap(buffer.size, sorted(rivals)), buffer))
    return max((offset + buffer.size for offset, buffer in placed), default=0)


def _lowest_gap(size: int, taken: list[tuple[int, int]]) -> int:
    """The lowest offset with room for `size` between (offset, size) pairs, which are in order."""
    free = 0
    for offset, length in taken:
        if offset - free >= size:
            break
        free = max(free, offset + length)
    return free


def buffers_of(graph: FileGraph) -> Iterator[Buffer]:
    """Every activation, from the operator that writes it to the last one that reads it."""
    first = dict.fromkeys(graph.inputs, 0)
    last: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for number, operator in enumerate(graph.operators):
        for tensor in (*operator.inputs, *operator.outputs):
            if tensor.data is None:
                sizes[tensor.index] = tensor.bytes
                first.setdefault(tensor.index, number)
                last[tensor.index] = number
    last.update(dict.fromkeys(graph.outputs, len(graph.operators) - 1))
    for index in sorted(sizes):
        yield Buffer(-(-sizes[index] // ALIGNMENT) * ALIGNMENT, first[index], last[index])
