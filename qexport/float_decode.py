"""Turn a head's raw per-level outputs into detections, in float: the tail of the program that plans never touch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MAX_DETECTIONS = 300
"""Rows that an end-to-end output has."""

NMS_CANDIDATES = 512
NMS_IOU = 0.7
NMS_ROUNDS = 4


@dataclass(frozen=True)
class Further:
    """What a head says of each anchor besides box and classes.

    Attributes:
        kind: "coefficients" of masks, "keypoints", "angles", or "" for nothing.
        shape: (how many, values of each): keypoints have x, y and perhaps their visibility.
        newer: the way of YOLO26, whose angles and keypoint offsets need no further arithmetic.
    """

    kind: str = ""
    shape: tuple[int, int] = (0, 0)
    newer: bool = False


NOTHING = Further()


class Decode(nn.Module):
    """Turn raw per-level outputs into detections, in float.

    End-to-end heads give (batch, 300, 6 + k): x1, y1, x2, y2 in pixels, score, class index, k further values.
    One-to-many heads give (batch, 4 + classes + k, anchors): centre x, centre y, width, height in pixels, class scores;
    non-maximum suppression follows outside, or with `nms` inside, and the output is that of an end-to-end head.
    Further values are mask coefficients, keypoints in pixels with their visibility, or an angle in radians; turned
    boxes are centre and size in either case.

    `unit` multiplies the boxes last. It is one; a backend whose consumers expect coordinates in 0..1 sets it to one
    over the image size.
    """

    anchors: Tensor
    strides: Tensor
    unit: Tensor
    bins: Tensor
    later: Tensor

    def __init__(self, head: Any, end2end: bool, imgsz: tuple[int, int], nms: bool, further: Further = NOTHING) -> None:
        super().__init__()
        self.further = further
        self.end2end = end2end
        self.nms = nms
        self.classes = int(head.nc)
        self.reg_max = int(head.reg_max)
        self.levels = tuple(int(s) for s in head.stride)
        anchors, strides = anchor_points(self.levels, imgsz)
        self.count = min(NMS_CANDIDATES if nms else MAX_DETECTIONS, anchors.shape[0])
        self.register_buffer("anchors", anchors[None])
        self.register_buffer("strides", strides[None])
        self.register_buffer("unit", torch.ones(1, 1, 4))
        self.register_buffer("bins", torch.arange(self.reg_max, dtype=torch.float32)[:, None])
        if nms:
            self.register_buffer("later", torch.ones(self.count, self.count).triu(1)[None])

    def forward(self, boxes: list[Tensor], scores: list[Tensor], further: list[Tensor] | None = None) -> Tensor:
        """Decode the raw outputs of all levels."""
        distances = torch.cat([_anchors_first(b) for b in boxes], dim=1)
        logits = self._joined(scores)
        if self.reg_max > 1:
            distances = self._expectation(distances)
        rest = self._rest(torch.cat([_anchors_first(f) for f in further], dim=1)) if further else None
        located = self._located(distances, rest) * self.strides * self.unit
        if self.end2end or self.nms:
            rows = self._best(located if rest is None else torch.cat((located, rest), dim=-1), logits)
            return self._suppressed(rows) if self.nms else rows
        parts = (located.permute(0, 2, 1), logits.sigmoid())
        return torch.cat(parts if rest is None else (*parts, rest.permute(0, 2, 1)), dim=1)

    def _joined(self, scores: list[Tensor]) -> Tensor:
        """Logits of all levels: (batch, anchors, classes) to choose rows of, else (batch, classes, anchors)."""
        if self.end2end or self.nms:
            return torch.cat([_anchors_first(s) for s in scores], dim=1)
        # As the output has them: to turn round all of it at the end took OpenVINO a fortieth of YOLOv8n's time.
        return torch.cat([s.flatten(2) for s in scores], dim=2)

    def _located(self, distances: Tensor, rest: Tensor | None) -> Tensor:
        """Boxes in strides: corners for an end-to-end head, else centre and size; turned ones always the latter."""
        before, after = distances.split((2, 2), dim=-1)
        if self.further.kind == "angles":
            assert rest is not None
            return torch.cat((self.anchors + _turned((after - before) * 0.5, rest), before + after), dim=-1)
        corners = self.anchors - before, self.anchors + after
        if self.end2end or self.nms:
            return torch.cat(corners, dim=-1)
        return torch.cat(((corners[0] + corners[1]) * 0.5, corners[1] - corners[0]), dim=-1)

    def _rest(self, raw: Tensor) -> Tensor:
        """Further values of each anchor, (batch, anchors, k), as the output has them."""
        if self.further.kind == "angles":
            return raw if self.further.newer else (raw.sigmoid() - 0.25) * math.pi
        if self.further.kind == "keypoints":
            return self._keypoints(raw)
        return raw

    def _keypoints(self, raw: Tensor) -> Tensor:
        batch, anchors, _ = raw.shape
        points = raw.reshape(batch, anchors, *self.further.shape)
        offsets = points[..., :2] if self.further.newer else points[..., :2] * 2.0 - 0.5
        pixels = (offsets + self.anchors[:, :, None]) * self.strides[:, :, None] * self.unit[:, :, None, :2]
        if self.further.shape[1] == 3:
            pixels = torch.cat((pixels, points[..., 2:].sigmoid()), dim=-1)
        return pixels.reshape(batch, anchors, -1)

    def _expectation(self, distances: Tensor) -> Tensor:
        """Expected value of the discretised distance distribution (Li et al., "Generalized Focal Loss", 2020)."""
        batch, anchors, _ = distances.shape
        probabilities = distances.reshape(batch, anchors, 4, self.reg_max).softmax(dim=-1)
        return (probabilities @ self.bins).reshape(batch, anchors, 4)

    def _best(self, boxes: Tensor, logits: Tensor) -> Tensor:
        """Keep the highest scores: first anchors by their best class, then (anchor, class) pairs among those.

        What follows a box in its row stays with it.
        """
        anchor = logits.amax(dim=-1).topk(self.count, dim=1).indices
        candidates = rows_of(logits, anchor).flatten(1)
        best, pair = candidates.topk(self.count, dim=1)
        row = torch.div(pair, self.classes, rounding_mode="floor")
        label = pair - row * self.classes
        chosen = rows_of(rows_of(boxes, anchor), row)
        scores = best.sigmoid()[..., None], label[..., None].to(boxes.dtype)
        if not self.further.kind:
            return torch.cat((chosen, *scores), dim=-1)
        return torch.cat((chosen[..., :4], *scores, chosen[..., 4:]), dim=-1)

    def _suppressed(self, rows: Tensor) -> Tensor:
        """Give overlapped rows of the same class score 0 and keep the best.

        Rounds of matrix products in place of a loop over boxes: Zheng et al., "Enhancing Geometric Factors in Model
        Learning and Inference for Object Detection" (Cluster-NMS, 2020). Each round settles one more link in a chain
        of overlaps; equal to greedy NMS where chains are no longer than `NMS_ROUNDS`.
        """
        boxes, scores, labels = rows.split((4, 1, 1), dim=-1)
        overlaps = (_pairwise_iou(boxes) > NMS_IOU) & (labels == labels.transpose(1, 2))
        beats = overlaps.to(rows.dtype) * self.later
        kept = torch.ones_like(scores)
        for _ in range(NMS_ROUNDS):
            kept = 1 - (beats * kept).amax(dim=1)[..., None]
        best = (scores * kept)[..., 0].topk(min(MAX_DETECTIONS, self.count), dim=1)
        chosen = rows_of(rows, best.indices)
        return torch.cat((chosen[..., :4], best.values[..., None], chosen[..., 5:]), dim=-1)


def _turned(offsets: Tensor, angles: Tensor) -> Tensor:
    """Turn offsets (batch, anchors, 2) by angles (batch, anchors, 1) in radians."""
    x, y = offsets.split((1, 1), dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((x * cos - y * sin, x * sin + y * cos), dim=-1)


def _pairwise_iou(boxes: Tensor) -> Tensor:
    """(batch, n, 4) corners to (batch, n, n) intersection over union."""
    first, second = boxes[:, :, None], boxes[:, None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    sides = sides.relu()
    shared = sides[..., 0] * sides[..., 1]
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return shared / (areas[:, :, None] + areas[:, None] - shared + 1e-7)


def rows_of(values: Tensor, index: Tensor) -> Tensor:
    """Select rows of (batch, n, c) by (batch, k).

    Flat row numbers, because a gather along an axis becomes one index for each element in most runtimes.
    """
    batch, rows, width = values.shape
    offset = torch.arange(batch)[:, None] * rows
    return values.reshape(-1, width).index_select(0, (index + offset).reshape(-1)).reshape(batch, -1, width)


def _anchors_first(raw: Tensor) -> Tensor:
    """(batch, c, h, w) to (batch, h * w, c): in a channels-last runtime this moves no data."""
    return raw.permute(0, 2, 3, 1).reshape(raw.shape[0], -1, raw.shape[1])


def anchor_points(strides: Sequence[int], imgsz: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return cell centres (anchors, 2) as x, y in units of their stride, and the strides (anchors, 1) in pixels."""
    points, sizes = [], []
    for stride in strides:
        height, width = imgsz[0] // stride, imgsz[1] // stride
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        points.append(torch.stack((x, y), dim=-1).reshape(-1, 2))
        sizes.append(torch.full((height * width, 1), float(stride)))
    return torch.cat(points), torch.cat(sizes)
