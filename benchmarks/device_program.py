"""What a file finds in an image, with its runtime, Pillow and `qexport.decode`: a line of JSON for each object.

    python benchmarks/device_program.py FILE image.jpg

`benchmarks/snippets.py` runs it with the files of the wheel `qexport-decode` alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qexport.decode import (
    ModelInfo,
    as_input,
    corner_points,
    dequantised,
    found_in,
    in_image,
    prepared,
    probabilities,
    prototypes,
    read_model_info,
)
from qexport.decode.masks import image_masks
from qexport.decode.metadata import openvino_metadata


def main(model: str, image: str) -> None:
    """Print what is found."""
    info = read_model_info(model)
    with Image.open(image) as opened:
        pixels, placement = prepared(np.asarray(opened.convert("RGB")), info.layout)
    outputs = outputs_of(model, info, pixels)
    for line in objects(outputs, info, placement):
        print(json.dumps(line))


def objects(outputs: list[Any], info: ModelInfo, placement: Any) -> Iterator[dict[str, Any]]:
    """Name, score and place of each object in the image's pixels; of a classifier the five likeliest classes."""
    if info.layout.classifier:
        for number in np.argsort(-probabilities(outputs, info)[0], kind="stable")[:5].tolist():
            yield {"name": info.names[number], "probability": float(probabilities(outputs, info)[0][number])}
        return
    (found,) = found_in(outputs, info)
    there = in_image(found, placement, info.layout)
    further: list[dict[str, Any]] = [{"box": box} for box in there.boxes.tolist()]
    if info.task == "segment":
        masks = image_masks(found.extras, prototypes(outputs, info)[0], found.boxes, placement)
        further = [{**each, "mask_pixels": int(mask.sum())} for each, mask in zip(further, masks, strict=True)]
    if info.task == "pose":
        points = there.extras.reshape(-1, *info.layout.shape).tolist()
        further = [{**each, "keypoints": keypoints} for each, keypoints in zip(further, points, strict=True)]
    if info.task == "obb":
        further = [{"corners": corners} for corners in corner_points(there).tolist()]
    for number, score, rest in zip(there.classes.tolist(), there.scores.tolist(), further, strict=True):
        yield {"name": info.names[number], "score": score, **rest}


def outputs_of(model: str, info: ModelInfo, pixels: Any) -> list[Any]:
    """Run the file on one image."""
    if Path(model).is_dir():
        import openvino

        # As the package runs them: where a CPU has BF16, whose steps are half a pixel at a hundred, other files use it.
        exact = openvino_metadata(Path(model)).get("precision") == "fp32"
        hints = {"INFERENCE_PRECISION_HINT": "f32"} if exact else {}
        compiled = openvino.Core().compile_model(next(Path(model).glob("*.xml")), "CPU", hints)
        return [each.copy() for each in compiled.create_infer_request().infer({0: as_input(pixels)}).to_tuple()]
    if model.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return list(session.run(None, {session.get_inputs()[0].name: as_input(pixels)}))
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]
    interpreter.set_tensor(given["index"], as_input(pixels, given["dtype"], given["quantization"], info.channels_last))
    interpreter.invoke()
    outputs = interpreter.get_output_details()
    return [dequantised(interpreter.get_tensor(each["index"]), *each["quantization"]) for each in outputs]


if __name__ == "__main__":
    main(*sys.argv[1:])
