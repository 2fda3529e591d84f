"""Who reads our files, and finds in an image what the package finds: the table of docs/interop.md.

    make bench-interop    (or: .venv/bin/python benchmarks/interop.py [--python PYTHON …] [--only onnxruntime …])

Exports the demo detector with both heads in every format and precision that has detections, gives each file and two
images to every consumer, and compares. `--python` names the Python of an environment with other versions of ONNX
Runtime, OpenCV or Supervision than this one's, which need nothing else there but NumPy: its rows stand beside ours.
`--rows` prints instead which operator sets the ONNX Runtime of each `--python` runs, in order of age, and whether the
table of `qexport/lowering/onnx/needs.py` says the same. Exits with 1 where a
consumer fails on a file, or finds other objects in it.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import snippets
import web

SIZE = 320
HEADS = ("end2end", "one2many")
PRECISIONS = {
    "onnx": ("fp32", "fp16", "int8", "int8-dynamic"),
    "openvino": ("fp32", "fp16", "int8", "int8-dynamic"),
    "tflite": ("fp32", "fp16", "int8", "int8-dynamic", "w8a16", "int8-full"),
}
PROGRAM = Path(__file__).with_name("runtime_program.py")
READS = {
    "onnxruntime": ("ONNX Runtime", "onnx"),
    "opencv": ("OpenCV DNN", "onnx"),
    "openvino": ("OpenVINO", "onnx openvino"),
    "litert": ("LiteRT", "tflite"),
    "tflite_micro": ("TFLite Micro", "int8-full"),
}
"""Runtime of `runtime_program.py` → name, and the formats (or the precision) that it is given."""
EQUAL = (0.001, 0.05)
"""Differences of scores and of pixels that the order of sums may make."""
PATIENCE = 600
"""Seconds for one file."""


@dataclass(frozen=True)
class Case:
    """A file."""

    path: Path
    format: str
    precision: str
    head: str


@dataclass(frozen=True)
class Consumer:
    """Something that reads files.

    Attributes:
        name: with its version, as the table has it.
        takes: whether it is given a file.
        finds: file and image → name, score and box of each object in the image's pixels.
    """

    name: str
    takes: Callable[[Case], bool]
    finds: Callable[[Case, Path], list[dict[str, Any]]]


@dataclass(frozen=True)
class Found:
    """How what was found differs from the package's: objects that are not matched, and the largest differences."""

    objects: int
    missing: int
    further: int
    score: float
    pixels: float

    def joined(self, other: Found) -> Found:
        """Of two images or files together."""
        return Found(
            self.objects + other.objects,
            self.missing + other.missing,
            self.further + other.further,
            max(self.score, other.score),
            max(self.pixels, other.pixels),
        )

    def __str__(self) -> str:
        if self.missing or self.further:
            return f"{self.missing} of {self.objects} missing, {self.further} more"
        if self.score <= EQUAL[0] and self.pixels <= EQUAL[1]:
            return "equal"
        return f"the same {self.objects}, scores within {self.score:.3f}, corners within {self.pixels:.1f} px"


