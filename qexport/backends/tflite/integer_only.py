"""Integer-only `.tflite` files: integers in, the raw outputs of each level out, no float tensor between.

Pixels go in as (batch, height, width, 3), as microcontrollers and accelerators take them. Boxes, class logits and what
else a head says of each level come out with a scale of their own, channels last; `qexport.decode` makes detections of
them. A classifier's logits are its one output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule

from qexport.backends.tflite.outer_form import channels_last, take_channels_last
from qexport.detections.layout import layout_of
from qexport.detections.numpy_decode import decoded, dequantised, quantised
from qexport.programs.graph_module import nodes_by_name
from qexport.programs.program import Program


def raw_program(graph: GraphModule, program: Program) -> GraphModule:
    """End a copy of the program's graph at its raw outputs, and let channels come last at both ends."""
    nodes = nodes_by_name(graph)
    take_channels_last(graph)
    output = graph.graph.output_node()
    with graph.graph.inserting_before(output):
        raw = [channels_last(graph, nodes[name]) for name in program.raw.all]
    output.args = (tuple(raw),)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph


class IntegerRunner:
    """An integer-only file in an interpreter, its raw outputs decoded in float."""

    def __init__(self, interpreter: Any, metadata: Mapping[str, Any]) -> None:
        self._interpreter = interpreter
        self._input = self._interpreter.get_input_details()[0]
        self._outputs: Sequence[Any] = self._interpreter.get_output_details()
        self._layout = layout_of(metadata)

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch (n, channels, height, width) in 0..1; boxes come back in pixels.

        Prototypes of masks are the second output, (n, k, height, width).
        """
        self._interpreter.set_tensor(self._input["index"], as_integers(batch.transpose(0, 2, 3, 1), self._input))
        self._interpreter.invoke()
        raw = [
            dequantised(self._interpreter.get_tensor(output["index"]), *output["quantization"])
            for output in self._outputs
        ]
        found = decoded(raw, self._layout)
        return (found, raw[-1].transpose(0, 3, 1, 2)) if self._layout.extras == "coefficients" else (found,)


def as_integers(values: NDArray[np.float32], details: Mapping[str, Any]) -> NDArray[np.integer]:
    """Quantise what goes into an interpreter; `details` are its input's."""
    scale, zero_point = details["quantization"]
    return quantised(values, scale, zero_point, details["dtype"])
