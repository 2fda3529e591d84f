"""Give the channels between two layers equal ranges: what one layer writes larger, the next reads with smaller weights.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019, arXiv 1906.04721), section
4.1: f(s x) = s f(x) for s > 0 where f is the identity, ReLU or LeakyReLU, and where pooling or resizing lies between,
too. W1 / s, b1 / s and W2 s compute what W1, b1 and W2 do; s = sqrt(r1 / r2) makes the ranges r1 of a channel's
weights in the first layer and r2 in the second one equal. SiLU, ReLU6 and other limits do not allow it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qexport.data.choice import take
from qexport.optimisation.candidate import Candidate, changed_parameters
from qexport.optimisation.rescaling import rescaled
from qexport.planning.plan import QuantPlan
from qexport.programs.program import Program, Region, Value
from qexport.progress import Progress

THROUGH = frozenset({"relu", "leaky_relu", "max_pool", "avg_pool", "resize"})
"""Operations f with f(s x) = s f(x) for a factor s > 0 of each channel."""
LAYERS = ("conv", "conv_transpose")
ROUNDS = 8
"""A layer between two others is in two pairs: each moves what the other has made equal."""
ENOUGH = 1e-2
LARGEST = 64.0
"""Factor of a channel at most: what next to nothing is read from need not become large."""
MAX_IMAGES = 16


class Equalisation:
    """A `WeightPass`: the float function stays, weights, biases and the scales of what is between layers change."""

    name = "equalisation"

    def requires(self, candidate: Candidate, /) -> str:
        """Two layers that a factor can be moved between."""
        return "" if _pairs(candidate) else "no pair of layers has nothing but ReLU, LeakyReLU or pooling between them"

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress, /) -> Candidate:
        """Move factors between layers, and give what is between them scales that leave as much outside as before."""
        pairs, program = _pairs(candidate), candidate.program
        paths = {path for pair in pairs for path in pair.parameters}
        held = {path: program.graph.parameter(path).numpy() for path in sorted(paths)}
        arrays = {path: np.array(array, np.float64, order="C") for path, array in held.items()}
        for _ in range(ROUNDS):
            if max([_equalise(pair, arrays) for pair in pairs]) < ENOUGH:
                break
        changed = candidate.with_parameters({k: torch.from_numpy(v.astype(np.float32)) for k, v in arrays.items()})
        between = tuple(name for pair in pairs for name in pair.between)
        layers = {layer.name: layer for pair in pairs for layer in (pair.first, *pair.readers)}
        return rescaled(candidate, changed, between, tuple(layers.values()), take(images, count=MAX_IMAGES), progress)

    def ensures(self, before: Candidate, after: Candidate, /) -> str:
        """Nothing but the pairs has changed."""
        pairs = _pairs(before)
        allowed = {name for pair in pairs for name in (*pair.between, *pair.parameters)}
        tensors = (name for name, tensor in after.plan.tensors.items() if tensor != before.plan.tensors[name])
        others = (
            name for name in (*changed_parameters(before.program, after.program), *tensors) if name not in allowed
        )
        return next((f"{name} has changed, which is in no pair of layers" for name in others), "")


@dataclass(frozen=True)
class Pair:
    """A layer, all layers that read what it writes, and the values between them, its own first."""

    first: Value
    between: tuple[str, ...]
    readers: tuple[Value, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Paths of what changes: the readers' biases do not."""
        bias = (self.first.bias,) if self.first.bias else ()
        return (self.first.weight, *bias, *(reader.weight for reader in self.readers))


def _pairs(candidate: Candidate) -> tuple[Pair, ...]:
    """Pairs that may be equalised, in order of computation; at least one of a pair has integers."""
    program, plan = candidate.program, candidate.plan
    found = (_pair(program, value) for value in program.values.values())
    return tuple(pair for pair in found if pair and any(map(plan.is_quantised, pair.between)) and _free(plan, pair))


