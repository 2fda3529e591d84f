"""Train the YOLOX-nano of `tests/yolox.py` from nothing: what `benchmarks/yolox_kept.py --weights` tries INT8 on.

    .venv/bin/python benchmarks/train_yolox.py --out yolox_nano.pt [--seconds 165] [--device cuda] [--shared DIR]

It wants a GPU: 165 seconds on an NVIDIA H200 were 1650 steps of 64 images, 534 epochs, and a network that finds three
quarters of the objects that it was trained on, few others. A CPU does as much in a day. Images are coco128's and
coco-val100's but for the last 30 by name. What is learned depends on how many steps there is time for.

After Ge et al., "YOLOX: Exceeding YOLO Series in 2021" (arXiv 2107.08430): mosaics, SimOTA, IoU loss, L1 at the end,
a moving average of the weights; AdamW in place of SGD, as there are few steps. Batch normalisations end with the
statistics of images as the network is going to see them.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import yolox
from yolox_kept import HELD_OUT, SHARED

from qexport.data.dataset import label_path
from qexport.data.images import read_image, stretch
from qexport.detections.placement import PADDING

SIZE, CANVAS, CLASSES, MOST_BOXES = 416, 640, 80, 80
"""Pixels that the network takes, pixels that images are kept in, and boxes of a batch's image at most."""
MOSAIC = 0.5
"""Share of images of four tiles, in the first half of the time."""
RADIUS, CANDIDATES = 1.5, 10
"""SimOTA: cells around an object's middle that may find it, and how many overlaps say how many do."""
RATE, DECAY, MAX_NORM, WARM_UP = 2e-3, 0.05, 20.0, 200
AVERAGING = 0.998


@dataclass(frozen=True)
class Images:
    """All images, on the device.

    Attributes:
        pixels: (n, 3, CANVAS, CANVAS) uint8 BGR, each at the top left.
        boxes: (n, most, 5) class and corners in pixels; class -1 where there is none.
        sizes: (n, 2) height and width.
    """

    pixels: Tensor
    boxes: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class Batch:
    """Pixels (n, 3, SIZE, SIZE) in 0..255; boxes (n, m, 4) as corners, classes (n, m), and which of them there are."""

    pixels: Tensor
    boxes: Tensor
    classes: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Place:
    """Where images lie: pixel x of an image at `across` x + `left`, y at `down` y + `top`; each (n,)."""

    across: Tensor
    down: Tensor
    left: Tensor
    top: Tensor


@dataclass(frozen=True)
class Cells:
    """(1, anchors, 2) columns and rows of all levels' cells, and (1, anchors, 1) their strides."""

    grid: Tensor
    stride: Tensor


