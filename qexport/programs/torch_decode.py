"""Turn a head's raw per-level outputs into detections, in float: the tail of the program that plans never touch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qexport.detections.layout import MAX_DETECTIONS, HeadLayout
from qexport.errors import InputError

NMS_CANDIDATES = 512
NMS_IOU = 0.7
NMS_ROUNDS = 4


class Decode(nn.Module):
    """Turn raw per-level outputs into detections, in float.

    End-to-end heads give (batch, n, 6 + k), n being `max_detections`: x1, y1, x2, y2 in pixels, score, class index, k
    further values.
    One-to-many heads give (batch, 4 + classes + k, anchors): centre x, centre y, width, height in pixels, class scores;
    non-maximum suppression follows outside, or with `nms` inside, and the output is that of an end-to-end head.
    Further values are mask coefficients, keypoints in pixels with their visibility, or an angle in radians; turned
    boxes are centre and size in either case.

    Where rows are chosen, only those are decoded, a box's values last. Otherwise a box's values lie along the channels,
    as in the output: to turn round all of it at the end took OpenVINO a fortieth of YOLOv8n's time, and arithmetic
    along four values in a row ONNX Runtime a hundredth.

    `unit` multiplies the boxes last. It is one; a backend whose consumers expect coordinates in 0..1 sets it to one
    over the image size.
    """

    anchors: Tensor
    strides: Tensor
    unit: Tensor
    bins: Tensor
    later: Tensor

    def __init__(self, layout: HeadLayout) -> None:
        super().__init__()
        self.layout = layout
        self.chooses = layout.end2end
        self.nms = layout.end2end and layout.head == "one2many"
        self.axis = 2 if self.chooses else 1
        anchors, strides = anchor_points(layout.strides, layout.imgsz)
        self.rows = min(layout.max_detections, anchors.shape[0])
        self.count = min(max(NMS_CANDIDATES, self.rows), anchors.shape[0]) if self.nms else self.rows
        for name, values in {"anchors": anchors, "strides": strides, "unit": torch.ones(1, 4)}.items():
            self.register_buffer(name, values[None] if self.chooses else values.T.contiguous()[None])
        self.register_buffer("bins", torch.arange(self.layout.reg_max, dtype=torch.float32)[:, None])
        if self.nms:
            self.register_buffer("later", torch.ones(self.count, self.count).triu(1)[None])

    def forward(self, boxes: list[Tensor], scores: list[Tensor], extras: list[Tensor] | None = None) -> Tensor:
        """Decode the raw outputs of all levels."""
        if self.chooses:
            rows = self._best(_rows(boxes), _rows(scores), _rows(extras) if extras else None)
            return self._suppressed(rows) if self.nms else rows
        distances = torch.cat([self._expectation(_anchors_first(b)) for b in boxes], dim=1).permute(0, 2, 1)
        logits = torch.cat([s.flatten(2) for s in scores], dim=2)
        rest = torch.cat([f.flatten(2) for f in extras], dim=2) if extras else None
        located = self._located(distances, rest, self.anchors, self.strides)
        return torch.cat((located[0], logits.sigmoid(), *located[1:]), dim=1)

    def _located(
        self, distances: Tensor, rest: Tensor | None, anchors: Tensor, strides: Tensor
    ) -> tuple[Tensor] | tuple[Tensor, Tensor]:
        """Boxes in pixels and what follows them.

        Boxes are corners where rows are chosen, else centre and size; turned ones always the latter.
        """
        before, after = distances.split((2, 2), dim=self.axis)
        if self.layout.extras == "angles":
            assert rest is not None
            rest = rest if self.layout.direct else (rest.sigmoid() - 0.25) * math.pi
            sides = anchors + self._rotated((after - before) * 0.5, rest), before + after
        elif self.chooses:
            sides = anchors - before, anchors + after
        else:
            sides = anchors + (after - before) * 0.5, before + after
        boxes = torch.cat(sides, dim=self.axis) * strides * self.unit
        if rest is None:
            return (boxes,)
        return boxes, self._keypoints(rest, anchors, strides) if self.layout.extras == "keypoints" else rest

    def _rotated(self, offsets: Tensor, angles: Tensor) -> Tensor:
        """Turn offsets by angles in radians."""
        x, y = offsets.split((1, 1), dim=self.axis)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((x * cos - y * sin, x * sin + y * cos), dim=self.axis)

    def _keypoints(self, raw: Tensor, anchors: Tensor, strides: Tensor) -> Tensor:
        axis, values = self.axis, self.axis + 1
        points = raw.unflatten(axis, self.layout.shape)
        offsets, visibility = points.split((2, self.layout.shape[1] - 2), dim=values)
        if not self.layout.direct:
            offsets = offsets * 2.0 - 0.5
        unit = self.unit.narrow(axis, 0, 2)
        pixels: Tensor = (offsets + anchors.unsqueeze(axis)) * strides.unsqueeze(axis) * unit.unsqueeze(axis)
        if self.layout.shape[1] == 3:
            pixels = torch.cat((pixels, visibility.sigmoid()), dim=values)
        return pixels.flatten(axis, values)

    def _expectation(self, raw: Tensor) -> Tensor:
        """Distances (batch, n, 4) of raw boxes (batch, n, 4 · reg_max).

        The expected value of a discretised distribution: Li et al., "Generalized Focal Loss", 2020.
        """
        if self.layout.reg_max == 1:
            return raw
        probabilities = raw.reshape(*raw.shape[:2], 4, self.layout.reg_max).softmax(dim=-1)
        return (probabilities @ self.bins).reshape(*raw.shape[:2], 4)

    def _best(self, boxes: Tensor, logits: Tensor, rest: Tensor | None) -> Tensor:
        """Decode rows of the highest scores: first anchors by their best class, then (anchor, class) pairs of those.

        What follows a box in its row stays with it.
        """
        anchor = logits.amax(dim=-1).topk(self.count, dim=1).indices
        candidates = rows_of(logits, anchor).flatten(1)
        best, pair = candidates.topk(self.count, dim=1)
        row = torch.div(pair, self.layout.classes, rounding_mode="floor")
        label = pair - row * self.layout.classes
        chosen = rows_of(anchor[..., None], row)[..., 0]
        distances = self._expectation(rows_of(boxes, chosen))
        places = [each[0].index_select(0, chosen.reshape(-1)) for each in (self.anchors, self.strides)]
        anchors, strides = (each.reshape(*chosen.shape, -1) for each in places)
        located, *following = self._located(
            distances, None if rest is None else rows_of(rest, chosen), anchors, strides
        )
        scores = best.sigmoid()[..., None], label[..., None].to(boxes.dtype)
        return torch.cat((located, *scores, *following), dim=-1)

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
        best = (scores * kept)[..., 0].topk(self.rows, dim=1)
        chosen = rows_of(rows, best.indices)
        return torch.cat((chosen[..., :4], best.values[..., None], chosen[..., 5:]), dim=-1)


def max_detections(head: Any) -> int:
    """How many rows an end-to-end output has at most: the head's own `max_det`, Ultralytics' 300 unless changed.

    Raises:
        InputError: it is no such number.
    """
    own = getattr(head, "max_det", MAX_DETECTIONS)
    if isinstance(own, bool) or not isinstance(own, int) or own < 1:
        raise InputError(f"max_det of the checkpoint's head is {own!r}", "set it to a whole number of 1 or more")
    return own


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


def _rows(levels: Sequence[Tensor]) -> Tensor:
    """Raw outputs of all levels as (batch, anchors, c)."""
    return torch.cat([_anchors_first(level) for level in levels], dim=1)


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
