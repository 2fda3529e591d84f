"""The names of layers and models that a checkpoint may ask for, and of what is never made of it.

Names of values are in `rebuild.MAKERS`.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.jit import ScriptModule
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
FORMER_MODULES = {
    "ultralytics.yolo.utils": "ultralytics.utils",
    "ultralytics.yolo.v8": "ultralytics.models.yolo",
    "ultralytics.yolo.data": "ultralytics.data",
}
FORMER_ATTRIBUTES = {
    "ultralytics.nn.modules.block.Silence": "torch.nn.Identity",
    "ultralytics.nn.tasks.YOLOv10DetectionModel": "ultralytics.nn.tasks.DetectionModel",
    "ultralytics.utils.loss.v10DetectLoss": "ultralytics.utils.loss.E2EDetectLoss",
    **({} if os.name == "nt" else {"pathlib.WindowsPath": "pathlib.PosixPath"}),
}
"""The same for files that are trusted, as `torch_safe_load` in `ultralytics.nn.tasks` has them."""
LEFT_OUT = re.compile(
    r"ultralytics\.(yolo\.)?utils\.(loss|tal)\.\w+"
    r"|torchvision\.transforms\.(transforms\.\w+|functional\.InterpolationMode)"
)
"""What a training leaves in a model and an export has no use for: losses, and the transforms of a classifier."""
BESIDE = re.compile(
    r"datetime\.\w+|collections\.(defaultdict|Counter)|builtins\.(bool|dict|float|int|list|str|tuple)"
    r"|numpy\.ndarray|numpy\.(_core|core)\.multiarray\._reconstruct|torch\.optim\.\w+\.\w+"
)
"""What people keep beside a model, where nothing is made of it; in a model it is refused with its place."""
STRANGE = (LazyModuleMixin, GraphModule, ScriptModule, nn.RNNBase)
"""Layers that setting their attributes does more with than to keep them: no YOLO has any."""
STORAGE = re.compile(r"torch\.(storage\.)?\w+Storage")
"""What tensors are views of; torch's reader makes them itself."""
DTYPE = re.compile(r"torch\.(u?int|float|bfloat|complex)\d+\w*|torch\.bool")


def layer_class(name: str) -> type[nn.Module] | None:
    """The class of a layer or model, None where the name is not one of those."""
    module, _, kind = RENAMED.get(name, name).rpartition(".")
    if not LAYERS.fullmatch(module):
        return None
    try:
        found: Any = vars(import_module(module)).get(kind)
    except (ImportError, RuntimeError):  # torchvision beside a torch that it does not fit
        return None
    if not isinstance(found, type) or not issubclass(found, nn.Module) or issubclass(found, STRANGE):
        return None
    return found if LAYERS.fullmatch(found.__module__) else None
