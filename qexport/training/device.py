"""What is trained on: the CPU, or a GPU that is here."""

from __future__ import annotations

import torch

from qexport.errors import UsageError


def check_device(device: str) -> None:
    """Refuse a device that is not here.

    Raises:
        UsageError: PyTorch finds no such GPU.
    """
    if device == "cpu":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    _, _, number = device.partition(":")
    if int(number or 0) >= count:
        found = f"PyTorch {torch.__version__} finds {count or 'no'} GPU{'s' if count > 1 else ''}"
        raise UsageError(f"--device {device} is not here: {found}", "leave it out, or install a build with CUDA")
