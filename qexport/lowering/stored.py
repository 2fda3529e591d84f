"""What an artifact says about itself, read back from the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as read back from an artifact.

    Attributes:
        dtype: "int8", "float32", …
        scale, zero_point: as in `TensorQuant`; empty when the tensor is not quantised.
        integers: the values of a constant, in the program's layout, None for activations.
    """

    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    integers: NDArray[np.integer] | None = None


@dataclass(frozen=True)
class StoredGraph:
    """What an artifact says about itself.

    Attributes:
        tensors: by plan name; only those the file still names.
        integer_macs, total_macs: multiply-accumulates by the tensor types that the file says.
        operators: kernel name → how often it occurs.
        complete: the format keeps every name, so that a planned tensor that is not here is missing.
        arithmetic: type of arithmetic ("INT8", "BF16", "FP32", …) → multiply-accumulates that the runtime does in it on
            this machine, from the graph that it compiles the file to. Empty where that is not known here.
        needs: what the file needs to be run → the least version of it, such as "ONNX Runtime" → "1.14".
        metadata: what was given as `Lowering.metadata`, values as text where the format has nothing else.
        biases: those that are stored as integers, by the name of the value that their kernel computes.
    """

    tensors: Mapping[str, StoredTensor]
    integer_macs: int
    total_macs: int
    operators: Mapping[str, int]
    complete: bool = False
    arithmetic: Mapping[str, int] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    biases: Mapping[str, StoredTensor] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stored_coverage(self) -> float:
        """Share of the multiply-accumulates that the file has in integers, 0..1."""
        return self.integer_macs / self.total_macs if self.total_macs else 0.0

    @property
    def coverage(self) -> float:
        """Share of the multiply-accumulates that run in integer kernels, 0..1; the file's where nobody knows."""
        done = sum(count for kind, count in self.arithmetic.items() if kind.startswith("INT"))
        return done / self.total_macs if self.arithmetic and self.total_macs else self.stored_coverage
