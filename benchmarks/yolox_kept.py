"""How many detections does INT8 keep of a YOLOX-nano that comes as an ONNX file? Untrained: no weights are at hand.

    .venv/bin/python benchmarks/yolox_kept.py [--width 0.25] [--size 416] [--format onnx,openvino,tensorrt] [OPTION …]

Further options are given to qexport, such as `--optimise bias-correction` or `--ranges mse`. Layers are scaled to
what they see, SiLU is nearly straight and two classes stand out, as in `untrained`; one anchor in a hundred has an
object. Detections of FP32 from a score of 0.3 on are kept where INT8 finds the same class there, at an overlap of 0.5
and from the same score on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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
from qexport.detections.matching import SAME_OBJECT, best_overlaps
from qexport.detections.suppression import suppressed
from qexport.programs.sample_inputs import sample_inputs

QEXPORT = Path(sys.executable).with_name("qexport")
DATA = Path(__file__).resolve().parents[2] / "shared" / "datasets"
SCORE, NMS = 0.3, 0.45
PIXELS = ("--pixels", "0..255", "--bgr")
ABSENT = -4.0
"""Mean logit of all classes but the first few; columns of next to nothing would not be alike on two runtimes."""
UNMEASURED = ("--no-eval", "--no-latency", "--no-build")


def main() -> int:
    """Export, compare every format with the FP32 file, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--format", default="onnx,openvino,tensorrt")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--data", type=Path, default=DATA)
    given, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="qexport-yolox-") as scratch:
        folder = Path(scratch)
        seen = read(image_files(given.data / "coco128" / "coco128.yaml", count=16), given.size)
        path = yolox.write(looking_trained(given.width, seen), folder / "yolox.onnx", given.size)
        calibration = [
            "--data",
            str(given.data / "coco128" / "coco128.yaml"),
            "--no-eval",
            "--no-latency",
            "--no-build",
        ]
        words = [str(QEXPORT), str(path), "--int8", "--format", given.format, *PIXELS, *calibration, *more]
        subprocess.run([*words, "--quiet", "--out", str(folder / "out")], check=True)
        source = qexport.read_model(path, pixels="0..255", bgr=True)
        names = sorted((given.data / "coco-val100" / "images").rglob("*.jpg"))[: given.images]
        batches = list(sample_inputs(names, source.program, len(names)))
        floats = find_backend("onnx").runner(path, 2)
        real = [found(floats(batch)[0][0]) for batch in batches]
        for artifact in json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))["artifacts"]:
            runner = find_backend(artifact["format"]).runner(Path(artifact["path"]), 2)
            print(artifact["format"], line(real, [found(runner(batch)[0][0]) for batch in batches]), flush=True)
            for record in artifact["passes"] or ():
                print(f"  {record['name']}: {record['reason']}")
    return 0


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


def found(rows: NDArray[np.float32]) -> Detections:
    """Decode (anchors, 85) rows: scores from `SCORE` on, suppressed."""
    scores, classes = rows[:, 4] * rows[:, 5:].max(axis=1), rows[:, 5:].argmax(axis=1)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= SCORE]
    centre, size = rows[order, :2], rows[order, 2:4]
    boxes = np.concatenate((centre - size / 2, centre + size / 2), axis=1, dtype=np.float32)
    kept = suppressed(boxes, classes[order], NMS)
    empty = np.zeros((len(kept), 0), np.float32)
    return Detections(boxes[kept], scores[order][kept], classes[order][kept].astype(np.int64), empty)


def line(real: list[Detections], small: list[Detections]) -> str:
    """What INT8 keeps of FP32's detections, and how scores of those moved."""
    kept = total = 0
    shifts: list[float] = []
    for one, other in zip(real, small, strict=True):
        rows, overlap = best_overlaps(one, other)
        same = overlap >= SAME_OBJECT
        kept, total = kept + int(same.sum()), total + len(same)
        shifts += list(other.scores[rows[same]] - one.scores[same]) if len(other.scores) else []
    return f"keeps {kept} of {total}, {kept / max(total, 1):.1%}; mean shift of their scores {np.mean(shifts):+.3f}"


if __name__ == "__main__":
    sys.exit(main())
