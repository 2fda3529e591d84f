"""The architecture that a checkpoint carries as text: which of its words Ultralytics would run as code."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from torch import nn


def evaluated(architecture: Any) -> str:
    """The first word of a model's YAML that building the model would run and that is no layer, "" if there is none.

    Nothing here builds a model of it; whoever gets the module may.
    """
    if not isinstance(architecture, Mapping):
        return ""
    activation = architecture.get("activation")
    if activation and not is_activation(activation):
        return f"activation {activation!r}"
    for part in ("backbone", "head"):
        for row in architecture.get(part) or ():
            kind = row[2] if isinstance(row, list | tuple) and len(row) > 2 else None
            if isinstance(kind, str) and not is_layer(kind):
                return f"layer {kind!r}"
    return ""


def is_activation(text: Any) -> bool:
    """Whether it is a call of a layer of torch's with plain arguments, such as `nn.LeakyReLU(0.1)`."""
    try:
        call = ast.parse(str(text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return False
    if ast.unparse(call.func.value) not in ("nn", "torch.nn") or not _is_class(vars(nn).get(call.func.attr)):
        return False
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    return all(keyword.arg for keyword in call.keywords) and all(_is_plain(each) for each in arguments)


def is_layer(name: str) -> bool:
    """Whether a name in a row leads to a layer, or to nothing because a later Ultralytics has renamed it."""
    from ultralytics.nn import tasks

    if name.startswith("nn."):
        found = vars(nn).get(name.removeprefix("nn."))
    elif name.startswith("torchvision.ops."):
        return name.count(".") == 2
    else:
        found = vars(tasks).get(name)
    return found is None or _is_class(found)


def _is_class(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)


def _is_plain(argument: ast.expr) -> bool:
    try:
        ast.literal_eval(argument)
    except ValueError:
        return False
    return True
