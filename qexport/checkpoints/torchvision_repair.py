"""Let torchvision import beside a build of torch that its compiled operators do not fit.

A CPU wheel of torch next to a CUDA wheel of torchvision fails with "operator torchvision::nms does not exist":
the shared library does not load, and torchvision then registers shape functions for operators that are not there.
Ultralytics imports torchvision in its validator, so this stops every evaluation.

A healthy installation is left exactly as it is.
"""

from __future__ import annotations

import re
import sys
from typing import Any

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_MOST_OPERATORS = 40
_kept_alive: list[Any] = []  # a torch.library.Library unregisters its operators when it is collected


def repair() -> list[str]:
    """Import torchvision, declaring the operators it misses; return their names (empty when it is healthy).

    Raises:
        RuntimeError: torchvision fails for another reason than a missing operator.
    """
    declared: list[str] = []
    for _ in range(_MOST_OPERATORS):
        missing = _first_missing_operator()
        if missing is None:
            break
        _declare(missing)
        declared.append(missing)
    if declared:
        _allow_operators()
    return declared


def _first_missing_operator() -> str | None:
    try:
        import torchvision  # noqa: F401  (the import is the test)
    except RuntimeError as error:
        found = _MISSING.search(str(error))
        if found is None:
            raise
        _forget_half_imported()
        return found.group(1)
    return None


def _forget_half_imported() -> None:
    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]


def _declare(operator: str) -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    if operator == "nms":
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", _nms, "CPU")
    else:
        library.define(f"{operator}(Tensor input) -> Tensor")
    _kept_alive.append(library)


def _nms(boxes: Any, scores: Any, threshold: float) -> Any:
    from ultralytics.utils.nms import TorchNMS

    return TorchNMS.nms(boxes, scores, threshold)


def _allow_operators() -> None:
    # torchvision.ops.nms asks this before it calls the operator, which now exists.
    import torchvision.ops.boxes

    torchvision.ops.boxes._assert_has_ops = lambda: None