def main() -> int:
    """Train for a time, and write what was learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("yolox_nano.pt"))
    parser.add_argument("--seconds", type=float, default=165)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", type=Path, default=SHARED)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    images = load(trained_on(given.shared / "datasets"), given.device)
    model = recalibrated(train(images, given.seconds, given.batch, given.device), images)
    torch.save({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, given.out)
    print(f"{given.out} is written")
    return 0


def trained_on(datasets: Path) -> list[Path]:
    """Files of both data sets, without those that are held out."""
    seen = sorted((datasets / "coco128" / "images").rglob("*.jpg"))
    return seen + sorted((datasets / "coco-val100" / "images").rglob("*.jpg"))[:-HELD_OUT]


def load(paths: Sequence[Path], device: str) -> Images:
    """Read images and labels; those larger than the canvas are made smaller."""
    pixels = np.full((len(paths), 3, CANVAS, CANVAS), PADDING, np.uint8)
    sizes, rows = np.zeros((len(paths), 2), np.float32), list[Tensor]()
    for number, path in enumerate(paths):
        image = read_image(path)
        scale = min(CANVAS / max(image.shape[:2]), 1)
        image = stretch(image, (round(image.shape[0] * scale), round(image.shape[1] * scale)))
        height, width = image.shape[:2]
        pixels[number, :, :height, :width] = image.transpose(2, 0, 1)
        sizes[number] = height, width
        rows.append(labels(path, width, height))
    boxes = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1.0)
    return Images(*(each.to(device) for each in (torch.from_numpy(pixels), boxes, torch.from_numpy(sizes))))


def labels(image: Path, width: int, height: int) -> Tensor:
    """(boxes, 5) class and corners in pixels."""
    path = label_path(image)
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    rows = torch.tensor([[float(word) for word in line.split()] for line in lines if line.strip()]).reshape(-1, 5)
    scale = torch.tensor([width, height], dtype=torch.float32)
    middle, half = rows[:, 1:3] * scale, rows[:, 3:5] * scale / 2
    return torch.cat((rows[:, :1], middle - half, middle + half), 1)


def uniform(like: Tensor, low: float, high: float) -> Tensor:
    """Random numbers, as many as there are in another tensor."""
    return torch.rand_like(like) * (high - low) + low


def centred(sizes: Tensor) -> Place:
    """Where the letterbox puts images, of which an odd margin has its larger half at the bottom or right."""
    scale = SIZE / sizes.amax(1)
    top, left = (((SIZE - side * scale) / 2 - 0.1).round() for side in sizes.T)
    return Place(scale, scale, left, top)


def warp(pixels: Tensor, place: Place) -> Tensor:
    """Images (n, 3, SIZE, SIZE) float where they are to lie, less the grey that is around them."""
    span = torch.arange(SIZE, device=pixels.device) + 0.5
    x = (span - place.left[:, None]) / place.across[:, None] * (2 / CANVAS) - 1
    y = (span - place.top[:, None]) / place.down[:, None] * (2 / CANVAS) - 1
    grid = torch.stack((x[:, None].expand(-1, SIZE, -1), y[:, :, None].expand(-1, -1, SIZE)), -1)
    return functional.grid_sample(pixels.float() - PADDING, grid, align_corners=False)


def placed(rows: Tensor, place: Place) -> Tensor:
    """Corners (n, m, 4) of boxes where their images lie."""
    xs = rows[..., [1, 3]] * place.across[:, None, None] + place.left[:, None, None]
    ys = rows[..., [2, 4]] * place.down[:, None, None] + place.top[:, None, None]
    return torch.stack((xs.amin(-1), ys.amin(-1), xs.amax(-1), ys.amax(-1)), -1)


def letterboxed(images: Images, index: Tensor) -> Tensor:
    """Pixels (n, 3, SIZE, SIZE) in 0..255 as users feed them."""
    return (warp(images.pixels[index], centred(images.sizes[index])) + PADDING).round().clamp(0, 255)


def moved(sizes: Tensor, tile: Tensor, mosaic: Tensor, still: Tensor) -> Place:
    """Somewhere in a tile (n, 4), larger or smaller, flipped or not; those that stay `still` are letterboxed."""
    base = centred(sizes)
    scale, one = base.across, torch.ones_like(base.across)
    gain = torch.where(still, one, torch.where(mosaic, uniform(one, 0.4, 1.1), uniform(one, 0.65, 1.35)))
    skew = torch.where(still, one, uniform(one, 0.9, 1.1))
    across, down = scale * gain * skew, scale * gain / skew
    corner = []
    for size, low, high, stays in (
        (sizes[:, 1] * across, tile[:, 0], tile[:, 2], base.left),
        (sizes[:, 0] * down, tile[:, 1], tile[:, 3], base.top),
    ):
        free = uniform(one, -0.5, 0.5) * (high - low - size).abs() + (low + high - size) / 2
        corner.append(torch.where(still, stays, free))
    flip = torch.rand_like(one) < 0.5
    left = torch.where(flip, corner[0] + sizes[:, 1] * across, corner[0])
    return Place(torch.where(flip, -across, across), down, left, corner[1])


def tiles(mosaic: Tensor) -> list[Tensor]:
    """Corners (n, 4) of four tiles around a random point; of what is no mosaic the first is everything."""
    none, all_of_it = (
        torch.zeros(len(mosaic), device=mosaic.device),
        mosaic.new_full(mosaic.shape, SIZE, dtype=torch.float),
    )
    x, y = (torch.where(mosaic, uniform(none, 0.3 * SIZE, 0.7 * SIZE), all_of_it) for _ in range(2))
    columns, rows = ((none, x), (x, all_of_it)), ((none, y), (y, all_of_it))
    return [torch.stack((x0, y0, x1, y1), 1) for y0, y1 in rows for x0, x1 in columns]


def augmented(images: Images, index: Tensor, mosaic_share: float, moved_share: float) -> Batch:
    """A batch of images, some in mosaics with others, some moved, and those coloured otherwise."""
    none = torch.zeros(len(index), device=index.device)
    mosaic = torch.rand_like(none) < mosaic_share
    still = (torch.rand_like(none) >= moved_share) & ~mosaic
    pixels, found = torch.zeros(len(index), 3, SIZE, SIZE, device=index.device), list[tuple[Tensor, Tensor, Tensor]]()
    for number, tile in enumerate(tiles(mosaic) if mosaic_share else tiles(mosaic)[:1]):
        chosen = torch.randint_like(index, len(images.pixels)) if number else index
        place = moved(images.sizes[chosen], tile, mosaic, still)
        pixels = torch.where(inside(tile), warp(images.pixels[chosen], place), pixels)
        found.append(visible(images.boxes[chosen], place, tile))
    boxes, classes, valid = (torch.cat(each, 1) for each in zip(*found, strict=True))
    chosen = (valid + 0.5 * torch.rand(valid.shape, device=index.device)).argsort(1, descending=True)[:, :MOST_BOXES]
    boxes = boxes.gather(1, chosen[..., None].expand(-1, -1, 4))
    classes = classes.gather(1, chosen).clamp(min=0).long()
    return Batch(coloured(pixels + PADDING, still), boxes, classes, valid.gather(1, chosen))


def inside(tile: Tensor) -> Tensor:
    """(n, 1, SIZE, SIZE) whether a pixel belongs to a tile."""
    span = torch.arange(SIZE, device=tile.device)
    columns, rows = ((span >= tile[:, [i]]) & (span < tile[:, [i + 2]]) for i in range(2))
    return (rows[:, :, None] & columns[:, None])[:, None]


def visible(rows: Tensor, place: Place, tile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes cut at the tile, their classes, and whether enough of them is left."""
    whole = placed(rows, place)
    low, high = (tile[:, None, each] for each in (slice(None, 2), slice(2, None)))
    boxes = torch.cat([torch.minimum(torch.maximum(each, low), high) for each in whole.split(2, -1)], -1)
    sides, area = boxes[..., 2:] - boxes[..., :2], (whole[..., 2:] - whole[..., :2]).prod(-1)
    return boxes, rows[..., 0], (rows[..., 0] >= 0) & (sides.prod(-1) > 0.3 * area) & (sides > 3).all(-1)


