"""Split a YOLO detection head into its raw per-level outputs and the float decode behind them.

Ultralytics concatenates boxes and scores of all levels before it decodes them; quantised as written, pixels and
probabilities would share one scale. Here each raw convolution output stays a value of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qexport.errors import InputError

MAX_DETECTIONS = 300
"""Rows that an end-to-end output has."""

NMS_CANDIDATES = 512
NMS_IOU = 0.7
NMS_ROUNDS = 4


class DetectionProgram(nn.Module):
    """The whole float program of a detector: backbone, neck, raw head outputs, decode.

    Input: (batch, channels, height, width) float32 in 0..1, RGB.
    Output: see `Decode`.
    """

    def __init__(self, model: Any, end2end: bool, imgsz: tuple[int, int], nms: bool = False) -> None:
        super().__init__()
        self.model = model.model
        self.save = frozenset(model.save)
        self.decode = Decode(model.model[-1], end2end, imgsz, nms)

    def forward(self, images: Tensor) -> Tensor:
        """Return the decoded output."""
        boxes, scores = self.raw_outputs(images)
        decoded: Tensor = self.decode(boxes, scores)
        return decoded

    def raw_outputs(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the box and class logits of each level, (batch, 4 * reg_max or classes, height_l, width_l)."""
        features = self._features(images)
        head: Any = self.model[-1].one2one if self.decode.end2end else self.model[-1].one2many
        boxes = [convolutions(f) for convolutions, f in zip(head["box_head"], features, strict=True)]
        scores = [convolutions(f) for convolutions, f in zip(head["cls_head"], features, strict=True)]
        return boxes, scores

    def _features(self, value: Tensor) -> list[Tensor]:
        kept: list[Any] = []
        for layer in list(self.model)[:-1]:
            value = layer(_inputs(layer.f, value, kept))
            kept.append(value if layer.i in self.save else None)
        selected = _inputs(self.model[-1].f, value, kept)
        return list(selected)


def _inputs(sources: int | Sequence[int], latest: Any, kept: Sequence[Any]) -> Any:
    if isinstance(sources, int):
        return latest if sources == -1 else kept[sources]
    return [latest if source == -1 else kept[source] for source in sources]


class Decode(nn.Module):
    """Turn raw per-level outputs into detections, in float.

    End-to-end heads give (batch, 300, 6): x1, y1, x2, y2 in pixels, score, class index.
    One-to-many heads give (batch, 4 + classes, anchors): centre x, centre y, width, height in pixels, class scores;
    non-maximum suppression follows outside, or with `nms` inside, and the output is that of an end-to-end head.

    `unit` multiplies the boxes last. It is one; a backend whose consumers expect coordinates in 0..1 sets it to one
    over the image size.
    """

    anchors: Tensor
    strides: Tensor
    unit: Tensor
    bins: Tensor
    later: Tensor

    def __init__(self, head: Any, end2end: bool, imgsz: tuple[int, int], nms: bool) -> None:
        super().__init__()
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

    def forward(self, boxes: list[Tensor], scores: list[Tensor]) -> Tensor:
        """Decode the raw outputs of all levels."""
        distances = torch.cat([_anchors_first(b) for b in boxes], dim=1)
        logits = torch.cat([_anchors_first(s) for s in scores], dim=1)
        if self.reg_max > 1:
            distances = self._expectation(distances)
        before, after = distances.split((2, 2), dim=-1)
        corners = self.anchors - before, self.anchors + after
        if self.end2end or self.nms:
            rows = self._best(torch.cat(corners, dim=-1) * self.strides * self.unit, logits)
            return self._suppressed(rows) if self.nms else rows
        centre, size = (corners[0] + corners[1]) * 0.5, corners[1] - corners[0]
        located = torch.cat((centre, size), dim=-1) * self.strides * self.unit
        return torch.cat((located, logits.sigmoid()), dim=-1).permute(0, 2, 1)

    def _expectation(self, distances: Tensor) -> Tensor:
        """Expected value of the discretised distance distribution (Li et al., "Generalized Focal Loss", 2020)."""
        batch, anchors, _ = distances.shape
        probabilities = distances.reshape(batch, anchors, 4, self.reg_max).softmax(dim=-1)
        return (probabilities @ self.bins).reshape(batch, anchors, 4)

    def _best(self, boxes: Tensor, logits: Tensor) -> Tensor:
        """Keep the highest scores: first anchors by their best class, then (anchor, class) pairs among those."""
        anchor = logits.amax(dim=-1).topk(self.count, dim=1).indices
        candidates = _rows(logits, anchor).flatten(1)
        best, pair = candidates.topk(self.count, dim=1)
        row = torch.div(pair, self.classes, rounding_mode="floor")
        label = pair - row * self.classes
        chosen = _rows(_rows(boxes, anchor), row)
        return torch.cat((chosen, best.sigmoid()[..., None], label[..., None].to(boxes.dtype)), dim=-1)

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
        chosen = _rows(rows, best.indices)
        return torch.cat((chosen[..., :4], best.values[..., None], chosen[..., 5:]), dim=-1)


def _pairwise_iou(boxes: Tensor) -> Tensor:
    """(batch, n, 4) corners to (batch, n, n) intersection over union."""
    first, second = boxes[:, :, None], boxes[:, None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    sides = sides.relu()
    shared = sides[..., 0] * sides[..., 1]
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return shared / (areas[:, :, None] + areas[:, None] - shared + 1e-7)


def _rows(values: Tensor, index: Tensor) -> Tensor:
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


def split_head(model: Any, head: str | None, imgsz: tuple[int, int], nms: bool = False) -> DetectionProgram:
    """Select and fuse one head of an Ultralytics detection model and split it.

    Args:
        model: an unfused `DetectionModel` in eval mode; it is fused in place.
        head: "end2end", "one2many", or None for end-to-end where the model has it.
        imgsz: (height, width) in pixels.
        nms: suppress overlaps inside the program; for the one-to-many head, which it selects unless `head` says so.

    Raises:
        InputError: the model has no such head, or one that cannot be split yet.
    """
    from ultralytics.nn.modules.head import Detect

    layer = model.model[-1]
    if type(layer) is not Detect:
        kind = type(layer).__name__
        raise InputError(f"head {kind} is not supported", "give a detection checkpoint (YOLO26, YOLO11, YOLOv8)")
    has_end2end = getattr(layer, "one2one_cv2", None) is not None
    if head == "end2end" and not has_end2end:
        raise InputError("this checkpoint has no end-to-end head", "use --head one2many")
    if head == "one2many" and layer.cv2 is None:
        raise InputError("this checkpoint's one-to-many head was removed by fusion", "use --head end2end")
    end2end = has_end2end and not nms if head is None else head == "end2end"
    if end2end and nms:
        raise InputError("the end-to-end head needs no NMS", "leave out --nms, or use --head one2many")
    layer.end2end = end2end
    fused = model.fuse(verbose=False)
    return DetectionProgram(fused, end2end, imgsz, nms).eval()
