"""Split a YOLO head into its raw per-level outputs and the float decode behind them.

Ultralytics concatenates boxes and scores of all levels before it decodes them; quantised as written, pixels and
probabilities would share one scale. Here each raw convolution output stays a value of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from qexport.detections.layout import HeadLayout
from qexport.errors import InputError
from qexport.programs.torch_decode import Decode, max_detections


class DetectionProgram(nn.Module):
    """The whole float program of a detector: backbone, neck, raw head outputs, decode.

    Input: (batch, channels, height, width) float32 in 0..1, RGB.
    Output: see `Decode`; with masks a pair of that and the prototypes (batch, masks, height / 4, width / 4).
    """

    def __init__(self, model: Any, end2end: bool, imgsz: tuple[int, int], nms: bool = False) -> None:
        super().__init__()
        self.model = model.model
        self.save = frozenset(model.save)
        self.decode = Decode(layout_of_head(model.model[-1], end2end, imgsz, nms))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the decoded output."""
        features = self.features(images)
        decoded: Tensor = self.decode(*self.raw_outputs(features))
        if self.decode.layout.extras != "coefficients":
            return decoded
        head: Any = self.model[-1]
        # YOLO26 makes the prototypes of all levels, its forerunners of the first.
        return decoded, head.proto(features if hasattr(head.proto, "feat_fuse") else features[0])

    def raw_outputs(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """Boxes, class logits and further values of each level, each (batch, channels, height_l, width_l)."""
        head: Any = self.model[-1].one2one if self.decode.layout.head == "end2end" else self.model[-1].one2many
        layers = [head["box_head"], head["cls_head"], *(head[name] for name in FURTHER_HEADS if name in head)]
        raw = [[convolutions(f) for convolutions, f in zip(each, features, strict=True)] for each in layers]
        if "kpts_head" in head:  # YOLO26 has the last convolution of its keypoints apart
            raw[2] = [convolution(f) for convolution, f in zip(head["kpts_head"], raw[2], strict=True)]
        return tuple(raw)

    def features(self, value: Tensor) -> list[Tensor]:
        """What the head reads of images (batch, channels, height, width): a feature map for each level."""
        return gathered(list(self.model)[:-1], self.model[-1].f, self.save, value)


def gathered(layers: Sequence[Any], sources: int | Sequence[int], save: frozenset[int], value: Tensor) -> list[Tensor]:
    """Run layers one after the other and return what a last one reads of them: `sources` are their numbers."""
    kept: list[Any] = []
    for layer in layers:
        value = layer(_inputs(layer.f, value, kept))
        kept.append(value if layer.i in save else None)
    selected = _inputs(sources, value, kept)
    return list(selected) if isinstance(selected, list) else [selected]


def _inputs(sources: int | Sequence[int], latest: Any, kept: Sequence[Any]) -> Any:
    if isinstance(sources, int):
        return latest if sources == -1 else kept[sources]
    return [latest if source == -1 else kept[source] for source in sources]


FURTHER_HEADS = ("mask_head", "pose_head", "angle_head")
SPLITTABLE = ("Detect", "v10Detect", "Segment", "Segment26", "Pose", "Pose26", "OBB", "OBB26")
"""Head classes that can be split; their subclasses may compute something else."""


def extras_of(head: Any) -> tuple[str, tuple[int, int]]:
    """What a head says of each anchor besides box and classes, and in how many values: see `HeadLayout`."""
    kind = type(head).__name__
    if kind.startswith("Segment"):
        return "coefficients", (int(head.nm), 1)
    if kind.startswith("Pose"):
        count, values = (int(size) for size in head.kpt_shape)
        return "keypoints", (count, values)
    return ("angles", (1, 1)) if kind.startswith("OBB") else ("", (0, 0))


def layout_of_head(head: Any, end2end: bool, imgsz: tuple[int, int], nms: bool = False) -> HeadLayout:
    """What the decoded output of an Ultralytics head means.

    Raises:
        InputError: its `max_det` is no number of rows.
    """
    extras, shape = extras_of(head)
    strides = tuple(int(stride) for stride in head.stride)
    anchors = sum((imgsz[0] // stride) * (imgsz[1] // stride) for stride in strides)
    return HeadLayout(
        strides=strides,
        imgsz=imgsz,
        classes=int(head.nc),
        reg_max=int(head.reg_max),
        end2end=end2end or nms,
        extras=extras,
        shape=shape,
        direct=type(head).__name__.endswith("26"),
        head="end2end" if end2end else "one2many",
        max_detections=min(max_detections(head), anchors),
    )


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
    kind = type(layer).__name__
    if not isinstance(layer, Detect) or kind not in SPLITTABLE:
        raise InputError(f"head {kind} is not supported", f"use one of {', '.join(SPLITTABLE)}, RTDETRDecoder")
    if nms and extras_of(layer)[0]:
        raise InputError(f"NMS inside is for detection, not for head {kind}", "leave out --nms")
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
