"""Backends whose runtimes do what no runtime should, for processes that import them by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping

from qexport.lowering.convolutions import ConvolutionStack
from qexport.testing import FakeBackend


class Raising(FakeBackend):
    def convolutions(self, stack: ConvolutionStack, threads: int) -> Mapping[str, Callable[[], object]]:
        raise RuntimeError(f"no kernel for {stack.channels} channels\nand more")


class Killed(FakeBackend):
    """Its library has instructions that this CPU has not."""

    def convolutions(self, stack: ConvolutionStack, threads: int) -> Mapping[str, Callable[[], object]]:
        os.kill(os.getpid(), signal.SIGILL)
        return {}


def waits(seconds: int) -> str:
    import time

    time.sleep(seconds)
    return "too late"
