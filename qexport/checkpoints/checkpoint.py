"""Read a `.pt` checkpoint, without running what may hide in it, into a float module.

A `.pt` file is a pickle: loading it runs code. Ultralytics keeps an allow-list of model classes for
`torch.load(weights_only=True)`; everything else is refused by name unless the user trusts the file.
"""

from __future__ import annotations

import hashlib
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.errors import InputError

LEAST_STRIDE = 32
"""Classifiers call theirs 1, but halve the image five times like the others."""
_TRUSTED = frozenset({"torch", "ultralytics", "collections"})
_REFUSED = re.compile(r"GLOBAL\s+([\w.]+)")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and what its file says about itself.

    Attributes:
        module: Ultralytics model in eval mode, float32, not fused; `split_head` consumes it. None for an ONNX file.
        task: "detect", "segment", …; "" for an ONNX file that does not say.
        names: class index to class name.
        stride: the largest stride in pixels; image sizes are multiples of it.
        imgsz: the size that the model was trained at, in pixels.
        fingerprint: SHA-256 of the file.
        metadata: what an ONNX file says of itself besides; None for a checkpoint.
    """

    path: Path
    module: Any
    task: str
    names: dict[int, str]
    stride: int
    channels: int
    imgsz: int
    fingerprint: str
    metadata: dict[str, str] | None = None


def load_checkpoint(path: Path, trust: bool = False) -> Checkpoint:
    """Load an Ultralytics checkpoint.

    Args:
        path: the `.pt` file.
        trust: unpickle classes outside the allow-list, too (`--trust-checkpoint`).

    Raises:
        InputError: no such file, not a checkpoint, or one with classes that are not on the allow-list.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}", "check the path")
    content = _unpickle(path, trust)
    candidate = content.get("ema") or content.get("model") if isinstance(content, dict) else None
    if candidate is None or not hasattr(candidate, "model"):
        raise InputError(f"{path} holds no Ultralytics model", "give the .pt file that a YOLO training wrote")
    module = candidate.float().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    arguments = content.get("train_args") or {}
    return Checkpoint(
        path=path,
        module=module,
        task=str(getattr(module, "task", None) or arguments.get("task") or "detect"),
        names=_class_names(module.names),
        stride=max(LEAST_STRIDE, int(max(module.stride))),
        channels=int(module.yaml.get("channels", 3)),
        imgsz=_training_size(arguments.get("imgsz", 640)),
        fingerprint=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _class_names(names: Any) -> dict[int, str]:
    pairs = enumerate(names) if isinstance(names, list | tuple) else names.items()
    return {int(index): str(name) for index, name in pairs}


def _training_size(value: Any) -> int:
    return int(max(value)) if isinstance(value, list | tuple) else int(value)


def _unpickle(path: Path, trust: bool) -> Any:
    from ultralytics.nn.tasks import torch_safe_load

    # An absolute path: of a bare name, Ultralytics would delete a damaged file to download it again.
    try:
        content, _ = torch_safe_load(str(path.absolute()), safe_only=not trust)
    except Exception as error:  # a damaged pickle can raise anything
        raise _explained(path, error) from error
    return content


def _explained(path: Path, error: Exception) -> InputError:
    reason = f"{error} {error.__cause__ or ''}"
    refused = _REFUSED.search(reason)
    name = refused.group(1) if refused else _pickled_name(path)
    if name:
        return InputError(
            f"{path} wants to load {name}, which is not on the allow-list",
            "pass --trust-checkpoint only if you trust where the file comes from: loading it can run any code",
        )
    if "TorchScript" in reason:
        return InputError(f"{path} is a TorchScript archive", "give the .pt checkpoint that it was exported from")
    return InputError(f"{path} is not a checkpoint that can be read", "it may be cut short, or not a .pt file at all")


def _pickled_name(path: Path) -> str:
    """Return the first class or function that a bare pickle asks for outside torch and Ultralytics, "" if none."""
    strings: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(path.read_bytes()):
            if operation.name == "GLOBAL":
                strings += str(argument).split(" ")[:2]
            elif isinstance(argument, str):
                strings.append(argument)
            if operation.name in ("GLOBAL", "STACK_GLOBAL") and strings[-2].partition(".")[0] not in _TRUSTED:
                return ".".join(strings[-2:])
    except (ValueError, IndexError, OSError):
        return ""  # not a pickle at all: the caller has a line for that
    return ""