def main() -> int:
    """Print the table, and return the exit code."""
    from qexport.compat.quiet import quiet_libraries
    from qexport.compat.torchvision import repair

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="*", default=[], action="extend", help="of environments with other versions")
    parser.add_argument("--only", nargs="*", default=[], help="consumers, by a part of their names")
    parser.add_argument("--formats", nargs="*", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--rows", action="store_true", help="try the table of operator sets")
    given = parser.parse_args()
    if given.rows:
        from operator_sets import tried

        return tried(given.python)
    quiet_libraries()
    repair()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qexport-bench-")))
        every = [*consumers(given.python, scratch), *web_consumers(stack, scratch)]
        known = {each.name: each for each in every}.values()  # an environment may share versions with this one
        chosen = [each for each in known if not given.only or any(word in each.name.lower() for word in given.only)]
        files = [each for form in given.formats for each in exported(form, scratch)]
        print(f"{platform.machine()}, Python {platform.python_version()}\n")
        return 1 if table(chosen, files, scratch) else 0


def table(known: Sequence[Consumer], files: Sequence[Case], scratch: Path) -> int:
    """Print a row for each consumer, format and precision, both heads together; return how many fail or differ."""
    from qexport.snippets.facts import facts_of

    print("| consumer | format | precision | finds |\n| --- | --- | --- | --- |")
    wrong = 0
    pictures = list(snippets.images(facts_of(files[0].path), scratch))
    for each in known:
        for form, precision in dict.fromkeys((case.format, case.precision) for case in files if each.takes(case)):
            told = verdict(
                each, [case for case in files if (case.format, case.precision) == (form, precision)], pictures
            )
            wrong += told != "equal" and not told.startswith("the same")
            print(f"| {each.name} | {form} | {precision} | {told} |", flush=True)
    return wrong


def verdict(consumer: Consumer, files: Sequence[Case], pictures: Sequence[Path]) -> str:
    """What is to be said of a consumer and files that differ in their heads alone."""
    told: dict[str, str] = {}
    for case in files:
        try:
            total = Found(0, 0, 0, 0.0, 0.0)
            for image in pictures:
                total = total.joined(differences(consumer.finds(case, image), wanted(case, image)))
            told[case.head] = str(total)
        except Exception as error:  # whatever a consumer says of a file is what the table is for
            told[case.head] = f"fails: {reason_of(error)}"
    if all(words.startswith("fails") for words in told.values()) or len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{head}: {words}" for head, words in told.items())


def reason_of(error: Exception) -> str:
    """The line of a consumer's complaint that says something, short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if "Error" in line or "FAIL" in line), 0)
    said = " ".join(lines[first:]) or type(error).__name__
    return said.replace("|", "/")[:300]


def wanted(case: Case, image: Path) -> list[dict[str, Any]]:
    """What the package finds."""
    from qexport.snippets.facts import facts_of

    return snippets.expected(facts_of(case.path), image)


def differences(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> Found:
    """Match objects with the nearest of their name, each once, no further off than a quarter of their size."""
    import numpy as np

    left, scores, pixels, missing = list(found), [0.0], [0.0], 0
    for one in expected:
        far = [
            float(np.abs(np.subtract(each["box"], one["box"])).max()) for each in left if each["name"] == one["name"]
        ]
        rivals = [each for each in left if each["name"] == one["name"]]
        size = max(one["box"][2] - one["box"][0], one["box"][3] - one["box"][1])
        if not far or min(far) > size / 4:
            missing += 1
            continue
        nearest = rivals[int(np.argmin(far))]
        left.remove(nearest)
        scores.append(abs(nearest["score"] - one["score"]))
        pixels.append(min(far))
    return Found(len(expected), missing, len(left), max(scores), max(pixels))


def exported(form: str, scratch: Path) -> Iterator[Case]:
    """The demo detector's files of a format."""
    from qexport.cli.demo import DEMOS
    from qexport.job.options import make_job
    from qexport.pipeline import export
    from qexport.progress import Silent

    folder = snippets.ROOT / "calibration_data"
    data = {
        "model": str(folder / DEMOS["detect"].model),
        "data": str(folder / DEMOS["detect"].data),
        "imgsz": str(SIZE),
    }
    quick = {"effort": "none", "calib_images": 16, "no_eval": True, "no_latency": True}
    for precision in PRECISIONS[form]:
        for head in HEADS:
            out = scratch / f"{form}-{precision}-{head}"
            job = make_job({**data, **quick, "head": head, "format": form, "precision": precision, "out": out})
            yield Case(Path(export(job, Silent()).artifacts[-1].path), form, precision, head)


def consumers(pythons: Sequence[str], scratch: Path) -> Iterator[Consumer]:
    """Ultralytics and Supervision, and each runtime of this environment and of the others."""
    import ultralytics

    yield Consumer(f"Ultralytics {ultralytics.__version__}, `YOLO(file)`", lambda case: True, by_ultralytics)
    for python in [sys.executable, *pythons]:
        for runtime, (name, reads) in READS.items():
            if version := version_of(python, runtime).partition("-")[0]:
                kinds = reads.split()
                takes = lambda case, kinds=kinds: bool({case.format, case.precision} & set(kinds))  # noqa: E731
                finds = lambda case, image, python=python, runtime=runtime: by_runtime(  # noqa: E731
                    python, runtime, case, image, scratch
                )
                yield Consumer(f"{name} {version}", takes, finds)
        if version := version_of(python, "supervision"):
            draws = partial(by_supervision, python)
            yield Consumer(f"Supervision {version}, `sv.Detections`", lambda case: case.format == "onnx", draws)


MODULES = {
    "onnxruntime": "onnxruntime",
    "opencv": "cv2",
    "openvino": "openvino",
    "litert": "ai_edge_litert",
    "tflite_micro": "tflite_micro",
    "supervision": "supervision",
}
ASK = """
import importlib, sys
module = importlib.import_module(sys.argv[1])
try:
    print(module.__version__)
except AttributeError:
    from importlib.metadata import version
    print(version(sys.argv[1].replace("_", "-")))
"""


def version_of(python: str, runtime: str) -> str:
    """Of a runtime in an environment; "" where it is not there."""
    words = [python, "-c", ASK, MODULES[runtime]]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)
    return done.stdout.split()[-1] if done.returncode == 0 and done.stdout.split() else ""


