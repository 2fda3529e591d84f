"""litert-torch's converter, and silence around it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from qexport.compat.patches import (
    DECOMPOSITIONS,
    DECOMPOSITIONS_AS_IMPORTED,
    LITERT_PROGRESS,
    TENSORFLOW_NOTES,
    TORCH_EXPORT,
    replaced,
    set_variables,
)
from qexport.errors import ConversionError, first_line, named_reason


def convert(graph: Any, example: Any, quantised: bool, warn: Callable[[str], None]) -> Any:
    """Return litert-torch's model of a graph.

    Args:
        graph: of ATen operators; it may be changed.
        example: what goes in, (batch, channels, height, width) or with its channels last.
        quantised: the graph has Q/DQ pairs that become integer kernels.
        warn: takes what the report has to say.

    Raises:
        ConversionError: the converter refuses the graph.
    """
    import litert_torch
    import torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    from qexport.lowering import decompositions

    config = get_symmetric_quantization_config(is_per_channel=True)
    quantisation = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(config)) if quantised else None
    try:
        with torch.no_grad():
            if decompositions.is_tested("litert-torch", "torch"):
                try:
                    with quick_steps():
                        return litert_torch.convert(graph, (example,), quant_config=quantisation)
                except Exception as error:  # whatever passes raise: the converter's own way decides
                    warn(f"converted the slow way, because the quick one failed ({named_reason(error, 120)})")
            return litert_torch.convert(graph, (example,), quant_config=quantisation)
    except Exception as error:  # the converter raises whatever its passes do
        reason = f"litert-torch cannot convert this model ({first_line(error)})"
        raise ConversionError(reason, "report the model") from error


@contextlib.contextmanager
def quick_steps() -> Iterator[None]:
    """Let litert-torch take graphs as they are and decompose them locally for the time of the block."""
    from qexport.lowering import decompositions, direct_export

    known = decompositions.Known({}, {})

    def export(module: Any, args: tuple[Any, ...], *_: Any, **__: Any) -> Any:
        return direct_export.exported_program(module, *args)

    def decompose(exported: Any, table: Any = None, can_skip: bool = True) -> Any:
        return decompositions.run_decompositions(exported, table, known)

    with (
        replaced(TORCH_EXPORT, export),
        replaced(DECOMPOSITIONS, decompose),
        replaced(DECOMPOSITIONS_AS_IMPORTED, decompose),
    ):
        yield


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the converter's and the interpreter's own progress lines away from ours."""
    set_variables(LITERT_PROGRESS, TENSORFLOW_NOTES)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
