"""What weights of layers are multiplied with: weights as rows of a matrix, inputs as the columns that they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional

from qexport.programs.naming import operation_of

MAX_PLACES = 256
"""Places of a layer's output that are looked at in an image: there are up to a hundred thousand."""
MIN_RUNS = 2
"""Of which two can differ."""


@dataclass(frozen=True)
class Geometry:
    """How a layer's weight meets its input.

    Attributes:
        operation: "conv", "linear" or "conv_transpose".
        shape: the weight's.
        stride, padding, dilation: of a convolution, (y, x).
    """

    operation: str
    shape: tuple[int, ...]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def numbers(self) -> int:
        """In the matrices of products of two inputs, one for each group."""
        return self.groups * self.columns**2

    @property
    def columns(self) -> int:
        """Inputs that an output is made of."""
        if self.operation == "conv_transpose":
            return self.shape[0]
        return int(torch.Size(self.shape[1:]).numel())

    @property
    def rows_of_bias(self) -> int:
        """How many numbers a bias has that moves every row alone; 0 where rows share them."""
        return 0 if self.operation == "conv_transpose" else self.shape[0]

    def rows(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as (groups, rows, columns)."""
        if self.operation == "conv_transpose":
            weight = weight.permute(1, 2, 3, 0)
        return weight.reshape(self.groups, -1, self.columns)

    def weight(self, rows: Tensor) -> Tensor:
        """Undo `rows`."""
        if self.operation == "conv_transpose":
            given, *made = self.shape
            return rows.reshape(*made, given).permute(3, 0, 1, 2).contiguous()
        return rows.reshape(self.shape)

    def met(self, source: Tensor, generator: torch.Generator) -> Tensor:
        """Return inputs of some places of the output, (groups, places, columns), chosen by chance."""
        if self.operation == "linear":
            flat = source.reshape(-1, self.columns)
            return flat[_some(len(flat), generator)][None]
        if self.operation == "conv_transpose":
            flat = source.movedim(1, -1).reshape(-1, self.columns)
            return flat[_some(len(flat), generator)][None]
        return self._windows(source, generator)

    def _windows(self, source: Tensor, generator: torch.Generator) -> Tensor:
        (down, right), (tall, wide) = self.padding, self.shape[2:]
        padded = functional.pad(source, (right, right, down, down))
        reach = [d * (k - 1) for d, k in zip(self.dilation, (tall, wide), strict=True)]
        height, width = (
            (size - r - 1) // s + 1 for size, r, s in zip(padded.shape[2:], reach, self.stride, strict=True)
        )
        places = _some(height * width, generator)
        kernel = torch.arange(tall * wide)
        y = (places // width * self.stride[0])[:, None] + kernel // wide * self.dilation[0]
        x = (places % width * self.stride[1])[:, None] + kernel % wide * self.dilation[1]
        windows = padded[:, :, y, x]  # (n, channels, places, kernel)
        count, channels, *rest = windows.shape
        by_group = windows.reshape(count, self.groups, channels // self.groups, *rest)
        return by_group.permute(1, 0, 3, 2, 4).reshape(self.groups, -1, self.columns)


def _some(count: int, generator: torch.Generator) -> Tensor:
    """Up to `MAX_PLACES` of `count` places, sorted."""
    return torch.randperm(count, generator=generator)[:MAX_PLACES].sort().values


def geometry_of(layer: Node, weight: Tensor) -> Geometry | None:
    """How a layer meets its input; None for what is not written as a product here.

    Transposed convolutions are where their windows do not overlap, so that each output is made of one place.
    """
    operation, shape = operation_of(layer), tuple(weight.shape)
    if operation == "linear":
        return Geometry(operation, shape)
    given: list[Any] = [*layer.args, *(None,) * 9]
    if len(shape) != 4:
        return None
    stride, padding = _pair(given[3], 1), _pair(given[4], 0)
    if operation == "conv":
        return Geometry(operation, shape, stride, padding, _pair(given[5], 1), given[6] or 1)
    more, groups, dilation = _pair(given[5], 0), given[6] or 1, _pair(given[7], 1)
    apart = stride == shape[2:] and padding == more == (0, 0) and groups == 1 and dilation == (1, 1)
    return Geometry(operation, shape) if apart else None


def _pair(given: Sequence[int] | int | None, default: int) -> tuple[int, int]:
    if given is None:
        return default, default
    numbers = [given] if isinstance(given, int) else list(given)
    return numbers[0], numbers[-1]


class Moments(nn.Module):
    """Adds up inputs x of a layer, and x x^T, in constant memory; both around the first run's mean."""

    _is_impure = True  # torch.fx keeps its calls, though nothing reads a result

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry, self.generator = geometry, torch.Generator().manual_seed(0)
        self.count = self.runs = 0
        self._origin = self._total = torch.zeros(geometry.groups, geometry.columns, 1)
        self._products = torch.zeros(geometry.groups, geometry.columns, geometry.columns)
        self._squares = torch.zeros(geometry.groups)

    def forward(self, source: Tensor) -> None:
        """Add one run's input."""
        met = self.geometry.met(source, self.generator)
        if not self.runs:
            self._origin = met.mean(dim=1)[..., None]
        met = met - self._origin.transpose(1, 2)
        self.runs += 1
        self.count += met.shape[1]
        self._total = self._total + met.sum(dim=1)[..., None]
        products = met.transpose(1, 2) @ met
        self._products += products
        self._squares += _beside_diagonal(products)

    @property
    def mean(self) -> Tensor:
        """(groups, columns, 1)."""
        return self._origin + self._total / max(self.count, 1)

    @property
    def around_mean(self) -> Tensor:
        """Sums of x x^T with every x less the mean: (groups, columns, columns)."""
        return self._products - self._total @ self._total.transpose(1, 2) / max(self.count, 1)

    @property
    def about_zero(self) -> Tensor:
        """What the mean adds to those of x itself."""
        return self.count * self.mean @ self.mean.transpose(1, 2)

    @property
    def doubt(self) -> Tensor:
        """Which share of what is beside the diagonal is chance, (groups, 1, 1), from 0 to 1.

        Schäfer and Strimmer, "A Shrinkage Approach to Large-Scale Covariance Matrix Estimation" (2005): the variance of
        the mean over runs by its square, both summed. One run alone says nothing.
        """
        if self.runs < MIN_RUNS:
            return torch.ones(len(self._squares), 1, 1)
        mean = _beside_diagonal(self._products / self.runs)
        variance = (self._squares / self.runs - mean) / (self.runs - 1)
        return (variance / mean.clamp(min=torch.finfo(torch.float32).tiny)).clamp(0, 1)[:, None, None]

    @property
    def believed(self) -> Tensor:
        """`around_mean` with what is beside the diagonal made smaller by `doubt`."""
        diagonal = torch.diag_embed(self.around_mean.diagonal(dim1=-2, dim2=-1))
        return torch.lerp(self.around_mean, diagonal, self.doubt)


def _beside_diagonal(matrices: Tensor) -> Tensor:
    """Sum of squares of all but the diagonal, (groups,); row by row, as threads would share one sum between them."""
    squares = matrices.square()
    return squares.sum(dim=2).sum(dim=1) - squares.diagonal(dim1=-2, dim2=-1).sum(dim=1)
