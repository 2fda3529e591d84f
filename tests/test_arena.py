"""The plan of a microcontroller's arena: by hand, and as properties of any graph."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qexport.backends.tflite.operators import FileGraph, FileOperator, FileTensor
from qexport.backends.tflite_micro.arena import Buffer, arena_bytes, buffers_of

CONSTANT = FileTensor(99, (64,), "INT8", np.zeros(64, dtype=np.uint8))


def tensor(index: int, size: int) -> FileTensor:
    return FileTensor(index, (1, size), "INT8", None)


def chain(*sizes: int) -> FileGraph:
    """Each operator reads the result of the one before, and a constant, which lies in flash."""
    tensors = [tensor(index, size) for index, size in enumerate(sizes)]
    operators = tuple(FileOperator("CONV_2D", None, (one, CONSTANT), (two,)) for one, two in pairwise(tensors))
    return FileGraph(operators, (0,), (len(sizes) - 1,))


def test_a_chain_needs_its_largest_neighbours() -> None:
    assert arena_bytes(chain(16, 64, 32, 16)) == 64 + 32
    assert arena_bytes(chain(16, 16, 160, 16)) == 160 + 16


def test_sizes_are_rounded_up_to_sixteen() -> None:
    assert arena_bytes(chain(1, 17)) == 16 + 32


def test_a_branch_stays_until_its_last_reader() -> None:
    """0 → 1 → 2, and 3 = 0 + 2: the first one is needed to the end."""
    steps = [((0,), 1), ((1,), 2), ((0, 2), 3)]
    sizes = {0: 64, 1: 32, 2: 32, 3: 16}
    operators = tuple(
        FileOperator("ADD", None, tuple(tensor(i, sizes[i]) for i in read), (tensor(made, sizes[made]),))
        for read, made in steps
    )
    graph = FileGraph(operators, (0,), (3,))
    assert set(buffers_of(graph)) == {Buffer(64, 0, 2), Buffer(32, 0, 1), Buffer(32, 1, 2), Buffer(16, 2, 2)}
    assert arena_bytes(graph) == 64 + 32 + 32


def test_other_types_have_other_sizes() -> None:
    one = FileTensor(0, (1, 8), "FLOAT32", None)
    two = FileTensor(1, (1, 8), "INT16", None)
    assert arena_bytes(FileGraph((FileOperator("QUANTIZE", None, (one,), (two,)),), (0,), (1,))) == 32 + 16


@given(st.lists(st.integers(min_value=1, max_value=400), min_size=2, max_size=24))
def test_the_plan_lies_between_what_is_needed_at_once_and_everything(sizes: list[int]) -> None:
    """Skips read any earlier tensor; the least is the fullest moment, the most is no sharing at all."""
    picks = np.random.default_rng(sum(sizes))
    tensors = [tensor(index, size) for index, size in enumerate(sizes)]
    operators = tuple(
        FileOperator("ADD", None, (tensors[number], tensors[int(picks.integers(number + 1))]), (tensors[number + 1],))
        for number in range(len(sizes) - 1)
    )
    graph = FileGraph(operators, (0,), (len(sizes) - 1,))
    buffers = list(buffers_of(graph))
    fullest = max(
        sum(buffer.size for buffer in buffers if buffer.first <= moment <= buffer.last)
        for moment in range(len(operators))
    )
    assert fullest <= arena_bytes(graph) <= sum(buffer.size for buffer in buffers)
