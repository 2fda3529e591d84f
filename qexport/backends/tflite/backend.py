"""TFLite / LiteRT: lowered with litert-torch, run with ai-edge-litert, read back from the flatbuffer."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.protocol import LowerOptions, Runner
from qexport.compat.patches import LITERT_PROGRESS, TENSORFLOW_NOTES, set_variables
from qexport.errors import ConversionError, MissingExtraError
from qexport.lowering.stored import StoredGraph
from qexport.planning.profile import TFLITE, TFLITE_INT16, TFLITE_INTEGER, RuntimeProfile
from qexport.system.machine import ANY

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program

_PACKAGES = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer", "torchao", "flatbuffers")


class TFLiteBackend:
    """Writes `.tflite` files that LiteRT, TensorFlow Lite and Ultralytics load."""

    name = "tflite"
    suffix = ".tflite"
    runtime = "LiteRT interpreter, XNNPACK where it has a kernel, built-in kernels elsewhere"
    profiles: Mapping[str, Mapping[str, RuntimeProfile]] = {
        "int8": {ANY: TFLITE},
        "int8-full": {ANY: TFLITE_INTEGER},
        "w8a16": {ANY: TFLITE_INT16},
    }
    precisions = frozenset({"fp32", "fp16", "int8", "int8-dynamic", "int8-full", "w8a16"})
    dynamic = False
    offloadable = True
    timed = True
    half_scope = "weights"

    def __init__(self) -> None:
        missing = [package for package in _PACKAGES if find_spec(package) is None]
        if missing:
            raise MissingExtraError(f"format tflite needs {', '.join(missing)}", "pip install 'qexport[tflite]'")

    def lower(
        self,
        program: Program,
        plan: QuantPlan | None,
        metadata: Mapping[str, Any],
        path: Path,
        options: LowerOptions = LowerOptions(),
    ) -> None:
        """Write a `.tflite` file with float input and output and Ultralytics' metadata."""
        import torch

        from qexport.backends.tflite.file import (
            add_float_input,
            add_float_outputs,
            append_metadata,
            check_integers,
            convert_io_to_uint8,
            name_outputs,
        )
        from qexport.backends.tflite.float_operators import restore_float_operators
        from qexport.backends.tflite.graph_fixes import prepare_for_litert
        from qexport.backends.tflite.int16 import quantise_activations_to_int16
        from qexport.backends.tflite.integer_only import raw_program
        from qexport.backends.tflite.weight_compression import RECIPES, compress_weights, kept_layers
        from qexport.programs.program import copied
        from qexport.programs.tags import tag_values
        from qexport.simulation.rewrite import simulated

        precision = metadata.get("precision", "fp32")
        graph, example = copied(program), torch.zeros(program.values["images"].shape)
        if precision == "int8-full":
            graph, example = raw_program(graph, program), example.permute(0, 2, 3, 1).contiguous()
        elif not metadata["end2end"] and program.raw_boxes:
            # Consumers of one-to-many files multiply coordinates by the image size; see `LiteRunner`.
            height, width = program.imgsz
            unit = graph.get_buffer("decode.unit")
            unit.div_(torch.tensor([width, height, width, height]).view_as(unit))
        converted = plan if precision not in ("w8a16", "int8-dynamic") else None
        if converted is not None:
            # Of these the converter makes integers with the plan's own scales; verification compares them.
            graph = simulated(program, converted, graph, float_weights=frozenset({"conv_transpose"}))
        tag_values(prepare_for_litert(graph), program)
        with _silence():
            _convert(graph, example, converted is not None, options.warn).export(str(path))
        if precision == "int8-full":
            check_integers(path, program)
            name_outputs(path, program.raw_outputs)
            if options.io == "uint8":
                convert_io_to_uint8(path)
        elif converted is not None:
            restore_float_operators(path, program, converted)
            add_float_input(path)
            add_float_outputs(path)
        elif precision == "w8a16" and plan is not None:
            quantise_activations_to_int16(path, program, plan)
        if precision in RECIPES:
            path.write_bytes(
                compress_weights(path.read_bytes(), precision, kept_layers(program, plan, options.float32))
            )
        append_metadata(path, metadata)

    def float_weights(self, program: Program) -> dict[str, str]:
        """None: every layer can have INT8 weights."""
        return {}

    def read(self, path: Path) -> StoredGraph:
        """Read types, scales and INT8 weights from the flatbuffer."""
        from qexport.backends.tflite.read import read_file

        return read_file(path)

    def runner(self, path: Path, threads: int) -> Runner:
        """Load the file into LiteRT."""
        from qexport.backends.tflite.file import read_metadata

        return runner_of(interpreter(path, threads), read_metadata(path))


