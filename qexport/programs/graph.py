"""What a program's graph is able to do, whatever it is made of: captured by PyTorch, or read from a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.fx import GraphModule

See = Callable[[str, "Tensor"], None]
"""Takes a value's name and what it was in a run."""


class Graph(Protocol):
    """Callable: the input, (n, channels, height, width) float32, to the output or the tuple of outputs.

    Graphs are never changed; those with other parameters are graphs of their own.
    """

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The file's own name of a tensor or node → values of the program that it stands for; empty without a file."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """What its outputs are called."""
        ...

    @property
    def module(self) -> GraphModule:
        """Its values as nodes of PyTorch's, by name, weights under their paths; not to be changed.

        Raises:
            ConversionError: it is not `instrumentable`.
        """
        ...

    @property
    def instrumentable(self) -> bool:
        """Whether there is a `module`, so that nodes can be put into a copy of it, such as meters beside its values."""
        ...

    @property
    def obstacle(self) -> str:
        """Why it is not `instrumentable`, in a line; "" where it is."""
        ...

    @property
    def whole(self) -> bool:
        """Whether `module` computes the outputs; otherwise it ends with the raw outputs, a tuple of them."""
        ...

    def __call__(self, images: Tensor, /) -> Any:
        """Compute the outputs."""
        ...

    def parameter(self, path: str, /) -> Tensor:
        """Return a weight or bias by the name that `Value.weight` or `Value.bias` has; not to be written to.

        Raises:
            KeyError: there is none of that name.
        """
        ...

    def with_parameters(self, changed: Mapping[str, Tensor], /) -> Graph:
        """Return a graph that has other weights or biases, each of the shape and type of the one that it replaces.

        Raises:
            KeyError: there is none of that name.
            ValueError: of another shape or type.
        """
        ...

    def fingerprint(self) -> str:
        """SHA-256 over structure and weights."""
        ...

    def constants(self) -> Iterator[tuple[str, NDArray[np.floating]]]:
        """Yield (value, array) for every float constant that an operation reads, single numbers included."""
        ...

    def watched(self, names: Collection[str], see: See, /) -> Callable[[Tensor], object]:
        """Return what runs the graph and shows `see` the values called `names`, not all in memory at a time.

        What is returned belongs to one thread; other threads take their own.
        """
        ...


def check_replacement(path: str, old: Tensor, new: Tensor) -> None:
    """Raise `ValueError` where a parameter cannot take another's place."""
    if old.shape != new.shape or old.dtype != new.dtype:
        raise ValueError(f"{path} is {tuple(old.shape)} {old.dtype}, not {tuple(new.shape)} {new.dtype}")
