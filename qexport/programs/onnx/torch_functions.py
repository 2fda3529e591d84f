"""ONNX operators that PyTorch has no single operator for, as functions on tensors: one node of a graph for each value.

Layers take their arguments in the order of ATen's: input, weight, bias, the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import inf

import torch
from torch import Tensor
from torch.nn import functional


def padded_conv2d(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolution with other padding on one side than on the other: (left, right, top, bottom)."""
    padded = functional.pad(source, list(pads))
    return functional.conv2d(padded, weight, bias, list(stride), 0, list(dilation), groups)


def cropped_conv_transpose2d(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    crops: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Tensor:
    """Transposed convolution that loses other numbers of pixels on each side: (left, right, top, bottom)."""
    made = functional.conv_transpose2d(
        source, weight, bias, list(stride), 0, list(output_padding), groups, list(dilation)
    )
    return functional.pad(made, [-crop for crop in crops])


def gemm(
    one: Tensor, other: Tensor, added: Tensor | None, alpha: float, beta: float, turn_one: bool, turn_other: bool
) -> Tensor:
    """Alpha one other + beta added, with what is turned transposed."""
    product = alpha * ((one.T if turn_one else one) @ (other.T if turn_other else other))
    return product if added is None else product + beta * added


def prelu(source: Tensor, slope: Tensor) -> Tensor:
    """Negative numbers times a slope of any shape that fits."""
    return torch.where(source > 0, source, slope * source)


def hard_sigmoid(source: Tensor, alpha: float, beta: float) -> Tensor:
    """A line of slope alpha through (0, beta), cut at 0 and 1."""
    return (alpha * source + beta).clamp(0, 1)


def greatest(*sources: Tensor) -> Tensor:
    """Element by element."""
    return reduce(torch.maximum, sources)


def least(*sources: Tensor) -> Tensor:
    """Element by element."""
    return reduce(torch.minimum, sources)


def total(*sources: Tensor) -> Tensor:
    """Element by element."""
    return reduce(torch.add, sources)


def sliced(source: Tensor, cuts: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """Cut along axes: (axis, start, stop, step), as Python counts them; steps may go back."""
    for axis, start, stop, step in cuts:
        places = range(*slice(start, stop, step).indices(source.shape[axis]))
        if step > 0:
            source = torch.ops.aten.slice.Tensor(source, axis, places.start, max(places.start, places.stop), step)
        else:
            source = source.index_select(axis, torch.tensor(places, dtype=torch.int64, device=source.device))
    return source


def gathered(source: Tensor, index: Tensor, axis: int) -> Tensor:
    """What stands at the places of an index of any shape along an axis; negative ones count from the end."""
    size, axis = source.shape[axis], axis % source.dim()
    places = torch.where(index < 0, index + size, index)
    shape = (*source.shape[:axis], *index.shape, *source.shape[axis + 1 :])
    return source.index_select(axis, places.flatten()).reshape(shape)


def padded_max_pool2d(
    source: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
) -> Tensor:
    """Largest of each window, with padding (left, right, top, bottom) that never is."""
    padded = functional.pad(source, list(pads), value=-inf)
    return functional.max_pool2d(padded, list(kernel), list(stride), 0, list(dilation), ceil)


def padded_avg_pool2d(
    source: Tensor, kernel: Sequence[int], stride: Sequence[int], pads: Sequence[int], counted: bool
) -> Tensor:
    """Mean of each window, with padding (left, right, top, bottom) that counts as zeros or not at all."""
    made = functional.avg_pool2d(functional.pad(source, list(pads)), list(kernel), list(stride))
    if counted:
        return made
    inside = functional.pad(torch.ones_like(source[:1, :1]), list(pads))
    return made / functional.avg_pool2d(inside, list(kernel), list(stride))


def depth_to_space(source: Tensor, block: int, depth_first: bool) -> Tensor:
    """(n, c b b, h, w) → (n, c, h b, w b); the block comes before channels (`depth_first`, DCR) or after (CRD)."""
    if not depth_first:
        return functional.pixel_shuffle(source, block)
    batch, channels, height, width = source.shape
    parts = source.reshape(batch, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, channels // block**2, height * block, width * block)


def space_to_depth(source: Tensor, block: int) -> Tensor:
    """(n, c, h b, w b) → (n, b b c, h, w), channels vary fastest."""
    batch, channels, height, width = source.shape
    parts = source.reshape(batch, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(batch, channels * block**2, height // block, width // block)


def resized(source: Tensor, axes: Sequence[tuple[int, int, float]], mode: str, where: str, nearest: str) -> Tensor:
    """Resize along (axis, new size, scale), as ONNX defines it (Resize-18).

    Args:
        mode: "nearest" or "linear".
        where: coordinate transformation mode.
        nearest: nearest mode.
    """
    for axis, size, scale in axes:
        places = origins(source.shape[axis], size, scale, where).to(source.device)
        last = source.shape[axis] - 1
        if mode == "nearest":
            source = source.index_select(axis, rounded(places, nearest, last))
            continue
        places = places.clamp(0, last)
        below = places.floor().long()
        shape = [-1 if each == axis else 1 for each in range(source.dim())]
        share = (places - below).to(source.dtype).view(shape)
        above = (below + 1).clamp(max=last)
        source = source.index_select(axis, below) * (1 - share) + source.index_select(axis, above) * share
    return source


def origins(given: int, made: int, scale: float, where: str) -> Tensor:
    """Where each pixel of an axis comes from, (made,) float32, for ONNX's coordinate transformation modes."""
    pixels = torch.arange(made, dtype=torch.float32)
    if where == "asymmetric":
        return pixels / scale
    if where == "align_corners":
        return pixels * ((given - 1) / (made - 1)) if made > 1 else torch.zeros(1)
    if where == "pytorch_half_pixel" and made == 1:
        return torch.zeros(1)
    return (pixels + 0.5) / scale - 0.5


def rounded(places: Tensor, how: str, last: int) -> Tensor:
    """The pixel that is taken for each place, int64, for ONNX's nearest modes."""
    whole = {
        "floor": places.floor(),
        "ceil": places.ceil(),
        "round_prefer_ceil": (places + 0.5).floor(),
        "round_prefer_floor": (places - 0.5).ceil(),
    }[how]
    return whole.clamp(0, last).long()
