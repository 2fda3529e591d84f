"""How many detections does INT8 keep of a YOLOX-nano that comes as an ONNX file?

    .venv/bin/python benchmarks/yolox_kept.py --weights yolox_nano.pt [--efforts none,balanced,best] [OPTION …]
    .venv/bin/python benchmarks/yolox_kept.py [--width 0.25] [--size 416] [--format onnx,openvino,tensorrt] [OPTION …]

Weights are a state dict of `tests/yolox.py`, which `benchmarks/train_yolox.py` makes in minutes on a GPU, or one of
Megvii's (the same names) of that width. Without them layers are scaled to what they see, SiLU is nearly straight and
two classes stand out, as in `untrained`; one anchor in a hundred has an object.

Calibrated on coco128, counted on coco-val100: the first images by name, and the last 30, which `train_yolox.py` leaves
out. Detections of FP32 from a score of 0.3 on are kept where INT8 finds the same class there, at an overlap of 0.5 and
from the same score on. The shift is that of all their scores, of those that fell below, too. Further options are given
to qexport, such as `--optimise bias-correction` or `--ranges mse`; --incumbent adds ONNX Runtime's own quantiser.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import yolox
from untrained import STRAIGHT, THERE

import qexport
from qexport.backends.registry import find_backend
from qexport.data.selection import image_files
from qexport.detections.detections import Detections
from qexport.detections.matching import SAME_OBJECT, class_overlaps
from qexport.detections.suppression import suppressed
from qexport.programs.sample_inputs import sample_inputs

QEXPORT = Path(sys.executable).with_name("qexport")
SHARED = Path(__file__).resolve().parents[2] / "shared"
SCORE, LOW, NMS = 0.3, 0.01, 0.45
"""Score of what counts, score from which INT8's are looked at for their shift, overlap that suppresses."""
PIXELS = ("--pixels", "0..255", "--bgr")
ABSENT = -4.0
"""Mean logit of all classes but the first few; columns of next to nothing would not be alike on two runtimes."""
UNMEASURED = ("--no-eval", "--no-latency", "--no-build")
PER_CHANNEL_OPSET = 13
HELD_OUT = 30
"""Images of coco-val100, the last by name, on which `train_yolox.py` does not train."""


def main() -> int:
    """Export with every effort, compare every format with the FP32 file, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="state dict of a trained model; its width is --width")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--format", default="onnx,openvino,tensorrt")
    parser.add_argument("--efforts", default="balanced")
    parser.add_argument("--incumbent", action="store_true", help="also quantise with ONNX Runtime's own tool")
    parser.add_argument("--shared", type=Path, default=SHARED)
    given, more = parser.parse_known_args()
    calibration = given.shared / "datasets/coco128/coco128.yaml"
    with tempfile.TemporaryDirectory(prefix="qexport-yolox-") as scratch:
        folder = Path(scratch)
        seen = read(image_files(calibration, count=16), given.size)
        model = trained(given.weights, given.width) if given.weights else looking_trained(given.width, seen)
        path = yolox.write(model, folder / "yolox.onnx", given.size)
        count = Count.of(path, given.shared / "datasets/coco-val100/images")
        if given.incumbent:
            count.tell("ONNX Runtime's quantiser", incumbent(path, calibration, given.size), "onnx")
        words = [str(QEXPORT), str(path), "--int8", "--format", given.format, *PIXELS, "--data", str(calibration)]
        for effort in given.efforts.split(","):
            out = folder / effort
            subprocess.run([*words, *UNMEASURED, "--effort", effort, *more, "--quiet", "--out", str(out)], check=True)
            report(count, effort, json.loads((out / "report.json").read_text(encoding="utf-8"))["artifacts"])
    return 0


def report(count: Count, effort: str, artifacts: Sequence[dict[str, Any]]) -> None:
    """Print a line for each file, and what became of each pass."""
    for artifact in artifacts:
        count.tell(f"{effort}, {artifact['format']}", Path(artifact["path"]), artifact["format"])
        for record in artifact["passes"] or ():
            print(f"  {record['name']}: {'kept' if record['kept'] else 'not kept'}, {record['reason']}")


@dataclass(frozen=True)
class Count:
    """What FP32 finds in images that INT8 is to find again.

    Attributes:
        batches: (1, 3, h, w) each, as the network takes them.
        real: detections of FP32 in each.
    """

    batches: list[NDArray[np.float32]]
    real: list[Detections]

    @classmethod
    def of(cls, path: Path, images: Path) -> Count:
        """FP32's detections from `SCORE` on in all images of a folder, in the order of their names."""
        program = qexport.read_model(path, pixels="0..255", bgr=True).program
        names = sorted(images.rglob("*.jpg"))
        batches = sample_inputs(names, program, len(names))
        runner = find_backend("onnx").runner(path, 2)
        return cls(batches, [found(runner(batch)[0][0], SCORE) for batch in batches])

    def tell(self, what: str, path: Path, form: str) -> None:
        """Print what a file keeps, of the images that were trained on and of those held out."""
        runner = find_backend(form).runner(path, 2)
        small = [found(runner(batch)[0][0], LOW) for batch in self.batches]
        parts = {"first": slice(-HELD_OUT), "last": slice(-HELD_OUT, None)}
        lines = (f"{name} {line(self.real[part], small[part])}" for name, part in parts.items())
        print(f"{what}: " + "; ".join(lines), flush=True)


