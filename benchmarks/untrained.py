"""Checkpoints of freshly built models: an architecture's YAML, weights from a seed, and no training.

Layers as they are drawn make outputs that hardly depend on the image, and then every artifact agrees with every other,
or outputs that rounding alone decides. So each is scaled to what it sees, in the order of computation (Mishkin and
Matas, "All you need is a good init", 2016), and a few classes and sizes stand out as behind a trained head.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STRAIGHT = 2.0
"""Mean of what activations see: there SiLU is nearly straight, and noise grows no faster than what the image says."""
SPREAD = 1.0
"""Standard deviation of what a layer without normalisation gives."""
LOGITS = 2.0
"""The same of class logits."""
ABSENT, THERE = -20.0, 2
"""Mean logit of all classes but the first few, and how many those are."""
DISTANCE = 1.5
"""Mean distance to a box's sides, in strides."""
CORRECTION = 0.03
"""Standard deviation of RT-DETR's corrections of a box, in logits."""
BUILDERS = {
    "detect": "DetectionModel",
    "segment": "SegmentationModel",
    "pose": "PoseModel",
    "obb": "OBBModel",
    "classify": "ClassificationModel",
}
SPECIAL = {"rtdetr": "RTDETRDetectionModel", "world": "WorldModel", "yoloe": "YOLOEModel"}
PROMPTED = ("WorldModel", "YOLOEModel")
"""Models that are told in words what to look for."""


INPLACE = "inplace"


def untrained(name: str, images: Tensor, seed: int = 0) -> Any:
    """Build the model of an architecture that Ultralytics ships, such as "yolo26n-seg.yaml".

    Args:
        name: the YAML; behind a plus a class of `torch.nn` that is its activation, or "inplace" for activations that
            write in place.
        images: (n, channels, height, width) in 0..1, what the layers are scaled to.
    """
    from ultralytics.nn import tasks

    torch.manual_seed(seed)
    yaml, _, variant = name.partition("+")
    configuration = tasks.yaml_model_load(yaml)
    if variant and variant != INPLACE:
        configuration["activation"] = f"torch.nn.{variant}()"
    task = tasks.guess_model_task(configuration)
    special = next((builder for part, builder in SPECIAL.items() if part in yaml), None)
    builder = special or BUILDERS[task]
    model = getattr(tasks, builder)(configuration, ch=images.shape[1], verbose=False)
    for module in model.modules() if variant == INPLACE else ():
        if hasattr(module, "inplace"):
            module.inplace = True
    model.task, model.args = task, {"task": task}
    if builder in PROMPTED:
        return model.eval()  # a refusal looks at no weight
    with torch.no_grad():
        _normalise(model, images)
        _scale(model.eval(), images)
        _stand_out(model.model[-1])
    return model


def save(model: Any, path: Path) -> Path:
    """Write a model as a training would."""
    torch.save({"model": model, "train_args": {"task": model.task, "imgsz": 640}}, path)
    return path


def _normalise(model: Any, images: Tensor) -> None:
    """Let batch normalisation take its statistics from the images."""
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        momentum, norm.momentum = norm.momentum, None
        norm.bias.fill_(STRAIGHT)
        norm.reset_running_stats()
        norm.train()
    model(images)
    for norm in norms:
        norm.momentum = momentum


def _scale(model: Any, images: Tensor) -> None:
    """Scale every layer of the head that has no normalisation, while the images pass through it."""
    layers = [part for part in model.model[-1].modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    last = set(_last(model.model[-1], CLASSES))
    hooks = [
        layer.register_forward_hook(_scaler(LOGITS if layer in last else SPREAD))
        for layer in layers
        if layer.bias is not None
    ]
    model(images)
    for hook in hooks:
        hook.remove()


def _scaler(spread: float) -> Any:
    def hook(layer: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if float(output.std()) < SPREAD / 1000:  # weights of nothing, which a training would have moved
            layer.weight.normal_()
            output = layer.forward(given[0])
        layer.weight *= spread / float(output.std())
        layer.bias -= layer.forward(given[0]).mean()
        scaled: Tensor = layer.forward(given[0])
        return scaled

    return hook


CLASSES = ("cv3", "one2one_cv3", "dec_score_head", "enc_score_head", "linear")
SIDES = ("cv2", "one2one_cv2")
CORRECTIONS = ("dec_bbox_head", "enc_bbox_head")


def _stand_out(head: Any) -> None:
    """Give classes and distances the level that they have behind a trained head."""
    for layer in _last(head, CLASSES[:-1]):
        layer.bias[THERE:] += ABSENT
    for layer in _last(head, CORRECTIONS):
        layer.weight *= CORRECTION
        layer.bias *= CORRECTION
    for layer in _last(head, SIDES):
        bins = layer.bias.reshape(4, -1)
        if bins.shape[1] > 1:  # the distance is the expected value of a distribution over them
            bins -= (torch.arange(bins.shape[1]) - DISTANCE) ** 2 / 2
        else:
            layer.weight *= DISTANCE / 4
            bins += DISTANCE


def _last(head: Any, names: tuple[str, ...]) -> Iterator[Any]:
    """The last layer of each of a head's branches."""
    for branch in (getattr(head, name, None) for name in names):
        for layers in branch if isinstance(branch, nn.ModuleList) else [branch]:
            if layers is not None:
                yield [layer for layer in layers.modules() if isinstance(layer, nn.Conv2d | nn.Linear)][-1]
