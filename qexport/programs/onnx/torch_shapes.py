"""ONNX operators that move elements as torch calls."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch.nn import functional

from qexport.programs.onnx.torch_functions import (
    depth_to_space,
    gathered,
    origins,
    resized,
    rounded,
    sliced,
    space_to_depth,
)
from qexport.programs.onnx.torch_site import Builder, Call, Site, UntranslatableError, same_batch

aten = torch.ops.aten

COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")


def _same(site: Site) -> Call:
    return Call(aten.alias.default, (site.tensor(0),))


def _concat(site: Site) -> Call:
    parts = [site.tensor(index) for index in range(len(site.node.input))]
    return Call(aten.cat.default, (parts, site.attribute("axis")))


def _split(site: Site) -> Call:
    axis = site.attribute("axis", 0)
    sizes = [site.shapes[name][0][axis] for name in site.node.output]
    return Call(aten.split_with_sizes.default, (site.tensor(0), sizes, axis))


def _slice(site: Site) -> Call:
    starts, stops = site.integers(1) or [], site.integers(2) or []
    axes, steps = site.integers(3) or list(range(len(starts))), site.integers(4) or [1] * len(starts)
    limit = sys.maxsize
    within = [max(-limit, min(limit, stop)) for stop in stops]
    return Call(sliced, (site.tensor(0), list(zip(axes, starts, within, steps, strict=True))))


def _reshape(site: Site) -> Call:
    return Call(aten.reshape.default, (site.tensor(0), same_batch(site.shape(), site.made)))


def _transpose(site: Site) -> Call:
    backwards = list(reversed(range(len(site.shape()))))
    return Call(aten.permute.default, (site.tensor(0), site.attribute("perm", backwards)))


def _expand(site: Site) -> Call:
    given, made = site.shape(), site.made
    aligned = (0,) * (len(made) - len(given)) + given
    sizes = [-1 if size == other else size for size, other in zip(made, aligned, strict=True)]
    return Call(aten.expand.default, (site.tensor(0), sizes))


def _tile(site: Site) -> Call:
    return Call(aten.repeat.default, (site.tensor(0), site.integers(1) or []))


def _gather(site: Site) -> Call:
    return Call(gathered, (site.tensor(0), site.tensor(1), site.attribute("axis", 0)))


def _pad(site: Site) -> Call:
    mode, rank = site.attribute("mode", "constant"), len(site.shape())
    numbers = site.integers(1) or []
    axes = [axis % rank for axis in site.integers(3) or range(rank)]
    begin, end = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begin[axis], end[axis] = numbers[place], numbers[place + len(axes)]
    torch_mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(mode)
    outer = any(begin[:2]) or any(end[:2])
    if torch_mode is None or (mode != "constant" and (rank != 4 or outer)):
        raise UntranslatableError(f"has no translation with mode = {mode} of these axes")
    pads = [each for pair in reversed(list(zip(begin, end, strict=True))) for each in pair]
    if mode != "constant":
        return Call(functional.pad, (site.tensor(0), pads[:4]), {"mode": torch_mode})
    value = site.constant(2)
    return Call(aten.constant_pad_nd.default, (site.tensor(0), pads, 0.0 if value is None else float(value)))


def _depth_to_space(site: Site) -> Call:
    depth_first = site.attribute("mode", "DCR") == "DCR"
    return Call(depth_to_space, (site.tensor(0), site.attribute("blocksize"), depth_first))


def _space_to_depth(site: Site) -> Call:
    return Call(space_to_depth, (site.tensor(0), site.attribute("blocksize")))


def _resize(site: Site) -> Call:
    site.only(antialias=0, exclude_outside=0, keep_aspect_ratio_policy="stretch")
    mode, where = site.attribute("mode", "nearest"), site.attribute("coordinate_transformation_mode", "half_pixel")
    nearest = site.attribute("nearest_mode", "round_prefer_floor")
    if mode not in ("nearest", "linear") or where not in COORDINATES:
        raise UntranslatableError(f"has no translation with mode = {mode}, {where}")
    given, made = site.shape(), site.made
    scales = _scales(site)
    changed = [
        (axis, made[axis], scales.get(axis, made[axis] / given[axis]))
        for axis in range(len(given))
        if made[axis] != given[axis] or scales.get(axis, 1.0) != 1.0
    ]
    repeated = all(_repeats(given[axis], size, scale, where, nearest) for axis, size, scale in changed)
    if mode == "nearest" and repeated and [axis for axis, *_ in changed] == [2, 3] and len(given) == 4:
        return Call(aten.upsample_nearest2d.vec, (site.tensor(0), None, [scale for *_, scale in changed]))
    return Call(resized, (site.tensor(0), changed, mode, where, nearest))


def _scales(site: Site) -> dict[int, float]:
    """By axis, where the node says scales, not sizes."""
    scales = site.constant(2)
    if scales is None:
        return {}
    axes = site.attribute("axes") or range(len(site.shape()))
    numbers = (float(scale) for scale in scales)
    return {axis % len(site.shape()): scale for axis, scale in zip(axes, numbers, strict=True)}


def _repeats(given: int, made: int, scale: float, where: str, nearest: str) -> bool:
    """Whether resizing repeats each pixel the same number of times, as torch's own operator does."""
    times = made // given
    if made != times * given or scale != times:
        return False
    wanted = torch.arange(made) // times
    return torch.equal(rounded(origins(given, made, scale, where), nearest, given - 1), wanted)


SHAPES: Mapping[str, Builder] = {
    "Identity": _same,
    "Cast": _same,
    "Dropout": _same,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Gather": _gather,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resize,
}
