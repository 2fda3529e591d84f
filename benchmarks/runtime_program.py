"""What one runtime makes of a file: outputs for an input, with NumPy and that runtime alone, in any Python from 3.7 on.

    python benchmarks/runtime_program.py RUNTIME FILE GIVEN.npz FOUND.npz

GIVEN has the array `images`; FOUND gets the outputs as `0`, `1`, …; integers become floats by their scales.
Prints the runtime's version. `benchmarks/interop.py` runs it, also in environments with other versions than its own.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def main(runtime: Any, model: Any, given: Any, found: Any) -> None:
    """Run the file and keep what comes out."""
    with np.load(given) as arrays:
        images = arrays["images"]
    version, outputs = RUNTIMES[runtime](model, images)
    np.savez(found, **{str(number): output for number, output in enumerate(outputs)})
    print(version)


def onnx_runtime(model: Any, images: Any) -> Any:
    """As any program would call it; before 1.9 a session needs no providers, before 1.4 it takes none."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    named = {"providers": ["CPUExecutionProvider"]} if hasattr(onnxruntime, "get_available_providers") else {}
    session = onnxruntime.InferenceSession(model, options, **named)
    return onnxruntime.__version__, session.run(None, {session.get_inputs()[0].name: images})


def opencv(model: Any, images: Any) -> Any:
    """The engine that OpenCV chooses."""
    import cv2

    network = cv2.dnn.readNetFromONNX(model)
    network.setInput(images)
    return cv2.__version__, network.forward(network.getUnconnectedOutLayersNames())


def openvino_runtime(model: Any, images: Any) -> Any:
    """Of a folder or an `.onnx` file, with floats in FP32, so that a CPU with BF16 gives the same."""
    import os

    import openvino

    path = os.path.join(model, "model.xml") if os.path.isdir(model) else model
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return openvino.__version__, [each.copy() for each in compiled(images).to_tuple()]


def litert(model: Any, images: Any) -> Any:
    """Floats, or integers as floats where the file has no others."""
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    interpreter.set_tensor(given["index"], fitting(images, given["dtype"], given["quantization"]))
    interpreter.invoke()
    outputs = interpreter.get_output_details()
    values = [as_floats(interpreter.get_tensor(each["index"]), each["quantization"]) for each in outputs]
    return version("ai-edge-litert"), values


def tflite_micro(model: Any, images: Any) -> Any:
    """TensorFlow Lite Micro's interpreter, which knows scales and places of inputs and outputs, too."""
    from importlib.metadata import version

    from tflite_micro.python.tflite_micro.runtime import Interpreter

    interpreter = Interpreter.from_file(model, arena_size=64 * 1024 * 1024)
    given = interpreter.get_input_details(0)
    interpreter.set_input(fitting(images, given["dtype"], scale_of(given)), 0)
    interpreter.invoke()
    count = len(outputs_of(model))
    values = [as_floats(interpreter.get_output(n), scale_of(interpreter.get_output_details(n))) for n in range(count)]
    return version("tflite_micro"), values


def outputs_of(model: Any) -> Any:
    """The outputs as LiteRT names them: the other one does not say how many there are."""
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model).get_output_details()


def scale_of(details: Any) -> Any:
    """Scale and zero point, of lists with one of each."""
    parameters = details["quantization_parameters"]
    return float(parameters["scales"][0]), int(parameters["zero_points"][0])


def fitting(images: Any, dtype: Any, quantization: Any) -> Any:
    """Images (n, 3, height, width) as they are, for a file of integers as those, (n, height, width, 3)."""
    if not np.issubdtype(dtype, np.integer):
        return images
    scale, zero = quantization
    limits = np.iinfo(dtype)
    steps = np.rint(images.transpose(0, 2, 3, 1) / scale) + zero
    return np.ascontiguousarray(np.clip(steps, limits.min, limits.max).astype(dtype))


def as_floats(values: Any, quantization: Any) -> Any:
    """Integers by their scale, floats as they are."""
    if not np.issubdtype(values.dtype, np.integer):
        return values
    scale, zero = quantization
    return (values.astype(np.float32) - zero) * np.float32(scale)


RUNTIMES = {
    "onnxruntime": onnx_runtime,
    "opencv": opencv,
    "openvino": openvino_runtime,
    "litert": litert,
    "tflite_micro": tflite_micro,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
