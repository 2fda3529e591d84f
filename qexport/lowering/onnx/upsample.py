"""Nearest-neighbour upsampling as copies: ONNX Runtime's integer `Resize` walks element by element, `Expand` copies.

Measured with YOLO26n on AVX2: 2.4 ms of 45 in two `Resize` nodes, 0.2 ms as copies. The channels go last for it, as
the integer convolutions around it have them, so that the runtime cancels both transpositions.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def upsample_by_copies(model: ir.Model) -> None:
    """Replace each `Resize` that repeats every pixel a whole number of times; all others stay as they are."""
    for node in list(model.graph):
        times = _times(node)
        if times is not None:
            _replace(model, node, *times)


def _times(node: ir.Node) -> tuple[int, int] | None:
    """(rows, columns): how often each pixel is repeated, or None where the node does something else."""
    if node.op_type != "Resize" or _text(node, "mode", "nearest") != "nearest":
        return None
    if (_text(node, "coordinate_transformation_mode"), _text(node, "nearest_mode")) != ("asymmetric", "floor"):
        return None
    scales = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if scales is None or len(node.inputs) > 3:
        return None
    batch, channels, rows, columns = (float(scale) for scale in scales.numpy())
    whole = batch == channels == 1 and rows.is_integer() and columns.is_integer()
    return (int(rows), int(columns)) if whole else None


def _text(node: ir.Node, name: str, default: str = "") -> str:
    return node.attributes[name].as_string() if name in node.attributes else default


def _replace(model: ir.Model, node: ir.Node, rows: int, columns: int) -> None:
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    assert result.shape is not None
    channels, height, width = (size for size in result.shape[1:] if isinstance(size, int))
    tape, name = ir.tape.Tape(), str(result.name)

    def shape(part: str, *sizes: int) -> ir.Value:
        tensor = ir.tensor(np.array(sizes, dtype=np.int64), name=f"{name}/{part}")
        return tape.initializer(tensor)

    last = tape.op("Transpose", [source], {"perm": [0, 2, 3, 1]})
    # A size of 0 takes the batch as it is.
    apart = tape.op("Reshape", [last, shape("apart", 0, height // rows, 1, width // columns, 1, channels)])
    copies = tape.op("Expand", [apart, shape("copies", 1, 1, rows, 1, columns, 1)])
    joined = tape.op("Reshape", [copies, shape("joined", 0, height, width, channels)])
    first = tape.op("Transpose", [joined], {"perm": [0, 3, 1, 2]})
    _swap(model, node, tape, first)


def _swap(model: ir.Model, node: ir.Node, tape: ir.tape.Tape, new: ir.Value) -> None:
    """Put the tape's nodes where `node` is; their result takes over the old one's name, type and shape."""
    old = node.outputs[0]
    for number, step in enumerate(tape.nodes):
        step.name = step.outputs[0].name = f"{old.name}/{number}"
    for constant in tape.initializers:
        model.graph.register_initializer(constant)
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], tape.nodes, [old], [new])
