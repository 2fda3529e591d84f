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


class DetectionProgram(nn.Module):
    """The whole float program of a detector: backbone, neck, raw head outputs, decode.

    Input: (batch, channels, height, width) float32 in 0..1, RGB.
    Output: see `Decode`.
    """

    def __init__(self, model: Any, end2end: bool, imgsz: tuple[int, int], max_detections: int = 300) -> None:
        super().__init__()
        self.model = model.model
        self.save = frozenset(model.save)
        head = model.model[-1]
        self.decode = Decode(head, end2end, imgsz, max_detections)

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

    End-to-end heads give (batch, max_detections, 6): x1, y1, x2, y2 in pixels, score, class index.
    One-to-many heads give (batch, 4 + classes, anchors): centre x, centre y, width, height in pixels, class scores;
    non-maximum suppression follows outside.

    `unit` multiplies the boxes last. It is one; a backend whose consumers expect coordinates in 0..1 sets it to one
    over the image size.
    """

    anchors: Tensor
    strides: Tensor
    unit: Tensor
    bins: Tensor

    def __init__(self, head: Any, end2end: bool, imgsz: tuple[int, int], max_detections: int) -> None:
        super().__init__()
        self.end2end = end2end
        self.classes = int(head.nc)
        self.reg_max = int(head.reg_max)
        anchors, strides = anchor_points([int(s) for s in head.stride], imgsz)
        self.count = min(max_detections, anchors.shape[0])
        self.register_buffer("anchors", anchors[None])
        self.register_buffer("strides", strides[None])
        self.register_buffer("unit", torch.ones(1, 1, 4))
        self.register_buffer("bins", torch.arange(self.reg_max, dtype=torch.float32)[:, None])

    def forward(self, boxes: list[Tensor], scores: list[Tensor]) -> Tensor:
        """Decode the raw outputs of all levels."""
        distances = torch.cat([_anchors_first(b) for b in boxes], dim=1)
        logits = torch.cat([_anchors_first(s) for s in scores], dim=1)
        if self.reg_max > 1:
            distances = self._expectation(distances)
        before, after = distances.split((2, 2), dim=-1)
        corners = self.anchors - before, self.anchors + after
        if self.end2end:
            return self._best(torch.cat(corners, dim=-1) * self.strides * self.unit, logits)
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


def split_head(model: Any, head: str | None, imgsz: tuple[int, int], max_detections: int = 300) -> DetectionProgram:
    """Select and fuse one head of an Ultralytics detection model and split it.

    Args:
        model: an unfused `DetectionModel` in eval mode; it is fused in place.
        head: "end2end", "one2many", or None for end-to-end where the model has it.
        imgsz: (height, width) in pixels.
        max_detections: rows that the end-to-end head keeps.

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
    end2end = has_end2end if head is None else head == "end2end"
    layer.end2end = end2end
    fused = model.fuse(verbose=False)
    return DetectionProgram(fused, end2end, imgsz, max_detections).eval()