def by_ultralytics(case: Case, image: Path) -> list[dict[str, Any]]:
    """As its users run a file."""
    from ultralytics.models import YOLO

    from qexport.snippets.facts import facts_of

    facts = facts_of(case.path)
    model: Any = YOLO(str(case.path), task="detect")
    least = facts.least_scores
    result: Any
    (result,) = model.predict(str(image), imgsz=SIZE, conf=float(least.min()), verbose=False, device="cpu")
    boxes: Any = result.boxes
    rows = zip(boxes.cls.int().tolist(), boxes.conf.tolist(), boxes.xyxy.tolist(), strict=True)
    return [
        {"name": result.names[number], "score": score, "box": box}
        for number, score, box in rows
        if score >= least[number]
    ]


def by_runtime(python: str, runtime: str, case: Case, image: Path, scratch: Path) -> list[dict[str, Any]]:
    """Outputs of a runtime alone, decoded as on a device."""
    import numpy as np
    from PIL import Image

    from qexport.decode import as_input, found_in, in_image, prepared, read_model_info

    info = read_model_info(case.path)
    with Image.open(image) as opened:
        pixels, placement = prepared(np.asarray(opened.convert("RGB")), info.layout)
    given, kept = scratch / "given.npz", scratch / "found.npz"
    np.savez(given, images=as_input(pixels))
    ran([python, str(PROGRAM), runtime, str(case.path), str(given), str(kept)])
    with np.load(kept) as arrays:
        outputs = [arrays[str(number)] for number in range(len(arrays.files))]
    (found,) = found_in(outputs, info)
    there = in_image(found, placement, info.layout)
    rows = zip(there.classes.tolist(), there.scores.tolist(), there.boxes.tolist(), strict=True)
    return [{"name": info.names[number], "score": score, "box": box} for number, score, box in rows]


SUPERVISION = """
import json, sys
import numpy as np
import supervision as sv
found = json.load(sys.stdin)
names = sorted({each["name"] for each in found})
detections = sv.Detections(
    xyxy=np.array([each["box"] for each in found], np.float32).reshape(-1, 4),
    confidence=np.array([each["score"] for each in found], np.float32),
    class_id=np.array([names.index(each["name"]) for each in found], int),
    data={"class_name": np.array([each["name"] for each in found])},
)
image = np.zeros((640, 640, 3), np.uint8)
drawn = sv.LabelAnnotator().annotate(sv.BoxAnnotator().annotate(image.copy(), detections), detections)
if len(detections) and not drawn.any():
    raise SystemExit("Error: nothing is drawn")
print(json.dumps([
    {"name": str(name), "score": float(score), "box": box.tolist()}
    for name, score, box in zip(detections.data["class_name"], detections.confidence, detections.xyxy)
]))
"""
"""Makes Supervision's detections of ours, draws them, and reads them back."""


def by_supervision(python: str, case: Case, image: Path) -> list[dict[str, Any]]:
    """What Supervision makes of what the package finds."""
    import json

    found = [{key: each[key] for key in ("name", "score", "box")} for each in wanted(case, image)]
    answer: list[dict[str, Any]] = json.loads(ran([python, "-c", SUPERVISION], json.dumps(found)).splitlines()[-1])
    return answer


def ran(words: Sequence[str], text: str = "") -> str:
    """What a program prints.

    Raises:
        RuntimeError: with what it says, or that it died.
    """
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=PATIENCE)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"ended with {done.returncode}")
    return done.stdout


def web_consumers(stack: ExitStack, scratch: Path) -> Iterator[Consumer]:
    """The program of `qexport snippet FILE --lang js` in Node.js and in a browser, where `make web` was run."""
    import shutil

    from qexport.snippets.facts import facts_of
    from qexport.snippets.program import program_of

    def program(case: Case) -> str:
        return program_of(facts_of(case.path), "js")

    def own(case: Case) -> bool:
        return case.format == "onnx"

    if not web.version():
        print("no onnxruntime-web: make web", file=sys.stderr)
        return
    name = f"onnxruntime-web {web.version()}"
    if shutil.which("node"):
        folder = Path(tempfile.mkdtemp(dir=scratch))
        finds = lambda case, image: web.in_node(program(case), image, folder, case.path)  # noqa: E731
        yield Consumer(f"{name}, Node.js {ran(['node', '--version']).strip()[1:]}", own, finds)
    if path := web.browser():
        from playwright.sync_api import sync_playwright

        driver, page = stack.enter_context(sync_playwright()), Path(tempfile.mkdtemp(dir=scratch))
        opened = driver.chromium.launch(executable_path=path, headless=True, args=list(web.FLAGS))
        stack.callback(opened.close)
        see = lambda case, image: web.in_browser(opened, program(case), case.path, image, page)  # noqa: E731
        yield Consumer(f"{name}, Chromium {opened.version}", own, see)


if __name__ == "__main__":
    sys.exit(main())
