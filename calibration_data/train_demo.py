"""Train the demo models `calibration_data/shapes26*.pt` on rendered images, on a CPU.

    python calibration_data/train_demo.py [TASK …] [--images N] [--work DIR]

The detector is trained from scratch; the other tasks start from its weights, as far as their layers are the same. The
training images are rendered with another seed than the committed data set, whose validation split scores the result,
with both heads where there are two.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import render

HERE = Path(__file__).resolve().parent
ARCHITECTURE = HERE / "shapes26.yaml"
TRAIN_SEED = 2601  # any seed but render.COMMITTED_SEED


@dataclass(frozen=True)
class Stage:
    """One training run: image side (pixels), passes over the images, first learning rate, zoom fraction."""

    imgsz: int
    epochs: int
    rate: float
    scale: float


@dataclass(frozen=True)
class Task:
    """What is trained for a task.

    Attributes:
        suffix: of the checkpoint's name.
        head: last layer of the architecture, None for the one that the file has.
        stages: in their order.
        figure: attribute path of the metric that is gated.
        gate: the least that it may be.
        settings: entries of the architecture besides.
        both: whether there are two heads to score.
        upside_down: whether half of the images are turned over. Ultralytics lets the same keypoints change places
            whichever way an image is turned: the upper end would become the lower one.
    """

    suffix: str
    head: list[Any] | None
    stages: tuple[Stage, ...]
    figure: str
    gate: float
    settings: dict[str, Any] = field(default_factory=dict)
    both: bool = True
    upside_down: bool = True


LEVELS = [16, 19, 22]
LATER = (Stage(imgsz=192, epochs=4, rate=0.002, scale=0.4), Stage(imgsz=320, epochs=1, rate=0.0005, scale=0.1))
TASKS = {
    # Small images are three times as fast; the zoom shows the objects as large as the second stage will.
    "detect": Task(
        "",
        None,
        (Stage(imgsz=192, epochs=6, rate=0.002, scale=0.4), Stage(imgsz=320, epochs=3, rate=0.001, scale=0.1)),
        "box.map",
        0.80,
    ),
    "segment": Task("-seg", [LEVELS, 1, "Segment26", ["nc", 32, 256]], LATER, "seg.map", 0.60),
    "pose": Task(
        "-pose",
        [LEVELS, 1, "Pose26", ["nc", [render.KEYPOINTS, 3]]],
        LATER,
        "pose.map",
        0.60,
        {"kpt_shape": [render.KEYPOINTS, 3]},
        upside_down=False,
    ),
    "obb": Task("-obb", [LEVELS, 1, "OBB26", ["nc", 1]], LATER, "box.map", 0.60),
    "classify": Task(
        "-cls",
        [-1, 1, "Classify", ["nc"]],
        (Stage(imgsz=render.CROP, epochs=10, rate=0.001, scale=0.1),),
        "top1",
        0.90,
        both=False,
    ),
}

_KEPT_ARGUMENTS = ("task", "imgsz", "epochs", "batch", "optimizer", "lr0", "seed")
_KEPT_KEYS = ("version", "license", "docs")


def checkpoint_of(task: str) -> Path:
    """Where a task's checkpoint is kept."""
    return HERE / f"shapes26{TASKS[task].suffix}.pt"


