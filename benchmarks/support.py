"""Export freshly built models of every architecture and write what came of it into docs/architectures.md.

    make support    (or, of a few: make support ROWS="yolov6n.yaml yolov3-tiny.yaml+Mish --kinds onnx")

Each model goes through the real command path to INT8 with its verification; nothing is trained, scored or timed.
Results are kept in support.json, so that a run of a few models leaves the others as they were. Exits with 1 if a model
that should work (`REQUIRED`) does not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from untrained import INPLACE

ROOT = Path(__file__).resolve().parents[1]
PAGE, KEPT = ROOT / "docs" / "architectures.md", ROOT / "benchmarks" / "support.json"
IMAGES = ROOT / "calibration_data" / "shapes" / "images" / "train"
BEGIN, END = "<!-- support: made by `make support` -->", "<!-- /support -->"
SIZE, COUNT = 96, 4
KINDS = {"onnx": ("onnx", "int8"), "tflite": ("tflite", "int8"), "int8-full": ("tflite", "int8-full")}
"""Word of the table → format and precision."""
PACKAGES = ("ultralytics", "torch", "onnxruntime", "litert-torch", "ai-edge-litert")
TASKS = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}
FIVE = {"YOLO26": "yolo26n", "YOLO11": "yolo11n", "YOLOv8": "yolov8n"}
DETECTORS = {
    "RT-DETR": "rtdetr-l",
    "YOLO12": "yolo12n",
    "YOLOv10": "yolov10n",
    "YOLOv9": "yolov9t",
    "YOLOv6": "yolov6n",
    "YOLOv5u": "yolov5n",
    "YOLOv3u": "yolov3-tiny",
    "YOLO-World": "yolov8n-world",
    "YOLOE": "yoloe-11n",
}
MODELS = {(family, task): f"{stem}{end}.yaml" for family, stem in FIVE.items() for task, end in TASKS.items()} | {
    (family, "detect"): f"{stem}.yaml" for family, stem in DETECTORS.items()
}
PLAIN = "yolov3-tiny.yaml"
KERNELS = ("ReLU", "ReLU6", "LeakyReLU", "Hardswish", "GELU", "Tanh", "Sigmoid", "Hardtanh", "Identity")
"""Activations of torch.nn that TFLite has integer kernels for."""
ACTIVATIONS = (*KERNELS, "PReLU", "Mish", "ELU", "SELU", "CELU", "Hardsigmoid", "Softplus")
IN_PLACE = ("yolov6n.yaml", "rtdetr-l.yaml", PLAIN)
"""Models whose activations write in place, as older checkpoints have them."""
VARIANTS = {f"{PLAIN}+{name}": f"YOLOv3-tiny with {name}" for name in ACTIVATIONS} | {
    f"{yaml}+{INPLACE}": f"{yaml.removesuffix('.yaml')} in place" for yaml in IN_PLACE
}
"""Row → what it is called."""
ROWS = [*MODELS.values(), *VARIANTS]
OF_FIVE = frozenset(yaml for (family, _), yaml in MODELS.items() if family in FIVE)
DETECTED = frozenset({"rtdetr-l.yaml", "yolov6n.yaml", *VARIANTS})
WHOLE = frozenset(
    [
        "yolov6n.yaml",
        *(f"{PLAIN}+{name}" for name in KERNELS),
        *(f"{yaml}+{INPLACE}" for yaml in ("yolov6n.yaml", PLAIN)),
    ]
)
REQUIRED = {"onnx": OF_FIVE | DETECTED, "tflite": OF_FIVE | DETECTED, "int8-full": OF_FIVE | WHOLE}
Results = dict[str, dict[str, str]]
"""YAML → kind → "" where it verified, else the refusal."""


def main() -> int:
    """Run what was asked for, keep the results, write the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=ROWS, choices=ROWS, metavar="ROW")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    given = parser.parse_args()
    from qexport.compat.quiet import quiet_libraries

    quiet_libraries()
    for name in given.models:
        for kind in given.kinds:
            result = tried(name, kind)
            print(f"{name} {kind}: {result or 'verified'}", flush=True)
            kept = stored()
            kept.setdefault(name, {})[kind] = result
            KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), kept), encoding="utf-8")
    kept = stored()
    tried_now = [(name, kind) for name in given.models for kind in given.kinds]
    broken = [f"{name} {kind}" for name, kind in tried_now if name in REQUIRED[kind] and kept[name][kind]]
    print(f"should work and does not: {', '.join(broken)}" if broken else "every required model works")
    return 1 if broken else 0


