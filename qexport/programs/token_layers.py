"""Transformer layers in the form in which every runtime has integer kernels for them.

Tokens are maps (batch, channels, tokens, 1), and linear layers are 1 × 1 convolutions of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def pointwise(linear: Any, rows: slice = slice(None), factor: float = 1.0) -> nn.Conv2d:
    """A linear layer, or some rows of one, as a 1 × 1 convolution; its result is multiplied by `factor`."""
    return _pointwise(linear.weight[rows], linear.bias[rows], factor)


def _pointwise(weight: Tensor, bias: Tensor, factor: float = 1.0) -> nn.Conv2d:
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    layer.weight = nn.Parameter(weight.detach()[..., None, None] * factor, requires_grad=False)
    layer.bias = nn.Parameter(bias.detach() * factor, requires_grad=False)
    return layer


def perceptron(layers: Any) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    found: list[nn.Module] = []
    for layer in layers.layers:
        found += [nn.ReLU(), pointwise(layer)] if found else [pointwise(layer)]
    return nn.Sequential(*found)


def as_tokens(maps: Tensor) -> Tensor:
    """(batch, channels, height, width) to (batch, channels, height * width, 1)."""
    return maps.reshape(maps.shape[0], maps.shape[1], -1, 1)


def as_rows(tokens: Tensor) -> Tensor:
    """(batch, channels, tokens, 1) to (batch, tokens, channels)."""
    return tokens.flatten(2).permute(0, 2, 1)


def as_maps(rows: Tensor) -> Tensor:
    """The way back; reshaped and not unsqueezed, which litert-torch 0.10 takes for a change of layout."""
    return rows.permute(0, 2, 1).reshape(rows.shape[0], rows.shape[2], -1, 1)


class Exact(nn.Module):
    """What loses more in integers than it gains: the planner leaves the values that are computed in it in float."""


class Normalised(Exact):
    """Layer normalisation over the channels, of a sum of tokens where there are two."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens: Tensor, others: Tensor | None = None) -> Tensor:
        """(batch, channels, tokens, 1) to the same."""
        total = tokens if others is None else tokens + others
        return as_maps(self.norm(as_rows(total)))


class Attention(nn.Module):
    """Self-attention of `nn.MultiheadAttention`, its packed projections apart."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        width, self.heads = attention.embed_dim, attention.num_heads
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        parts = [slice(start, start + width) for start in (0, width, 2 * width)]
        self.query = _pointwise(weight[parts[0]], bias[parts[0]], (width // self.heads) ** -0.5)
        self.key = _pointwise(weight[parts[1]], bias[parts[1]])
        self.value = _pointwise(weight[parts[2]], bias[parts[2]])
        self.out = pointwise(attention.out_proj)

    def forward(self, located: Tensor, tokens: Tensor) -> Tensor:
        """Tokens with their positions, and without; all (batch, channels, tokens, 1)."""
        query, key = self._heads(self.query(located)), self._heads(self.key(located))
        weights = (query.transpose(2, 3) @ key).softmax(dim=-1)
        mixed = self._heads(self.value(tokens)) @ weights.transpose(2, 3)
        result: Tensor = self.out(mixed.reshape(tokens.shape))
        return result

    def _heads(self, tokens: Tensor) -> Tensor:
        batch, channels, count, _ = tokens.shape
        return tokens.reshape(batch, self.heads, channels // self.heads, count)


class Stem(nn.Module):
    """The first layers of RT-DETR's backbone without paddings of their own: no runtime takes those in integers.

    A 2 × 2 kernel with a border at the right and below is a 3 × 3 kernel whose first row and column are zero. What is
    pooled comes out of a ReLU, so that a border of zeros is none.
    """

    def __init__(self, stem: Any) -> None:
        super().__init__()
        self.stem1, self.stem3, self.stem4 = stem.stem1, stem.stem3, stem.stem4
        self.stem2a, self.stem2b, self.act = _widened(stem.stem2a.conv), _widened(stem.stem2b.conv), stem.stem2a.act

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) to a quarter of the height and width."""
        first = self.stem1(images)
        second = self.act(self.stem2b(self.act(self.stem2a(first))))
        pooled = functional.max_pool2d(first, 2, stride=1, padding=1)[:, :, 1:, 1:]
        result: Tensor = self.stem4(self.stem3(torch.cat((pooled, second), dim=1)))
        return result


def _widened(convolution: Any) -> nn.Conv2d:
    made = nn.Conv2d(convolution.in_channels, convolution.out_channels, 3, padding=1)
    made.weight = nn.Parameter(functional.pad(convolution.weight.detach(), (1, 0, 1, 0)), requires_grad=False)
    made.bias = convolution.bias
    return made


class Added(Exact):
    """A sum of two tensors, as a module so that it can be named."""

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        """Their sum."""
        return tokens + others


