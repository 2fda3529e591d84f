"""ONNX layers, pooling and normalisation as torch calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from qexport.programs.onnx.torch_functions import (
    cropped_conv_transpose2d,
    gemm,
    padded_avg_pool2d,
    padded_conv2d,
    padded_max_pool2d,
)
from qexport.programs.onnx.torch_site import Builder, Call, Site, UntranslatableError

aten = torch.ops.aten

CONVOLUTIONS = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
"""Dimensions of a kernel → convolution."""


def _conv(site: Site) -> Call:
    kernel = site.shape(1)[2:]
    ones = [1] * len(kernel)
    strides, dilations = site.attribute("strides", ones), site.attribute("dilations", ones)
    begin, end = _pads(site, kernel, strides, dilations)
    groups = site.attribute("group", 1)
    layer = site.tensor(0), site.tensor(1), site.optional(2), strides
    if begin == end and len(kernel) in CONVOLUTIONS:
        return Call(CONVOLUTIONS[len(kernel)], (*layer, begin, dilations, groups))
    site.images_only()
    return Call(padded_conv2d, (*layer, _sides(begin, end), dilations, groups))


def _conv_transpose(site: Site) -> Call:
    site.images_only()
    kernel, given, made = site.shape(1)[2:], site.shape(0)[2:], site.made[2:]
    strides, dilations = (site.attribute(name, [1, 1]) for name in ("strides", "dilations"))
    more, groups = site.attribute("output_padding", [0, 0]), site.attribute("group", 1)
    whole = [
        (size - 1) * stride + (k - 1) * dilation + 1 + extra
        for size, stride, k, dilation, extra in zip(given, strides, kernel, dilations, more, strict=True)
    ]
    lost = [full - kept for full, kept in zip(whole, made, strict=True)]
    if min(lost) < 0:
        raise UntranslatableError("has no translation with an output that is larger than what the kernel reaches")
    begin, end = _crops(site, lost)
    layer = site.tensor(0), site.tensor(1), site.optional(2), strides
    if begin == end:
        return Call(aten.conv_transpose2d.input, (*layer, begin, more, groups, dilations))
    return Call(cropped_conv_transpose2d, (*layer, _sides(begin, end), more, groups, dilations))


def _crops(site: Site, lost: Sequence[int]) -> tuple[list[int], list[int]]:
    """What a transposed convolution loses at the beginning and at the end of each axis."""
    pads = site.attribute("pads")
    if site.attribute("auto_pad", "NOTSET") == "NOTSET" and site.attribute("output_shape") is None:
        pads = pads or [0] * 2 * len(lost)
        return list(pads[: len(lost)]), list(pads[len(lost) :])
    smaller = [each // 2 for each in lost]
    larger = [each - half for each, half in zip(lost, smaller, strict=True)]
    return (smaller, larger) if site.attribute("auto_pad") == "SAME_UPPER" else (larger, smaller)


def _pads(
    site: Site, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding at the beginning and at the end of each axis."""
    auto = site.attribute("auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        pads = site.attribute("pads", [0] * 2 * len(kernel)) if auto == "NOTSET" else [0] * 2 * len(kernel)
        return list(pads[: len(kernel)]), list(pads[len(kernel) :])
    sizes = zip(site.shape(0)[2:], kernel, strides, dilations, strict=True)
    lacking = [max((-(-size // step) - 1) * step + (k - 1) * spread + 1 - size, 0) for size, k, step, spread in sizes]
    smaller = [each // 2 for each in lacking]
    larger = [each - half for each, half in zip(lacking, smaller, strict=True)]
    return (smaller, larger) if auto == "SAME_UPPER" else (larger, smaller)


def _sides(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """(top, left), (bottom, right) as torch has them: left, right, top, bottom."""
    return [each for pair in reversed(list(zip(begin, end, strict=True))) for each in pair]


def _gemm(site: Site) -> Call:
    alpha, beta = site.attribute("alpha", 1.0), site.attribute("beta", 1.0)
    turned = bool(site.attribute("transA", 0)), bool(site.attribute("transB", 0))
    constants = site.is_constant(1) and (site.is_constant(2) or not site.has(2))
    if constants and alpha == beta == 1 and turned == (False, True):
        return Call(aten.linear.default, (site.tensor(0), site.tensor(1), site.optional(2)))
    return Call(gemm, (site.tensor(0), site.tensor(1), site.optional(2), alpha, beta, *turned))


def _matmul(site: Site) -> Call:
    return Call(aten.matmul.default, (site.tensor(0), site.tensor(1)))


def _max_pool(site: Site) -> Call:
    site.images_only()
    kernel = site.attribute("kernel_shape")
    strides, dilations = site.attribute("strides", [1, 1]), site.attribute("dilations", [1, 1])
    begin, end = _pads(site, kernel, strides, dilations)
    ceil = bool(site.attribute("ceil_mode", 0))
    if begin == end and all(2 * pad <= size for pad, size in zip(begin, kernel, strict=True)):
        return Call(aten.max_pool2d.default, (site.tensor(0), kernel, strides, begin, dilations, ceil))
    return Call(padded_max_pool2d, (site.tensor(0), kernel, strides, _sides(begin, end), dilations, ceil))


def _average_pool(site: Site) -> Call:
    site.images_only()
    site.only(dilations=[1, 1])
    kernel, strides = site.attribute("kernel_shape"), site.attribute("strides", [1, 1])
    begin, end = _pads(site, kernel, strides, [1, 1])
    ceil, counted = bool(site.attribute("ceil_mode", 0)), bool(site.attribute("count_include_pad", 0))
    if begin == end and all(2 * pad <= size for pad, size in zip(begin, kernel, strict=True)):
        return Call(aten.avg_pool2d.default, (site.tensor(0), kernel, strides, begin, ceil, counted))
    site.only(ceil_mode=0)
    return Call(padded_avg_pool2d, (site.tensor(0), kernel, strides, _sides(begin, end), counted))


def _global_average(site: Site) -> Call:
    return Call(aten.mean.dim, (site.tensor(0), list(range(2, len(site.shape()))), True))


def _global_greatest(site: Site) -> Call:
    return Call(aten.amax.default, (site.tensor(0), list(range(2, len(site.shape()))), True))


def _batch_norm(site: Site) -> Call:
    site.only(training_mode=0)
    source, scale, shift, mean, variance = (site.tensor(index) for index in range(5))
    return Call(
        aten.batch_norm.default,
        (source, scale, shift, mean, variance, False, 0.0, site.attribute("epsilon", 1e-5), False),
    )


def _instance_norm(site: Site) -> Call:
    source, scale, shift = (site.tensor(index) for index in range(3))
    epsilon = site.attribute("epsilon", 1e-5)
    return Call(aten.instance_norm.default, (source, scale, shift, None, None, True, 0.0, epsilon, False))


def _layer_norm(site: Site) -> Call:
    shape = site.shape()
    inner = list(shape[site.attribute("axis", -1) % len(shape) :])
    if any(list(site.shape(index)) != inner for index in (1, 2) if site.has(index)):
        raise UntranslatableError("has no translation with a scale of another shape than what it normalises")
    epsilon = site.attribute("epsilon", 1e-5)
    return Call(aten.layer_norm.default, (site.tensor(0), inner, site.tensor(1), site.optional(2), epsilon, False))


LAYERS: Mapping[str, Builder] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_greatest,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
}