def stored() -> Results:
    """Results of earlier runs."""
    kept: Results = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    return kept


def tried(name: str, kind: str, size: int = SIZE, effort: str = "balanced") -> str:
    """Build a model, export it to INT8 and verify it; return "" or the refusal."""
    import numpy as np
    import torch
    from untrained import save, untrained

    from qexport.data.images import stream
    from qexport.errors import QexportError
    from qexport.job.options import make_job
    from qexport.pipeline import export
    from qexport.progress import Silent

    few = sorted(IMAGES.glob("*.jpg"))[:COUNT]
    pixels = torch.from_numpy(np.stack([image for _, image in stream(few, (size, size), lambda *_: None)]))
    with tempfile.TemporaryDirectory(prefix="qexport-support-") as scratch:
        # A name of its own: Ultralytics takes yolov5n.pt for a file of another project.
        path = save(untrained(name, pixels), Path(scratch) / f"untrained-{name.replace('.yaml', '')}.pt")
        form, precision = KINDS[kind]
        options = {"format": form, "precision": precision, "no_eval": True, "no_latency": True, "effort": effort}
        sizes = {"imgsz": str(size), "calib_images": COUNT}
        job = make_job({"model": str(path), "data": str(IMAGES), "out": Path(scratch) / "out", **options, **sizes})
        try:
            export(job, Silent())
        except QexportError as error:
            return str(error).replace(f"{scratch}/untrained-", "")
    return ""


def with_table(text: str, results: Mapping[str, Mapping[str, str]]) -> str:
    """The page with the table of these results between its markers."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    lines = [*_rows(results), "", *_variants(results), "", *_refusals(results), *_versions()]
    return f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}"


def _rows(results: Mapping[str, Mapping[str, str]]) -> list[str]:
    families = list(dict.fromkeys(family for family, _ in MODELS))
    rows = [[family, *(_cell(results, MODELS.get((family, task), "")) for task in TASKS)] for family in families]
    return [f"| {' | '.join(row)} |" for row in [["architecture", *TASKS], ["---"] * (1 + len(TASKS)), *rows]]


def _variants(results: Mapping[str, Mapping[str, str]]) -> list[str]:
    rows = [[words, _cell(results, name)] for name, words in VARIANTS.items()]
    return [f"| {' | '.join(row)} |" for row in [["activations", "detect"], ["---"] * 2, *rows]]


def _cell(results: Mapping[str, Mapping[str, str]], name: str) -> str:
    if not name:
        return ""
    return ", ".join(kind for kind in KINDS if results.get(name, {}).get(kind) == "") or "–"


def _refusals(results: Mapping[str, Mapping[str, str]]) -> list[str]:
    named = {name: kinds for name, kinds in results.items() if name in ROWS}
    reasons = [(name, kind, why) for name, kinds in sorted(named.items()) for kind, why in kinds.items() if why]
    missing = [(name, kind, "not run yet") for name in ROWS for kind in KINDS if kind not in results.get(name, {})]
    return [f"- {name}, {kind}: {why}" for name, kind, why in [*reasons, *missing]]


def _versions() -> list[str]:
    found = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    kinds = "; ".join(f"{kind}: {' '.join(words)}" for kind, words in KINDS.items())
    return ["", f"Untrained, {SIZE} by {SIZE} pixels ({kinds}), with {found}."]


if __name__ == "__main__":
    sys.exit(main())