def incumbent(path: Path, calibration: Path, size: int) -> Path:
    """Quantise by ONNX Runtime's `quantize_static`: Q/DQ, weights per channel, otherwise as it is by default.

    It writes scales of channels into files of any opset, and they are valid from opset 13 on.
    """
    import onnx
    from onnx.version_converter import convert_version
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.images = iter(image_files(calibration))

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.images, None)
            return None if image is None else {"images": read([image], size).numpy()}

    ready, made = path.with_name("ready.onnx"), path.with_name("incumbent.onnx")
    onnx.save(convert_version(onnx.load(path), PER_CHANNEL_OPSET), ready)
    quant_pre_process(ready, ready)
    quantize_static(ready, made, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    return made


def trained(weights: Path, width: float) -> yolox.YOLOX:
    """The model with the weights of a file, which is read as data."""
    model = yolox.YOLOX(width)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def read(paths: Sequence[Path], size: int) -> torch.Tensor:
    """(n, 3, size, size) in 0..255, BGR."""
    from qexport.data.images import letterbox, read_image, to_tensor

    pixels = np.stack([to_tensor(letterbox(read_image(path), (size, size))) for path in paths])
    return torch.from_numpy(255 * np.ascontiguousarray(pixels[:, ::-1]))


def looking_trained(width: float, images: torch.Tensor) -> yolox.YOLOX:
    """Statistics are the images', logits and boxes spread as behind a trained head."""
    model = yolox.settled(64, width)
    head, seen = model.head, dict[Any, torch.Tensor]()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.bias.data.fill_(STRAIGHT)
            module.momentum = None
            module.train()
    with torch.no_grad():
        model(images)
        model.eval()
        for layer in (*head.obj_preds, *head.cls_preds, *head.reg_preds):
            layer.register_forward_hook(lambda layer, _, output: seen.update({layer: output}))
        model(images)
        for layers, spread in ((head.obj_preds, 2.0), (head.cls_preds, 2.0), (head.reg_preds, 0.3)):
            for layer in layers:
                made: Any = layer
                made.weight.mul_(spread / seen[layer].std())
                made.bias.zero_()
                layer._forward_hooks.clear()
        for layer in head.obj_preds:
            layer.register_forward_hook(lambda layer, _, output: seen.update({layer: output}))
        model(images)
        for layer in head.obj_preds:
            objects: Any = layer
            objects.bias.fill_(1.0 - float(seen[layer].flatten().quantile(0.99)))
            layer._forward_hooks.clear()
        for layer in head.cls_preds:
            classes: Any = layer
            classes.bias[THERE:] += ABSENT
        for layer in head.reg_preds:
            boxes: Any = layer
            boxes.bias[2:] += 1.5
    return model


def found(rows: NDArray[np.float32], least: float) -> Detections:
    """Decode (anchors, 85) rows: scores from `least` on, suppressed."""
    scores, classes = rows[:, 4] * rows[:, 5:].max(axis=1), rows[:, 5:].argmax(axis=1)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= least]
    centre, size = rows[order, :2], rows[order, 2:4]
    boxes = np.concatenate((centre - size / 2, centre + size / 2), axis=1, dtype=np.float32)
    kept = suppressed(boxes, classes[order], NMS)
    empty = np.zeros((len(kept), 0), np.float32)
    return Detections(boxes[kept], scores[order][kept], classes[order][kept].astype(np.int64), empty)


def line(real: list[Detections], small: list[Detections]) -> str:
    """What INT8 keeps of FP32's detections, and how the scores of all moved: 0 where nothing is left of one."""
    kept, shifts = 0, list[float]()
    for one, other in zip(real, small, strict=True):
        same = np.where(class_overlaps(one, other) >= SAME_OBJECT, other.scores, 0.0)
        scores = same.max(axis=1, initial=0.0)
        kept += int((scores >= SCORE).sum())
        shifts += list(scores - one.scores)
    return f"keeps {kept} of {len(shifts)}, {kept / max(len(shifts), 1):.1%}, shift {np.mean(shifts or [0]):+.3f}"


if __name__ == "__main__":
    sys.exit(main())
