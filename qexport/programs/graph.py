"""What a program's graph must be able to do, whatever it is made of.

A checkpoint's graph is a `GraphModule`, which calibration and simulation copy and change. A graph that came as a file
cannot be changed by them, and does both itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program


class FloatGraph(Protocol):
    """Callable: the input, (n, channels, height, width) float32, to the output or the tuple of outputs."""

    def __call__(self, images: Tensor, /) -> Any:
        """Compute the outputs."""
        ...

    def get_parameter(self, target: str, /) -> Tensor:
        """Return a weight by the name that `Value.weight` has."""
        ...


@runtime_checkable
class FileGraph(FloatGraph, Protocol):
    """A graph that came as a file.

    Attributes:
        names: the file's own name of a tensor or node → the values of the program that it stands for.
        outputs: what the file calls its outputs.
    """

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """See the class."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """See the class."""
        ...

    def constants(self) -> Iterator[tuple[str, NDArray[np.floating]]]:
        """Yield (value, array) for every float constant that an operation reads."""
        ...

    def computed(self, images: Tensor, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Run once and yield the values called `names`, not all of them in memory at a time."""
        ...

    def simulated(self, program: Program, plan: QuantPlan) -> FloatGraph:
        """The graph in which every quantised value passes through its integers."""
        ...