def _pair(program: Program, first: Value) -> Pair | None:
    if not _owns(program, first) or (first.operation == "conv_transpose" and _groups(program, first) > 1):
        return None
    between, current = [first.name], first
    while current.region is Region.BODY and current.name not in program.raw.all:
        readers = program.readers[current.name]
        if readers and all(_owns(program, reader) for reader in readers):
            return Pair(first, tuple(between), readers)
        if len(readers) != 1 or readers[0].operation not in THROUGH:
            return None
        current = readers[0]
        between.append(current.name)
    return None


def _owns(program: Program, value: Value) -> bool:
    """Whether a value is a layer's whose weights and bias no other layer has."""
    used = Counter(path for each in program.values.values() for path in (each.weight, each.bias) if path)
    return value.operation in LAYERS and used[value.weight] == 1 and (not value.bias or used[value.bias] == 1)


def _free(plan: QuantPlan, pair: Pair) -> bool:
    """Whether the scales between two layers may change: nothing prescribes them, and no value elsewhere shares them."""
    tensors = [plan.tensors[name] for name in pair.between if plan.is_quantised(name)]
    groups = {tensor.group for tensor in tensors if tensor.group}
    sharing = {name for name, tensor in plan.tensors.items() if tensor.group in groups}
    return sharing <= {*pair.between} and all(tensor.rule in ("own", "shared") for tensor in tensors)


def _groups(program: Program, layer: Value) -> int:
    kernel = program.graph.parameter(layer.weight).shape
    of = program.values[layer.inputs[0]] if layer.operation == "conv" else layer
    return of.shape[1] // kernel[1]


def _equalise(pair: Pair, arrays: Mapping[str, NDArray[np.float64]]) -> float:
    """Scale a pair's weights and bias in place; return how far the largest factor was from 1, in log2."""
    axis = 0 if pair.first.operation == "conv" else 1
    written = arrays[pair.first.weight]
    wide = _peaks(written, axis)
    read = np.max([_peaks(each, each_axis) for each, each_axis in _by_input(pair, arrays, len(wide))], axis=0)
    usable = (wide > 0) & (read > 0)
    factor = np.sqrt(np.where(usable, wide, 1) / np.where(usable, read, 1)).clip(1 / LARGEST, LARGEST)
    written /= _along(factor, axis, written.ndim)
    if pair.first.bias:
        arrays[pair.first.bias].reshape(-1)[:] /= factor
    for each, each_axis in _by_input(pair, arrays, len(wide)):
        each *= (
            _along(factor, each_axis, each.ndim) if each_axis is not None else factor.reshape(each.shape[0], 1, -1, 1)
        )
    return float(np.abs(np.log2(factor)).max())


def _by_input(
    pair: Pair, arrays: Mapping[str, NDArray[np.float64]], channels: int
) -> Iterator[tuple[NDArray[np.float64], int | None]]:
    """Views of the readers' weights, and the axis of their input channels: None for (groups, out, in, rest)."""
    for reader in pair.readers:
        array = arrays[reader.weight]
        if reader.operation == "conv_transpose":
            yield array, 0
            continue
        groups = channels // array.shape[1]
        yield array.reshape(groups, len(array) // groups, array.shape[1], -1), None


def _peaks(array: NDArray[np.float64], axis: int | None) -> NDArray[np.float64]:
    """Largest magnitude (channels,) along an axis of `_by_input`."""
    magnitudes = np.abs(array)
    if axis is None:
        found: NDArray[np.float64] = magnitudes.max(axis=(1, 3)).reshape(-1)
        return found
    return np.asarray(np.moveaxis(magnitudes, axis, 0).reshape(array.shape[axis], -1).max(axis=1))


def _along(factor: NDArray[np.float64], axis: int, dimensions: int) -> NDArray[np.float64]:
    shape = [1] * dimensions
    shape[axis] = -1
    return factor.reshape(shape)