class LiteRunner:
    """A `.tflite` file with float input and output in an interpreter."""

    def __init__(self, loaded: Any, metadata: Mapping[str, Any]) -> None:
        self._interpreter = loaded
        self._input = loaded.get_input_details()[0]["index"]
        # The detections have three dimensions, prototypes of masks four; the converter does not promise an order.
        ordered = sorted(loaded.get_output_details(), key=lambda details: len(details["shape"]))
        self._outputs = [details["index"] for details in ordered]
        self._metadata = metadata

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch; boxes come back in pixels for either head."""
        return self.outputs(batch)[0]

    def outputs(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The same with every output."""
        self._interpreter.set_tensor(self._input, batch)
        self._interpreter.invoke()
        found: list[NDArray[np.float32]] = [self._interpreter.get_tensor(index) for index in self._outputs]
        if not self._metadata["end2end"] and found[0].ndim == 3:
            self._to_pixels(found[0], *batch.shape[2:])
        return found

    def _to_pixels(self, output: NDArray[np.float32], height: int, width: int) -> None:
        """Undo what `lower` did to the coordinates of a one-to-many head: see its `unit`."""
        output[:, :4] *= np.array([width, height, width, height], dtype=np.float32)[:, None]
        if "kpt_shape" in self._metadata:
            first, values = 4 + len(self._metadata["names"]), self._metadata["kpt_shape"][1]
            output[:, first::values] *= width
            output[:, first + 1 :: values] *= height


def interpreter(path: Path, threads: int) -> Any:
    """Load a file into LiteRT's interpreter on the CPU, with the XNNPACK delegate."""
    from ai_edge_litert.interpreter import Interpreter

    with _silence():
        loaded = Interpreter(str(path), num_threads=threads)
        loaded.allocate_tensors()
    return loaded


def runner_of(loaded: Any, metadata: Mapping[str, Any]) -> Runner:
    """What runs a file in an interpreter of LiteRT or TensorFlow; behind raw outputs follows the decode."""
    if "raw_outputs" in metadata:
        from qexport.backends.tflite.integer_only import IntegerRunner

        return IntegerRunner(loaded, metadata)
    return LiteRunner(loaded, metadata)


def layer_output(loaded: Any, batch: NDArray[np.float32]) -> NDArray[np.integer]:
    """Run a file that ends at a layer on (1, channels, height, width) in 0..1; return the layer's integers."""
    from qexport.backends.tflite.integer_only import as_integers

    given = loaded.get_input_details()[0]
    if given["shape"][-1] == batch.shape[1]:
        batch = batch.transpose(0, 2, 3, 1)
    real = np.issubdtype(given["dtype"], np.floating)
    loaded.set_tensor(given["index"], batch if real else as_integers(batch, given))
    loaded.invoke()
    output: NDArray[np.integer] = loaded.get_tensor(loaded.get_output_details()[0]["index"])
    return output


def _convert(graph: Any, example: Any, quantised: bool, warn: Callable[[str], None]) -> Any:
    import litert_torch
    import torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    from qexport.backends.tflite.decompositions import is_tested, local_decompositions
    from qexport.backends.tflite.direct_export import direct_export

    config = get_symmetric_quantization_config(is_per_channel=True)
    quantisation = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(config)) if quantised else None
    try:
        with torch.no_grad():
            if is_tested():
                try:
                    with local_decompositions(), direct_export():
                        return litert_torch.convert(graph, (example,), quant_config=quantisation)
                except Exception as error:  # whatever passes raise: the converter's own way decides
                    first = next(iter(str(error).splitlines()), "")
                    warn(
                        f"converted the slow way, because the quick one failed ({type(error).__name__}: {first[:120]})"
                    )
            return litert_torch.convert(graph, (example,), quant_config=quantisation)
    except Exception as error:  # the converter raises whatever its passes do
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConversionError(f"litert-torch cannot convert this model ({first})", "report the model") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
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
