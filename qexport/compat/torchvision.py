"""Let torchvision import beside a build of torch that its compiled operators do not fit.

A CPU wheel of torch next to a CUDA wheel of torchvision fails with "operator torchvision::nms does not exist":
the shared library does not load, and torchvision then registers shape functions for operators that are not there.
Ultralytics imports torchvision in its validator, so this stops every evaluation.

A healthy installation is left exactly as it is.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from qexport.compat.patches import OPERATOR_CHECK, replace_for_good
from qexport.errors import first_line

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_MAX_OPERATORS = 40
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where torch and torchvision of one build are; what PyPI has of both are CUDA builds on Linux."""
_kept_alive: list[Any] = []  # a torch.library.Library unregisters its operators when it is collected


def repair() -> list[str]:
    """Import torchvision, declaring the operators it misses; return their names (empty when it is healthy).

    Raises:
        RuntimeError: torchvision fails for another reason than a missing operator.
    """
    declared: list[str] = []
    for _ in range(_MAX_OPERATORS):
        missing = _first_missing_operator()
        if missing is None:
            break
        _declare(missing)
        declared.append(missing)
    if declared:
        _allow_operators()
    return declared


def fault() -> str:
    """Why programs of the user's, `YOLO(file).val()` say, fail in this environment; "" where torchvision works.

    Only true before `repair`, which mends the process that it is called in and no other.
    """
    try:
        import torch
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    except (ImportError, RuntimeError, OSError, AttributeError, TypeError) as error:
        return first_line(error)
    return "" if kept == [0, 2] else f"nms keeps {kept} of three boxes, not 0 and 2"


def remedy() -> str:
    """The command that installs torchvision beside this torch, of the release that says it is for it."""
    torch, vision = _pinned("torch"), "torchvision"
    with suppress(PackageNotFoundError):
        wanted = [re.sub(r"[ ()]", "", each) for each in requires(vision) or ()]
        vision = _pinned(vision) if torch in wanted else vision
    return f"pip install --force-reinstall {torch} {vision} --index-url {CPU_INDEX}"


def _pinned(package: str) -> str:
    """A package in the release that is installed, of whatever build."""
    try:
        return f"{package}=={version(package).partition('+')[0]}"
    except PackageNotFoundError:
        return package


def advice() -> str:
    """One line: whether torchvision works beside torch, and what to do where it does not."""
    found = fault()
    return f"torchvision {unfit(found)}; one index has both builds: {remedy()}" if found else "torchvision's nms works"


def unfit(found: str) -> str:
    """What a `fault` of torchvision means."""
    return (
        f"does not fit this torch ({found}): qexport mends that for itself, but YOLO(file).val() and "
        "predictions of several images fail in your own programs"
    )


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
    replace_for_good(OPERATOR_CHECK, lambda: None)
