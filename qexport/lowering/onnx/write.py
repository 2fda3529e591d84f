"""A program as an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.errors import ConversionError, first_line

if TYPE_CHECKING:
    import onnx_ir as ir

    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program


def write_onnx(
    program: Program,
    plan: QuantPlan | None,
    metadata: Mapping[str, Any],
    path: Path,
    opset: int,
    half: bool,
    rewrite: Callable[[ir.Model], None] = lambda _: None,
    lowest: bool = False,
    full: frozenset[str] = frozenset(),
    warn: Callable[[str], None] = lambda _: None,
) -> None:
    """Export, quantise by the plan, `rewrite` what was quantised for the runtime, check and save.

    Args:
        half: in FP16, but for the values in `full`.
        lowest: label the file with the lowest operator set that its operators need.
        warn: takes what the report has to say of how the file was written.
    """
    import onnx
    import onnx_ir as ir

    from qexport.lowering.onnx.export import onnx_graph, set_metadata, unname_batch
    from qexport.lowering.onnx.needs import label_ir, label_lowest
    from qexport.lowering.onnx.qdq import drop_unused, insert_qdq
    from qexport.lowering.onnx.weights import store_weights

    model = onnx_graph(program, opset, half, full, warn)
    if plan is not None and plan.integer:
        insert_qdq(model, program, plan)
        rewrite(model)
    elif plan is not None:
        store_weights(model, program, plan)
    drop_unused(model)  # ONNX Runtime warns of each, whenever the file is loaded
    set_metadata(model, metadata)
    if program.input.dynamic and metadata.get("task"):
        unname_batch(model)
    proto = ir.serde.serialize_model(model)
    (label_lowest if lowest else label_ir)(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"the ONNX graph is not valid ({first_line(error)})", "try another --opset") from error
    path.write_bytes(proto.SerializeToString(deterministic=True))
