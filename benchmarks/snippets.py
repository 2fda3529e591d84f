"""Run the programs of `qexport snippet`, and one with `qexport.decode`, on files of every task.

    make bench-snippets    (or: .venv/bin/python benchmarks/snippets.py [--tasks detect …] [--kinds onnx int8-full …])

Exports the demo models small, runs each program in a process that cannot import torch or ultralytics, nor qexport but
for the files of the wheel qexport-decode, on an image of the model's size and on a wide one, and says what differs from
the package's own decode. Exits with 1 if anything does. `--files` looks at what is exported already.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomllib

if TYPE_CHECKING:
    from qexport.snippets.facts import Facts

ROOT = Path(__file__).resolve().parents[1]
SIZE = 160
KINDS = {
    "onnx": ("onnx", "fp32"),
    "openvino": ("openvino", "fp32"),
    "tflite": ("tflite", "fp32"),
    "int8-full": ("tflite", "int8-full"),
    "nhwc": ("tflite", "fp32"),
}
FORMS = {"nhwc": {"layout": "nhwc", "normalised_boxes": True}}
"""Kind → in which form its files are, where it is not the usual one."""
MAX_PIXELS, MAX_SCORE = 0.01, 0.001
"""Differences that the order of sums may make."""
ALONE = """
import runpy, sys, types
wheel, *sys.argv = sys.argv[1:]
kept_away = {"torch", "ultralytics", "torchvision", "cv2", "" if wheel else "qexport"}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in kept_away:
            raise ImportError(f"{name} is not for this program")
sys.meta_path.insert(0, Blocked())
if wheel:
    sys.modules["qexport"] = types.ModuleType("qexport")
    sys.modules["qexport"].__path__ = [wheel]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program without the package; where `wheel` is a folder, with that one as `qexport`."""
DEVICE = Path(__file__).with_name("device_program.py")


def main() -> int:
    """Compare everything that was asked for, and return the exit code."""
    from qexport.compat.quiet import quiet_libraries
    from qexport.compat.torchvision import repair
    from qexport.snippets.facts import facts_of
    from qexport.tasks import SCORING

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=list(SCORING), choices=list(SCORING))
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--heads", nargs="*", default=["end2end", "one2many"])
    parser.add_argument("--files", nargs="*", type=Path, help="exported already, in place of all of these")
    given = parser.parse_args()
    quiet_libraries()
    repair()
    wrong = []
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        for name, artifact in files(given, Path(scratch)):
            facts, folder = facts_of(artifact), Path(tempfile.mkdtemp(dir=scratch))
            for image in images(facts, folder):
                for way, differ in {"snippet": differences, "qexport.decode": device_differences}.items():
                    what = f"{name} {image.stem} {way}"
                    found = [f"{what}: {each}" for each in differ(facts, image, folder)]
                    print(*(found or [f"{what}: equal"]), sep="\n", flush=True)
                    wrong += found
    return 1 if wrong else 0


def files(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """What is looked at, with its name, each once it is exported."""
    if given.files is not None:
        yield from ((path.name, path) for path in given.files)
        return
    for task in given.tasks:
        for head in given.heads if task != "classify" else [None]:
            for kind in given.kinds:
                yield f"{task} {head or ''} {kind}", exported(task, head, kind, Path(tempfile.mkdtemp(dir=folder)))


def exported(task: str, head: str | None, kind: str, folder: Path) -> Path:
    """A demo model's file."""
    from qexport.cli.demo import DEMOS
    from qexport.job.options import make_job
    from qexport.pipeline import export
    from qexport.progress import Silent

    demo, (form, precision) = DEMOS[task], KINDS[kind]
    size = {} if task == "classify" else {"imgsz": str(SIZE), "head": head}
    quick = {"effort": "none", "calib_images": 8, "no_eval": True, "no_latency": True}
    data = {"model": str(ROOT / "calibration_data" / demo.model), "data": str(ROOT / "calibration_data" / demo.data)}
    job = make_job(
        {**data, **size, **quick, **FORMS.get(kind, {}), "format": form, "precision": precision, "out": folder / "out"}
    )
    return Path(export(job, Silent()).artifacts[-1].path)


