"""Run what a stranger's layers compute, and refuse it before it makes room for more than networks need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

MAX_BYTES, MAX_TIMES = 2**28, 64
"""Of one tensor: so many, and so many times those of the images."""
MAX_BYTES_IN_ALL, MAX_TIMES_IN_ALL = 2**32, 2048
"""Of all tensors of a run: YOLO26n makes 62 times its images, the largest a dozen times as much."""
MAX_OPERATIONS = 10_000
"""Of PyTorch's, in one run: YOLO26n has 600."""


def largest(images: int) -> int:
    """Bytes that a tensor may have of a network that images of so many bytes are given to."""
    return max(MAX_BYTES, MAX_TIMES * images)


class TooLargeError(Exception):
    """An operation would make a tensor that no network has, or there is no end of operations."""


class Bounded(TorchDispatchMode):
    """Runs each operation of a block on tensors without content first: so it is known how much it would make.

    The block raises `TooLargeError` where that is more than networks do.
    """

    def __init__(self, images: int) -> None:
        """Bound the block by what images of so many bytes take."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.most = largest(images)
        self.room = max(MAX_BYTES_IN_ALL, MAX_TIMES_IN_ALL * images)
        self.left = MAX_OPERATIONS

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        self.left -= 1
        if self.left < 0:
            raise TooLargeError(f"it has more than {MAX_OPERATIONS:,} operations")
        size = 0 if func.is_view else _size(func, args, given)
        self.room -= size
        if size > self.most:
            raise TooLargeError(f"{func} makes a tensor of {size:,} bytes")
        if self.room < 0:
            raise TooLargeError("there is no end of the tensors that it makes")
        return func(*args, **given)


def _size(func: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> int:
    """Bytes of the largest result; 0 where PyTorch cannot tell without computing it, which is of few operations."""
    args, given = tree_map_only(Tensor, _without_content, (args, given))
    if "device" in given:
        given["device"] = torch.device("meta")
    try:
        made = func(*args, **given)
    except (NotImplementedError, RuntimeError):  # what is wrong with it, whoever runs it says
        return 0
    return max((each.nbytes for each in tree_leaves(made) if isinstance(each, Tensor)), default=0)


def _without_content(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