def coloured(pixels: Tensor, still: Tensor) -> Tensor:
    """Other saturation, brightness and tint."""
    one = torch.ones_like(pixels[:, :1, :1, :1])
    grey = pixels.mean(1, keepdim=True)
    made = grey + (pixels - grey) * uniform(one, 0.5, 1.5)
    made = made * uniform(one, 0.7, 1.3) * uniform(one.expand(-1, 3, -1, -1), 0.92, 1.08) + uniform(one, -15, 15)
    return torch.where(still[:, None, None, None], pixels, made).clamp(0, 255)


def logits(model: yolox.YOLOX, pixels: Tensor) -> Tensor:
    """(n, anchors, 85) float32: the network without its sigmoids."""
    head, rows = model.head, []
    for number, level in enumerate(model.backbone(pixels)):
        x = head.stems[number](level)
        boxes, classes = head.reg_convs[number](x), head.cls_convs[number](x)
        each = head.reg_preds[number](boxes), head.obj_preds[number](boxes), head.cls_preds[number](classes)
        rows.append(torch.cat(each, 1).flatten(2))
    return torch.cat(rows, 2).permute(0, 2, 1).float()


def corners(rows: Tensor, cells: Cells) -> Tensor:
    """(n, anchors, 4) in pixels."""
    middle = (rows[..., :2] + cells.grid) * cells.stride
    half = rows[..., 2:4].clamp(max=6).exp() * cells.stride / 2
    return torch.cat((middle - half, middle + half), -1)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (…, 4)."""
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = ((each[..., 2:] - each[..., :2]).clamp(min=0).prod(-1) for each in (one, other))
    return shared / (sum(areas) - shared + 1e-7)


@torch.no_grad()
def assigned(rows: Tensor, boxes: Tensor, batch: Batch, cells: Cells) -> tuple[Tensor, Tensor, Tensor]:
    """SimOTA: which object each anchor (n, anchors) is to find, whether it is to find any, and their overlap."""
    middle = (batch.boxes[..., :2] + batch.boxes[..., 2:]) / 2
    away = (((cells.grid + 0.5) * cells.stride)[:, None] - middle[:, :, None]).abs()
    near = (away < RADIUS * cells.stride[:, None]).all(-1) & batch.valid[..., None]
    overlap = overlaps(batch.boxes[:, :, None], boxes[:, None]) * near
    score = (rows[..., 5:].sigmoid() * rows[..., 4:5].sigmoid()).sqrt().clamp(1e-6, 1 - 1e-6)
    own = score.transpose(1, 2).gather(1, batch.classes[..., None].expand(-1, -1, score.shape[1]))
    cost = -torch.log1p(-score).sum(-1)[:, None] + torch.log1p(-own) - own.log()
    cost = cost - 3 * (overlap + 1e-8).log() + 1e6 * ~near
    wanted = overlap.topk(CANDIDATES, -1).values.sum(-1).int().clamp(min=1)
    cheapest = cost.topk(CANDIDATES, -1, largest=False).indices
    taken = torch.arange(CANDIDATES, device=cost.device) < wanted[..., None]
    matched = torch.zeros_like(cost).scatter_(2, cheapest, taken.float()).bool() & near
    best = cost.masked_fill(~matched, 1e9).argmin(1)
    return best, matched.any(1), overlap.gather(1, best[:, None])[:, 0]


def loss_of(rows: Tensor, batch: Batch, cells: Cells, edges: bool) -> Tensor:
    """Overlap, objectness and class, with `edges` differences of box numbers, too: per anchor that finds something."""
    boxes = corners(rows, cells)
    best, finds, overlap = assigned(rows, boxes, batch, cells)
    count = finds.sum().clamp(min=1)
    aim = batch.boxes.gather(1, best[..., None].expand(-1, -1, 4))
    wanted = torch.zeros_like(rows[..., 5:]).scatter_(2, batch.classes.gather(1, best)[..., None], overlap[..., None])
    cross = functional.binary_cross_entropy_with_logits
    total = 5 * ((1 - overlaps(boxes, aim) ** 2) * finds).sum() + cross(rows[..., 4], finds.float(), reduction="sum")
    total = total + (cross(rows[..., 5:], wanted, reduction="none").sum(-1) * finds).sum()
    if edges:
        size = (aim[..., 2:] - aim[..., :2]).clamp(min=1)
        middle = (aim[..., :2] + aim[..., 2:]) / 2 / cells.stride - cells.grid
        numbers = torch.cat((middle, (size / cells.stride).log()), -1)
        total = total + ((rows[..., :4] - numbers).abs().sum(-1) * finds).sum()
    return total / count


def fresh(device: str) -> yolox.YOLOX:
    """Untrained; nothing is thought to be anywhere."""
    model = yolox.YOLOX(0.25, classes=CLASSES, decoded=False)
    for layer in (*model.head.obj_preds, *model.head.cls_preds):
        made: Any = layer
        nn.init.constant_(made.bias, -math.log(99))
    return model.to(device).train()


def optimiser_of(model: nn.Module) -> torch.optim.Optimizer:
    """Weights decay, biases and normalisations do not."""
    weights = [each for each in model.parameters() if each.dim() > 1]
    others = [each for each in model.parameters() if each.dim() <= 1]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE)


def train(images: Images, seconds: float, batch: int, device: str) -> yolox.YOLOX:
    """Train for so many seconds, and return the moving average of the weights."""
    model = fresh(device)
    average, optimiser = copy.deepcopy(model), optimiser_of(model)
    cells = Cells(*(each.to(device) for each in yolox._grid(SIZE, SIZE)))
    begun, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, step / WARM_UP) * (0.01 + 0.495 * (1 + math.cos(math.pi * progress)))
        index = torch.randperm(len(images.pixels), device=device)[:batch]
        given = augmented(images, index, MOSAIC if progress < 0.5 else 0.0, moved_share(progress))
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            rows = logits(model, given.pixels)
        loss = loss_of(rows, given, cells, edges=progress > 0.5)
        optimiser.zero_grad()
        loss.backward()
        if nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).isfinite():
            optimiser.step()
        step, progress = step + 1, (time.monotonic() - begun) / seconds
        follow(average, model, 1 - min(AVERAGING, (1 + step) / (10 + step)))
        if step % 100 == 0:
            print(f"step {step}, {min(progress, 1):.0%} of the time, loss {float(loss):.3f}", flush=True)
    return average


def moved_share(progress: float) -> float:
    """Share of images that are moved: fewer and fewer, as users' are not."""
    return next(share for until, share in ((0.3, 1.0), (0.7, 0.8), (0.9, 0.4), (math.inf, 0.1)) if progress < until)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move an average by a share of what it differs by."""
    for slow, quick in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if slow.is_floating_point():
            slow.lerp_(quick, share)


@torch.no_grad()
def recalibrated(model: yolox.YOLOX, images: Images) -> yolox.YOLOX:
    """Give batch normalisations the mean statistics of letterboxed images."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for part in torch.randperm(len(images.pixels), device=images.pixels.device).split(33):
        logits(model.train(), letterboxed(images, part))
    return model.eval()


if __name__ == "__main__":
    sys.exit(main())