class EncoderLayer(nn.Module):
    """RT-DETR's AIFI layer at a fixed size: self-attention over a feature map's cells and a perceptron."""

    positions: Tensor

    def __init__(self, layer: Any, shape: tuple[int, int]) -> None:
        super().__init__()
        height, width = shape
        positions = layer.build_2d_sincos_position_embedding(width, height, layer.fc1.in_features, like=torch.zeros(1))
        self.register_buffer("positions", positions.permute(0, 2, 1)[..., None].contiguous())
        self.attention = Attention(layer.ma)
        self.first, self.second, self.act = pointwise(layer.fc1), pointwise(layer.fc2), layer.act
        self.exact_located = Added()
        self.exact_norm1, self.exact_norm2 = Normalised(layer.norm1), Normalised(layer.norm2)

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        tokens = as_tokens(maps)
        mixed = self.attention(self.exact_located(tokens, self.positions), tokens)
        tokens = self.exact_norm1(tokens, mixed)
        updated: Tensor = self.exact_norm2(tokens, self.second(self.act(self.first(tokens))))
        return updated.reshape(maps.shape)


CORNERS = 4
"""Cells around a point."""


class Sampled(Exact):
    """Multi-scale deformable attention's bilinear sampling, with rows of a table in place of `grid_sample`.

    Zhu et al., "Deformable DETR", 2021. Each point reads four cells of its level, all levels lie in one table, and
    cells beyond the border count as zero: `grid_sample(align_corners=False, padding_mode="zeros")`.
    """

    sizes: Tensor
    corners: Tensor
    starts: Tensor

    def __init__(self, shapes: tuple[tuple[int, int], ...], heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.points, self.levels = heads, points, len(shapes)
        cells = [height * width for height, width in shapes]
        starts = [sum(cells[:level]) for level in range(len(shapes))]
        sizes = torch.tensor([(width, height) for height, width in shapes]).T  # (x and y, levels)
        self.register_buffer("sizes", sizes.float().repeat_interleave(points, 1).repeat(1, CORNERS))
        self.register_buffer("starts", torch.tensor(starts).repeat_interleave(points).repeat(CORNERS))
        corners = torch.tensor([(0.0, 1.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0)])
        self.register_buffer("corners", corners.repeat_interleave(points * len(shapes), 1))

    def forward(self, values: Tensor, offsets: Tensor, logits: Tensor, boxes: Tensor) -> Tensor:
        """Sample around boxes and weigh what was found.

        Args:
            values: (batch, channels, cells of all levels, 1).
            offsets: (batch, heads * levels * points * 2, queries, 1), x and y in parts of half a box's side.
            logits: (batch, heads * levels * points, queries, 1).
            boxes: (batch, queries, 4), centre and size in 0..1.

        Returns:
            (batch, channels, queries, 1).
        """
        batch, channels, cells, _ = values.shape
        width, points = channels // self.heads, self.levels * self.points
        table = as_rows(values).reshape(-1, width)  # a row for each head of a cell: channels last, nothing is moved
        moved = offsets.reshape(batch, self.heads, points, 2, -1)
        column, row = (self._cells(moved[:, :, :, axis].permute(0, 3, 1, 2), boxes, axis) for axis in (0, 1))
        weights = logits.reshape(batch, self.heads, points, -1).softmax(dim=2).permute(0, 3, 1, 2)
        share = torch.cat((weights,) * CORNERS, dim=-1) * column[1] * row[1]
        first = torch.arange(batch).reshape(batch, 1, 1, 1) * cells + self.starts
        cell = (row[0] * self.sizes[0] + column[0]).to(torch.int64) + first
        index = cell * self.heads + torch.arange(self.heads).reshape(self.heads, 1)
        picked = table.index_select(0, index.reshape(-1)).reshape(-1, CORNERS * points, width)
        found = (picked * share.reshape(-1, CORNERS * points, 1)).sum(dim=1)
        rows: Tensor = found.reshape(batch, -1, channels)
        return as_maps(rows)

    def _cells(self, moved: Tensor, boxes: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Along one axis the cells that each point reads, and their share of it: zero for cells that are not there.

        Args:
            moved: (batch, queries, heads, points).

        Returns:
            Both (batch, queries, heads, 4 * points), whole numbers as floats.
        """
        centre, side = boxes[:, :, None, None, axis], boxes[:, :, None, None, axis + 2]
        place = torch.cat((centre + moved * (side * (0.5 / self.points)),) * CORNERS, dim=-1) * self.sizes[axis] - 0.5
        cell = place.floor() + self.corners[axis]
        there = torch.minimum(torch.maximum(cell, torch.zeros(())), self.sizes[axis] - 1)
        return there, (1 - (place - cell).abs()) * (1 - (cell - there).abs().clamp(max=1))
