"""TFLite / LiteRT: lowered with litert-torch, run with ai-edge-litert, read back from the flatbuffer."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.info import check_precision
from qexport.backends.protocol import Runner
from qexport.backends.tflite.convert import silence
from qexport.backends.tflite.info import INFO
from qexport.detections.file_form import as_metadata, form_of
from qexport.detections.layout import layout_of
from qexport.detections.numpy_decode import scale_to_pixels
from qexport.lowering.stored import StoredGraph

if TYPE_CHECKING:
    from qexport.lowering.convolutions import ConvolutionStack
    from qexport.lowering.request import Lowering


class TFLiteBackend:
    """Writes `.tflite` files that LiteRT, TensorFlow Lite and Ultralytics load."""

    info = INFO

    def lower(self, request: Lowering, path: Path) -> None:
        """Write a `.tflite` file with float input and output, or integer ones, and Ultralytics' metadata.

        Behind those the metadata say what form the file has.
        """
        from qexport.backends.tflite.file import append_metadata
        from qexport.backends.tflite.outer_form import asked_form, remarks
        from qexport.backends.tflite.write import WRITERS

        check_precision(self.info, request.target.precision)
        form = asked_form(request)
        for remark in remarks(request, form):
            request.warn(remark)
        WRITERS[request.target.precision](request, path)
        append_metadata(path, {**request.metadata, **as_metadata(form, request.program.layout)})

    def read(self, path: Path) -> StoredGraph:
        """Read types, scales and INT8 weights from the flatbuffer, and the metadata behind it."""
        from qexport.backends.tflite.read import read_file
        from qexport.decode.metadata import tflite_metadata

        metadata = tflite_metadata(path) if zipfile.is_zipfile(path) else {}
        return replace(read_file(path), metadata=metadata)

    def runner(self, path: Path, threads: int) -> Runner:
        """Load the file into LiteRT."""
        from qexport.decode.metadata import tflite_metadata

        return runner_of(interpreter(path, threads), tflite_metadata(path))

    def convolutions(self, stack: ConvolutionStack, threads: int) -> dict[str, Callable[[], object]]:
        """Run the stack in float and in integers."""
        from qexport.backends.tflite.convolutions import write_convolutions
        from qexport.backends.tflite.read import read_file

        found: dict[str, Callable[[], object]] = {}
        with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
            for integers in (False, True):
                path = Path(scratch) / f"{integers}.tflite"
                write_convolutions(stack, path, integers)
                loaded = interpreter(path, threads)
                given = loaded.get_input_details()[0]
                loaded.set_tensor(given["index"], np.ones(given["shape"], given["dtype"]))
                (kind,) = read_file(path).arithmetic
                found[kind] = loaded.invoke
        return found


class LiteRunner:
    """A `.tflite` file with float input and output in an interpreter, whatever form the file has."""

    def __init__(self, loaded: Any, metadata: Mapping[str, Any]) -> None:
        self._interpreter = loaded
        self._input = loaded.get_input_details()[0]["index"]
        # The detections have three dimensions, prototypes of masks four; the converter does not promise an order.
        ordered = sorted(loaded.get_output_details(), key=lambda details: len(details["shape"]))
        self._outputs = [details["index"] for details in ordered]
        self._layout = layout_of(metadata)
        self._form = form_of(metadata, self._layout, tflite=True)

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch (n, channels, height, width); boxes come back in pixels, prototypes with channels first."""
        last = self._form.channels_last
        self._interpreter.set_tensor(self._input, batch.transpose(0, 2, 3, 1) if last else batch)
        self._interpreter.invoke()
        found, *prototypes = (self._interpreter.get_tensor(index) for index in self._outputs)
        if self._form.normalised and found.ndim == 3:
            scale_to_pixels(found, self._layout)
        return (found, *(np.ascontiguousarray(each.transpose(0, 3, 1, 2)) if last else each for each in prototypes))


def interpreter(path: Path, threads: int) -> Any:
    """Load a file into LiteRT's interpreter on the CPU, with the XNNPACK delegate."""
    from ai_edge_litert.interpreter import Interpreter

    with silence():
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
