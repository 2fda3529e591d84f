"""Train the demo model `calibration_data/shapes26.pt` from scratch on rendered images, on a CPU.

    python calibration_data/train_demo.py [--images N] [--work DIR]

The training images are rendered with another seed than the committed data set, whose validation split scores
the result with both heads.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import render

HERE = Path(__file__).resolve().parent
ARCHITECTURE = HERE / "shapes26.yaml"
CHECKPOINT = HERE / "shapes26.pt"
TRAIN_SEED = 2601  # any seed but render.COMMITTED_SEED
GATE = 0.80


@dataclass(frozen=True)
class Stage:
    """One training run: image side (pixels), passes over the images, first learning rate, zoom fraction."""

    imgsz: int
    epochs: int
    rate: float
    scale: float


# Small images are three times as fast; the zoom shows the objects as large as the second stage will.
STAGES = (
    Stage(imgsz=192, epochs=6, rate=0.002, scale=0.4),
    Stage(imgsz=320, epochs=3, rate=0.001, scale=0.1),
)

_KEPT_ARGUMENTS = ("task", "imgsz", "epochs", "batch", "optimizer", "lr0", "seed")
_KEPT_KEYS = ("version", "license", "docs")


def prepare(work: Path, images: int) -> Path:
    """Render the training split under `work`, add the committed validation split and return the data YAML.

    The copy keeps Ultralytics' label caches out of the committed folder. Images already rendered are kept.
    """
    present = len(list((work / "images" / "train").glob("*.jpg")))
    if present != images:
        render.render_split(work, "train", images, TRAIN_SEED)
    for part in ("images", "labels"):
        shutil.copytree(render.COMMITTED / part / "val", work / part / "val", dirs_exist_ok=True)
    return render.write_description(work)


def train(weights: Path, stage: Stage, data: Path, work: Path) -> Path:
    """Train from a model YAML or a checkpoint and return the best checkpoint, not yet cleaned."""
    from ultralytics.models import YOLO

    model: Any = YOLO(str(weights))
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
        flipud=0.5,
        mosaic=0.0,
        cache="ram",
        amp=False,
        plots=False,
        seed=0,
        device="cpu",
        project=str(work / "runs"),
        name=f"stage{stage.imgsz}",
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
    model.yaml["yaml_file"], model.pt_path = ARCHITECTURE.name, target.name
    kept = {key: stored[key] for key in _KEPT_KEYS if key in stored}
    torch.save({**kept, "epoch": -1, "model": model, "ema": None, "train_args": arguments}, target)


def score(checkpoint: Path, data: Path, end2end: bool) -> float:
    """Return the box mAP50-95 of one head on the validation split of `data`."""
    from ultralytics.models import YOLO

    model: Any = YOLO(str(checkpoint))
    # The validator sets the head's `end2end` itself: only `nms=False` selects the end-to-end head.
    nms = False if end2end else None
    found = model.val(
        data=str(data),
        imgsz=render.SIZE,
        batch=16,
        nms=nms,
        plots=False,
        device="cpu",
        project=str(data.parent / "runs"),
    )
    return float(found.box.map)


def isolate(work: Path) -> None:
    """Keep Ultralytics from downloading and from writing outside `work`, and let it import torchvision."""
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ["YOLO_OFFLINE"] = "true"
    os.environ["YOLO_CONFIG_DIR"] = str(work / "settings")
    sys.path.insert(0, str(HERE.parent))
    from qexport.torchvision_repair import repair

    repair()


def main() -> None:
    """Render, train, write the checkpoint, and print the mAP of both heads."""
    parser = argparse.ArgumentParser(description="Train the demo model from scratch on rendered images.")
    parser.add_argument("--images", type=int, default=5000, help="training images to render (%(default)s)")
    parser.add_argument("--work", type=Path, help="scratch folder (default: a new temporary one)")
    wanted = parser.parse_args()
    work = wanted.work or Path(tempfile.mkdtemp(prefix="shapes26-"))
    isolate(work)
    data = prepare(work, wanted.images)
    started = time.monotonic()
    weights = ARCHITECTURE
    for stage in STAGES:
        weights = train(weights, stage, data, work)
    print(f"trained in {(time.monotonic() - started) / 60:.1f} min")
    publish(weights, CHECKPOINT)
    scores = {name: score(CHECKPOINT, data, name == "end2end") for name in ("end2end", "one2many")}
    print({name: round(value, 4) for name, value in scores.items()}, f"{CHECKPOINT.stat().st_size} bytes")
    if min(scores.values()) < GATE:
        sys.exit(f"below the gate of {GATE} mAP50-95")


if __name__ == "__main__":
    main()