def architecture(task: str, work: Path) -> Path:
    """Return the model's YAML: the detector's with another head, for classification without what is behind C2PSA."""
    import yaml

    wanted = TASKS[task]
    if wanted.head is None:
        return ARCHITECTURE
    content = yaml.safe_load(ARCHITECTURE.read_text(encoding="utf-8")) | wanted.settings
    content["head"] = [*([] if task == "classify" else content["head"][:-1]), wanted.head]
    path = work / f"{ARCHITECTURE.stem}{wanted.suffix}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def prepare(task: str, work: Path, images: int) -> Path:
    """Render a task's training split under `work`, its committed validation split, too; return what `data=` takes.

    Both stay out of the committed folder, and with them Ultralytics' label caches. Images already rendered are kept.
    """
    if task == "classify":
        render.render_crops(work, "train", images // len(render.NAMES), TRAIN_SEED)
        render.render_crops(work, "val", render.CROPS_EACH, render.COMMITTED_SEED)
        return work
    if task != "detect":
        render.render_split(work, "train", images, TRAIN_SEED, task)
        render.render_split(work, "val", render.COMMITTED_VAL, render.COMMITTED_SEED, task)
        return render.write_description(work, task)
    present = len(list((work / "images" / "train").glob("*.jpg")))
    if present != images:
        render.render_split(work, "train", images, TRAIN_SEED)
    for part in ("images", "labels"):
        shutil.copytree(render.COMMITTED / part / "val", work / part / "val", dirs_exist_ok=True)
    return render.write_description(work)


def train(task: str, weights: Path, stage: Stage, data: Path, work: Path) -> Path:
    """Train from a model YAML or a checkpoint and return the best checkpoint, not yet cleaned."""
    from ultralytics.models import YOLO

    model: Any = YOLO(str(weights), task=task)
    if weights.suffix == ".yaml" and task != "detect":
        model.load(str(checkpoint_of("detect")))
    model.train(
        data=str(data),
        imgsz=stage.imgsz,
        epochs=stage.epochs,
        lr0=stage.rate,
        scale=stage.scale,
        batch=16,
        nbs=16,
        optimizer="AdamW",
        warmup_epochs=0.5,
        translate=0.05,
        flipud=0.5 if TASKS[task].upside_down else 0.0,
        mosaic=0.0,
        cache="ram",
        amp=False,
        plots=False,
        seed=0,
        device="cpu",
        project=str(work / "runs"),
        name=f"{task}{stage.imgsz}",
        exist_ok=True,
    )
    return Path(model.trainer.best)


def publish(trained: Path, target: Path) -> None:
    """Write the checkpoint at `target`: FP16 weights, no optimizer, and no path or date of this machine."""
    import torch

    stored: dict[str, Any] = torch.load(trained, map_location="cpu", weights_only=False)
    model = stored["ema"] or stored["model"]
    model.half().requires_grad_(False)
    model.criterion = None
    arguments = {key: value for key, value in stored["train_args"].items() if key in _KEPT_ARGUMENTS}
    model.args = arguments
    model.yaml["yaml_file"], model.pt_path = f"{target.stem}.yaml", target.name
    kept = {key: stored[key] for key in _KEPT_KEYS if key in stored}
    torch.save({**kept, "epoch": -1, "model": model, "ema": None, "train_args": arguments}, target)


def score(task: str, data: Path, end2end: bool) -> float:
    """Return the task's figure of one head on the validation split of `data`."""
    from ultralytics.models import YOLO

    checkpoint = checkpoint_of(task)

    model: Any = YOLO(str(checkpoint))
    # The validator sets the head's `end2end` itself: only `nms=False` selects the end-to-end head.
    nms = False if end2end else None
    found = model.val(
        data=str(data),
        imgsz=TASKS[task].stages[-1].imgsz,
        batch=16,
        nms=nms,
        plots=False,
        device="cpu",
        project=str(data.parent / "runs"),
    )
    return float(attrgetter(TASKS[task].figure)(found))


def isolate(work: Path) -> None:
    """Keep Ultralytics from downloading and from writing outside `work`, and let it import torchvision."""
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ["YOLO_OFFLINE"] = "true"
    os.environ["YOLO_CONFIG_DIR"] = str(work / "settings")
    sys.path.insert(0, str(HERE.parent))
    from qexport.compat.torchvision import repair

    repair()


def make(task: str, work: Path, images: int) -> bool:
    """Render, train, write the checkpoint, print its figures; return whether they pass."""
    work.mkdir(parents=True, exist_ok=True)
    data = prepare(task, work, images)
    started = time.monotonic()
    weights = architecture(task, work)
    for stage in TASKS[task].stages:
        weights = train(task, weights, stage, data, work)
    print(f"{task}: trained in {(time.monotonic() - started) / 60:.1f} min")
    target = checkpoint_of(task)
    publish(weights, target)
    heads = ("end2end", "one2many") if TASKS[task].both else ("one2many",)
    scores = {name: score(task, data, name == "end2end") for name in heads}
    print(task, {name: round(value, 4) for name, value in scores.items()}, f"{target.stat().st_size} bytes")
    return min(scores.values()) >= TASKS[task].gate


def main() -> None:
    """Train what the command line asks for."""
    parser = argparse.ArgumentParser(description="Train the demo models on rendered images.")
    parser.add_argument("tasks", nargs="*", default=list(TASKS), help="default: all")
    parser.add_argument("--images", type=int, default=5000, help="training images to render (%(default)s)")
    parser.add_argument("--work", type=Path, help="scratch folder (default: a new temporary one)")
    wanted = parser.parse_args()
    work = wanted.work or Path(tempfile.mkdtemp(prefix="shapes26-"))
    isolate(work)
    failed = [task for task in wanted.tasks if not make(task, work / task, wanted.images)]
    if failed:
        sys.exit(f"below the gate: {', '.join(failed)}")


if __name__ == "__main__":
    main()
