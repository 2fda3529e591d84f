"""Fill in what old, fused and sparse checkpoints leave out of a model.

What is left out is found as Ultralytics' own loader finds it (`load_checkpoint` and the constructors in
`ultralytics.nn.tasks`), or in the network, which always knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qexport.system.whole import whole

MIN_STRIDE = 32
"""Classifiers call theirs 1, but halve the image five times like the others."""
DEFAULT_SIZE = 640
MAX_CLASSES, MAX_CHANNELS, MAX_STRIDE, MAX_SIZE = 50_000, 1024, 1024, 2**15
"""What no checkpoint has more of."""
MAX_NAMES = 2**22
"""Characters in the names of all classes: a file may say one name for each, and artifacts have all of them."""
TASKS = {
    "SemanticSegment": "semantic",
    "Segment": "segment",
    "YOLOESegment": "segment",
    "Classify": "classify",
    "Pose": "pose",
    "OBB": "obb",
    "Depth": "depth",
    "Detect": "detect",
    "RTDETRDecoder": "detect",
}
"""Class of a head, or the nearest of its base classes → task."""


def task_of(head: nn.Module, said: object) -> str:
    """The task that a head is made for; what the checkpoint says counts only where the head is of no known kind."""
    found = (TASKS[kind.__name__] for kind in type(head).__mro__ if kind.__name__ in TASKS)
    return next(found, str(said or "detect"))


def class_names(names: Any, model: Any) -> dict[int, str]:
    """Class index to name, for every class of the head; the index itself where there is no name, as in Ultralytics.

    Raises:
        TypeError, ValueError, AttributeError, OverflowError: they are something else than names.
    """
    pairs = list(enumerate(names) if isinstance(names, list | tuple) else (names or {}).items())
    other = next((name for _, name in pairs if not isinstance(name, str | int | float | None)), None)
    if other is not None:
        raise TypeError(f"a {type(other).__name__} is no name of a class")
    found = {whole(index): str(name) for index, name in pairs}
    if (length := sum(map(len, found.values()))) > MAX_NAMES:
        raise ValueError(f"names of {length:,} characters")
    return {index: found.get(index, str(index)) for index in range(class_count(model))}


def class_count(model: Any) -> int:
    """How many classes the head tells apart."""
    head = model.model[-1]
    linear = getattr(head, "linear", None)
    if isinstance(linear, nn.Linear):
        return linear.out_features
    said = getattr(head, "nc", None) or getattr(model, "nc", None) or architecture(model).get("nc", 1)
    return _number("classes", said, MAX_CLASSES)


def _number(what: str, said: Any, most: int) -> int:
    """A whole number within bounds.

    Raises:
        TypeError, ValueError, OverflowError: it is another.
    """
    found = whole(said)
    if not 0 < found <= most:
        raise ValueError(f"{found} {what}")
    return found


def repair_strides(model: Any) -> int:
    """The largest stride in pixels, that of the head where the model itself has none, and the other way round."""
    head = model.model[-1]
    found = [_strides(getattr(each, "stride", None)) for each in (model, head)]
    given = [each for each in found if each is not None]
    model.stride = given[0] if given else torch.tensor([float(MIN_STRIDE)])
    if found[1] is None and found[0] is not None and getattr(head, "nl", 0) == len(found[0]):
        head.stride = found[0]
    return max(MIN_STRIDE, _number("pixels of stride", model.stride.max(), MAX_STRIDE))


def _strides(given: Any) -> torch.Tensor | None:
    if given is None:
        return None
    strides = torch.as_tensor(given, dtype=torch.float32).reshape(-1)
    for stride in strides.tolist():
        whole(stride)
    return strides if len(strides) and float(strides.min()) > 0 else None


def channels_of(model: Any) -> int:
    """Channels of the images: `channels`, in older checkpoints `ch`, else those that the first layer reads."""
    said = architecture(model).get("channels") or architecture(model).get("ch")
    if said:
        return _number("channels", said, MAX_CHANNELS)
    first = model.model[0]
    convolution = next((layer for layer in first.modules() if isinstance(layer, nn.Conv2d)), None)
    if convolution is None:
        return 3
    # Focus makes four channels of each: every second pixel of every second row.
    return convolution.in_channels // (4 if type(first).__name__ == "Focus" else 1)


def architecture(model: Any) -> Mapping[str, Any]:
    """What the model says that it is built of, {} where it does not."""
    found = getattr(model, "yaml", None)
    return found if isinstance(found, Mapping) else {}


def training_arguments(model: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """What the training was started with: the checkpoint's word, then the model's own."""
    found: dict[str, Any] = {}
    for said in (getattr(model, "args", None), content.get("train_args")):
        found.update(said if isinstance(said, dict) else vars(said) if hasattr(said, "__dict__") else {})
    return found


def training_size(value: Any) -> int:
    """Side of the images in pixels that the training used."""
    longest = max(value) if isinstance(value, list | tuple) else value
    return _number("pixels", longest, MAX_SIZE) if longest else DEFAULT_SIZE


def check_numbers(model: Any) -> None:
    """Refuse a model that counts in fractions, of whose numbers whoever decodes makes whole ones.

    Raises:
        TypeError, ValueError, OverflowError: it does.
    """
    head = model.model[-1]
    counts = [getattr(head, name, 0) for name in ("nc", "reg_max", "nm")]
    counts += [getattr(model, "nc", 0), architecture(model).get("nc", 0), *(getattr(head, "kpt_shape", None) or ())]
    for said in counts:
        whole(said or 0)
