"""The float program of an image classifier: convolutional body, pooled features, logits, and the softmax behind."""

from __future__ import annotations

from typing import Any

from torch import Tensor, cat, nn
from torch.nn import functional

from qexport.detections.layout import HeadLayout
from qexport.errors import InputError
from qexport.programs.heads import gathered


class ClassifierProgram(nn.Module):
    """A whole classifier.

    Input: (batch, channels, height, width) float32 in 0..1, RGB.
    Output: (batch, classes) probabilities.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self.save = frozenset(model.save)
        self.decode = ClassifierDecode(model.model[-1].linear.out_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities of all classes."""
        head: Any = self.model[-1]
        features = gathered(list(self.model)[:-1], head.f, self.save, images)
        value = head.conv(features[0] if len(features) == 1 else cat(features, dim=1))
        # A window of the whole map, where Ultralytics' pooling adapts: runtimes have an integer kernel for it.
        pooled = functional.avg_pool2d(value, kernel_size=(value.shape[2], value.shape[3]))
        probabilities: Tensor = self.decode(head.linear(pooled.flatten(1)))
        return probabilities


class ClassifierDecode(nn.Module):
    """Turn logits into probabilities."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layout = HeadLayout(strides=(), imgsz=(0, 0), classes=classes, head="classifier")  # at any size

    def forward(self, logits: Tensor) -> Tensor:
        """(batch, classes) logits to probabilities."""
        return logits.softmax(dim=1)


def classifier(model: Any, head: str | None, nms: bool) -> ClassifierProgram:
    """Fuse an Ultralytics classification model and make its program.

    Raises:
        InputError: options that only detectors have.
    """
    if head or nms:
        raise InputError("a classifier has one head and no NMS", "leave out --head and --nms")
    return ClassifierProgram(model.fuse(verbose=False)).eval()
