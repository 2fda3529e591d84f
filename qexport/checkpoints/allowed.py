"""The names that a checkpoint may ask for: layers and models, a few kinds of values, and what is never made."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

LAYERS = re.compile(
    r"torch\.nn\.modules(\.\w+)?|ultralytics\.nn\.(modules(\.\w+)?|tasks)|torchvision\.(models|ops)\.\w+"
)
"""Modules of Python whose layers and models may be in a checkpoint; their constructors are never called."""
RENAMED = {
    "ultralytics.nn.modules.block.Silence": "torch.nn.modules.linear.Identity",
    "ultralytics.nn.tasks.YOLOv10DetectionModel": "ultralytics.nn.tasks.DetectionModel",
}
"""As Ultralytics' own loader renames them: YOLOv9e and YOLOv10 of their first days."""
VALUES = frozenset(
    {
        "builtins.set",
        "builtins.frozenset",
        "collections.OrderedDict",
        "_codecs.encode",
        "builtins.getattr",
        "torch.Size",
        "torch.device",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "ultralytics.utils.IterableSimpleNamespace",
        "ultralytics.yolo.utils.IterableSimpleNamespace",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "numpy.dtype",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
    }
)
"""What `rebuild` makes itself."""
LEFT_OUT = re.compile(
    r"ultralytics\.(yolo\.)?utils\.(loss|tal)\.\w+"
    r"|torchvision\.transforms\.(transforms\.\w+|functional\.InterpolationMode)"
)
"""What a training leaves in a model and an export has no use for: losses, and the transforms of a classifier."""
DTYPE = re.compile(r"torch\.(u?int|float|bfloat|complex)\d+\w*|torch\.bool")


def is_allowed(name: str) -> bool:
    """Whether a checkpoint may ask for a name."""
    return name in VALUES or bool(LEFT_OUT.fullmatch(name) or DTYPE.fullmatch(name)) or layer_class(name) is not None


def layer_class(name: str) -> type[nn.Module] | None:
    """The class of a layer or model, None where the name is not one of those."""
    module, _, kind = RENAMED.get(name, name).rpartition(".")
    if not LAYERS.fullmatch(module):
        return None
    try:
        found: Any = vars(import_module(module)).get(kind)
    except ImportError:
        return None
    if not isinstance(found, type) or not issubclass(found, nn.Module) or issubclass(found, LazyModuleMixin):
        return None
    return found if LAYERS.fullmatch(found.__module__) else None
