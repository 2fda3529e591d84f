"""What a program's raw outputs cost, judged by labels: Ultralytics' own losses, fed with raw outputs.

A program has one branch of a head, and its loss is that branch's in Ultralytics' training: an end-to-end head assigns
one anchor to each label, any other ten. Ultralytics weighs both branches of YOLO26 and lets the one-to-one branch move
neither backbone nor prototypes; here it is what is deployed, and moves all of them.

Parts of a loss whose layers are for training alone are left out, because programs have no such layers: YOLO26's
semantic masks and its likelihood of keypoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from qexport.detections.layout import HeadLayout
from qexport.errors import UsageError
from qexport.programs.program import Program

TRAINED = ("end2end", "one2many", "classifier")
"""Heads that raw outputs are enough of."""
EXTRAS = {"coefficients": "mask_coefficient", "keypoints": "kpts", "angles": "angle"}
"""What a head says besides → what its loss calls that."""


def check_trainable(layout: HeadLayout) -> None:
    """Refuse heads whose loss takes more than raw outputs.

    Raises:
        UsageError: RT-DETR, whose loss is of every decoder layer, or a file's head that nobody has described.
    """
    if layout.head not in TRAINED:
        what = "RT-DETR" if layout.head == "queries" else "an ONNX file"
        raise UsageError(f"{what} cannot be trained with labels", "leave out --labels, which needs none")


def labelled_loss(program: Program, raw: Sequence[Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """The loss of a batch, as Ultralytics' trainer adds up its parts, but the mean over images for every task.

    Gains are those of Ultralytics' defaults (`box`, `cls`, `dfl`, `pose`, `kobj`, `angle`).

    Args:
        raw: (n, channels, height, width) of each level, (n, classes) of a classifier, in the order of
            `program.raw.all`.
        targets: as in `Batch.targets`, on the device of `raw`.

    Returns:
        A scalar, differentiable in `raw`.

    Raises:
        UsageError: see `check_trainable`.
    """
    layout = program.layout
    check_trainable(layout)
    outputs = dict(zip(program.raw.all, raw, strict=True))
    if layout.classifier:
        from ultralytics.utils.loss import v8ClassificationLoss

        (logits,) = (outputs[name] for name in program.raw.scores)
        loss: Tensor = v8ClassificationLoss()(logits, dict(targets))[0]
        return loss
    parts: Tensor = _criterion(layout, raw[0].device).loss(_as_trained(program, outputs), dict(targets))[0]
    return parts.sum() / len(raw[0])  # of detectors Ultralytics gives the mean times the number of images


def _criterion(layout: HeadLayout, device: torch.device) -> Any:
    """The loss that Ultralytics' `init_criterion` chooses for a head, of the branch that the program has."""
    from ultralytics.utils import loss

    former: dict[str, Callable[..., Any]] = {
        "": loss.v8DetectionLoss,
        "coefficients": loss.v8SegmentationLoss,
        "keypoints": loss.v8PoseLoss,
        "angles": loss.v8OBBLoss,
    }
    present = {**former, "coefficients": loss.SegmentLoss26, "keypoints": loss.PoseLoss26}
    kind, model = (present if layout.direct else former)[layout.extras], _stand_in(layout, device)
    return loss.E2ELoss(model, kind).one2one if layout.head == "end2end" else kind(model)


def _stand_in(layout: HeadLayout, device: torch.device) -> Any:
    """What losses ask a model for."""
    from ultralytics.cfg import get_cfg

    head = SimpleNamespace(
        nc=layout.classes,
        reg_max=layout.reg_max,
        stride=torch.tensor(layout.strides, dtype=torch.float32, device=device),
        kpt_shape=list(layout.shape),
    )
    return SimpleNamespace(args=get_cfg(), model=[head], parameters=lambda: iter([torch.empty(0, device=device)]))


def _as_trained(program: Program, outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Raw outputs in the form that heads give them in while they are trained: levels joined, anchors last."""
    names, layout = program.raw, program.layout

    def joined(levels: Sequence[str]) -> Tensor:
        return torch.cat([outputs[name].flatten(2) for name in levels], dim=2)

    made: dict[str, Any] = {
        "boxes": joined(names.boxes),
        "scores": joined(names.scores),
        "feats": [outputs[name] for name in names.boxes],  # only their sizes are read
    }
    if layout.extras:
        extras = joined(names.extras)
        bounded = layout.extras == "angles" and not layout.direct
        made[EXTRAS[layout.extras]] = (extras.sigmoid() - 0.25) * torch.pi if bounded else extras
    if names.prototypes:
        made["proto"] = outputs[names.prototypes]
    return made