def images(facts: Facts, folder: Path) -> Iterator[Path]:
    """One of the model's size, and a wide one."""
    from PIL import Image

    place = ROOT / "calibration_data" / "shapes" / ("crops/val" if facts.layout.classifier else "images/val")
    source = Image.open(sorted(place.rglob("*.jpg"))[1]).convert("RGB")
    for name, size in (("square", facts.layout.imgsz[::-1]), ("wide", (source.width, source.height * 3 // 5))):
        image = source.resize(size) if name == "square" else source.crop((0, 0, *size))
        image.save(folder / f"{name}.png")
        yield folder / f"{name}.png"


def differences(facts: Facts, image: Path, folder: Path) -> list[str]:
    """What a file's program prints that the package does not find, and the other way round.

    Args:
        folder: for the program and what it draws.
    """
    from qexport.snippets.program import program_of

    program = folder / "run.py"
    program.write_text(program_of(facts, "python", str(image)), encoding="ascii")
    words = [str(program), "--out", str(program.with_suffix(".png"))]
    return _alone("", words, expected(facts, image), folder)


def device_differences(facts: Facts, image: Path, folder: Path) -> list[str]:
    """As `differences`, of a program with nothing but the files of the wheel `qexport-decode`."""
    wheel = folder / "wheel"
    with (ROOT / "qexport" / "decode" / "pyproject.toml").open("rb") as stream:
        inside = tomllib.load(stream)["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for source, target in inside.items():
        (wheel / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "qexport" / "decode" / source, wheel / target)
    return _alone(str(wheel / "qexport"), [str(DEVICE), facts.model, str(image)], expected(facts, image), folder)


def _alone(wheel: str, words: list[str], wanted: list[dict[str, Any]], folder: Path) -> list[str]:
    """What a program prints that is not wanted, and the other way round."""
    start = [sys.executable, "-I", "-c", ALONE, wheel, *words]
    done = subprocess.run(start, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        return [done.stderr.strip().splitlines()[-1]]
    return list(compared([json.loads(line) for line in done.stdout.splitlines()], wanted))


def compared(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> Iterator[str]:
    """Differences of two lists of detections, each matched with the nearest of its name."""
    import numpy as np

    if len(found) != len(wanted):
        yield f"{len(found)} detections, not {len(wanted)}"
    if not wanted:
        yield "nothing to find"
    for one in wanted:
        rivals = [each for each in found if each["name"] == one["name"]]
        apart = [
            max(float(np.abs(np.subtract(each[key], one[key])).max()) / bound(key) for key in one if key != "name")
            for each in rivals
        ]
        if min(apart, default=np.inf) > 1:
            yield f"{one} is none of {rivals}"


def bound(key: str) -> float:
    """How far a value may be off."""
    return {"score": MAX_SCORE, "probability": MAX_SCORE, "mask_pixels": 2.0}.get(key, MAX_PIXELS)


def expected(facts: Facts, image: Path) -> list[dict[str, Any]]:
    """What the package finds: its own reader of images, runner and decode; into the image's pixels by Ultralytics."""
    import numpy as np

    from qexport.backends.registry import find_backend
    from qexport.data.images import PREPROCESS, read_image, to_tensor
    from qexport.detections.numpy_decode import detections_in

    pixels, layout, backend = read_image(image), facts.layout, find_backend(facts.format)
    batch = to_tensor(PREPROCESS[layout.preprocess](pixels, layout.imgsz))[None]
    outputs = [output[0] for output in backend.runner(Path(facts.model), 1)(batch)]
    if layout.classifier:
        best = np.argsort(-outputs[0])[:5]
        return [{"name": facts.names[each], "probability": float(outputs[0][each])} for each in best]
    least = facts.least_scores
    found = detections_in(outputs[0], layout, float(least.min()))
    found = found.chosen(found.scores >= least[found.classes])
    where = places(found, outputs, layout, pixels)
    return [
        {"name": facts.names[number], "score": float(score), **rest}
        for number, score, rest in zip(found.classes, found.scores, where, strict=True)
    ]


def places(found: Any, outputs: list[Any], layout: Any, pixels: Any) -> Iterator[dict[str, Any]]:
    """Where each object is, in the image's pixels."""
    import numpy as np
    import torch
    from ultralytics.utils.ops import scale_boxes, scale_coords

    from qexport.detections.detections import corner_points
    from qexport.detections.masks import instance_masks

    shape = pixels.shape[:2]
    if found.is_rotated:
        scaled = scale_boxes(layout.imgsz, torch.from_numpy(found.boxes.copy()), shape, xywh=True)
        for points in corner_points(replace(found, boxes=np.asarray(scaled))):
            yield {"corners": points.tolist()}
        return
    boxes = scale_boxes(layout.imgsz, torch.from_numpy(found.boxes.copy()), shape)
    further: list[dict[str, Any]] = [{} for _ in boxes]
    if layout.extras == "keypoints":
        points = torch.from_numpy(found.extras.reshape(-1, *layout.shape).copy())
        further = [{"keypoints": each.tolist()} for each in scale_coords(layout.imgsz, points, shape)]
    if layout.extras == "coefficients" and shape == layout.imgsz:
        masks = instance_masks(found.extras, np.moveaxis(outputs[1], 0, -1), found.boxes, layout.imgsz)
        further = [{"mask_pixels": int(mask.sum())} for mask in masks]
    yield from ({"box": box.tolist(), **rest} for box, rest in zip(boxes, further, strict=True))


if __name__ == "__main__":
    sys.exit(main())
