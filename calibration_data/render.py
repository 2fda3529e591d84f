"""Render the synthetic detection data set that is embedded as the tool's default calibration data.

    python calibration_data/render.py --out DIR --train N --val M --seed S

Without arguments it renders the committed data set, `calibration_data/shapes`, again. An image depends only
on (seed, split, index): a split keeps its first images when it grows, no two splits or seeds share one.

Conventions: points are (x, y) in pixels from the upper left corner, angles are radians, images are BGR uint8
of shape (SIZE, SIZE, 3), masks are bool of shape (SIZE, SIZE), colours are BGR in 0..255.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import yaml

Array = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Points = tuple[tuple[float, float], ...]
Colour = tuple[float, float, float]

SIZE = 320
NAMES = ("circle", "square", "triangle", "star", "ring", "cross")
FILLS = ("plain", "stripes", "checks", "gradient", "speckle")
SPLITS = ("train", "val")
COMMITTED = Path(__file__).resolve().parent / "shapes"
COMMITTED_TRAIN, COMMITTED_VAL, COMMITTED_SEED = 128, 100, 26

_JPEG_QUALITY = 80
_MOST_OBJECTS = 7
_RADII = (20.0, 80.0)
_LEAST_VISIBLE = 0.2  # an object that shows less of itself than this gets no label
_CROWDED = 0.05  # chance that an object is placed without regard to those that it covers
_SUBPIXEL_BITS = 4  # cv2.fillPoly takes fixed-point coordinates
_RING_HOLE, _STAR_WAIST, _CROSS_ARM = 0.55, 0.45, 0.32  # as fractions of the outer radius


@dataclass(frozen=True)
class Paint:
    """A texture of two colours: `fill` is one of FILLS, `period` its step in pixels, `angle` its direction.

    `seed` picks the noise of "speckle".
    """

    fill: str
    colours: tuple[Colour, Colour]
    period: float
    angle: float
    seed: int


@dataclass(frozen=True)
class Shape:
    """One object of class NAMES[kind].

    `outline` and `hole` are closed polygons in the image, already turned by `angle`, scaled by `radius` and
    moved to `centre`; `hole` is empty but for rings. They may reach beyond the image.
    """

    kind: int
    centre: tuple[float, float]
    radius: float
    angle: float
    outline: Points
    hole: Points
    paint: Paint


@dataclass(frozen=True)
class Line:
    """Clutter: a polyline that belongs to no object; `thickness` in pixels."""

    points: Points
    colour: Colour
    thickness: int


@dataclass(frozen=True)
class Scene:
    """All that decides one image. `shapes` are in drawing order: a later one covers an earlier one.

    `blur` and `noise` are standard deviations (in pixels, in grey levels), `gain` scales the brightness and
    `seed` picks the noise.
    """

    ground: Paint
    clutter: tuple[Line, ...]
    shapes: tuple[Shape, ...]
    blur: float
    noise: float
    gain: float
    seed: int


# --- Geometry ---------------------------------------------------------------------------------------------


def _regular(corners: int) -> Array:
    """Return a regular polygon of shape (corners, 2) on the unit circle."""
    turns = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(turns), np.sin(turns)], axis=1)


def _cross() -> Array:
    """Return the twelve corners of a cross, (12, 2), whose arms end on the unit circle."""
    arm = _CROSS_ARM
    corner = np.array([(1.0, -arm), (1.0, arm), (arm, arm)])
    quarter = np.array([(0.0, 1.0), (-1.0, 0.0)])  # row vectors turn by 90 degrees
    corners = [corner @ np.linalg.matrix_power(quarter, k) for k in range(4)]
    return np.concatenate(corners) / float(np.hypot(1.0, arm))


def _unit_outline(name: str) -> Array:
    """Return the closed outline of a class of shape, (N, 2), whose farthest points lie on the unit circle."""
    if name == "cross":
        return _cross()
    if name == "star":
        waist = np.where(np.arange(10) % 2 == 0, 1.0, _STAR_WAIST)
        return _regular(10) * waist[:, None]
    return _regular({"square": 4, "triangle": 3}.get(name, 64))


def _placed(points: Array, centre: tuple[float, float], radius: float, angle: float) -> Points:
    """Return the points turned about the origin by `angle`, then scaled, then moved to `centre`."""
    cos, sin = np.cos(angle), np.sin(angle)
    moved = radius * points @ np.array([(cos, sin), (-sin, cos)]) + np.array(centre)
    return tuple((float(x), float(y)) for x, y in moved)


def make_shape(kind: int, centre: tuple[float, float], radius: float, angle: float, paint: Paint) -> Shape:
    """Return the shape of class NAMES[kind] whose outline lies within `radius` pixels of `centre`."""
    unit = _unit_outline(NAMES[kind])
    hole = _placed(unit * _RING_HOLE, centre, radius, angle) if NAMES[kind] == "ring" else ()
    return Shape(kind, centre, radius, angle, _placed(unit, centre, radius, angle), hole, paint)


def coverage(shape: Shape) -> Array:
    """Return how much of each pixel the shape covers were nothing in front of it, (SIZE, SIZE) in 0..1."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    # fillPoly fills by the even-odd rule, so a second polygon inside the first is a hole.
    polygons = [np.array(points) * 2**_SUBPIXEL_BITS for points in (shape.outline, shape.hole) if points]
    fixed = [np.rint(polygon).astype(np.int32) for polygon in polygons]
    cv2.fillPoly(canvas, fixed, color=(255,), lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)
    return canvas.astype(np.float64) / 255


def visible_masks(shapes: Sequence[Shape]) -> list[tuple[Mask, float]]:
    """Return each shape's visible pixels, and which fraction they are of its pixels within the image."""
    found: list[tuple[Mask, float]] = []
    covered = np.zeros((SIZE, SIZE), np.bool_)
    for shape in reversed(shapes):
        whole = coverage(shape) >= 0.5
        seen = whole & ~covered
        found.append((seen, float(seen.sum()) / max(float(whole.sum()), 1.0)))
        covered |= whole
    return found[::-1]


# --- Choosing a scene -------------------------------------------------------------------------------------


def _contrasting(rng: np.random.Generator, taken: Sequence[Colour]) -> Colour:
    """Return the one of a few random colours that is farthest from the nearest colour already taken."""
    candidates = rng.uniform(10, 245, (6, 3))
    distances = np.linalg.norm(candidates[:, None] - np.array(taken)[None], axis=2).min(axis=1)
    b, g, r = candidates[int(distances.argmax())]
    return float(b), float(g), float(r)


def _near(rng: np.random.Generator, colour: Colour, most: float) -> Colour:
    """Return a colour at most `most` grey levels away in each channel."""
    b, g, r = np.clip(np.array(colour) + rng.uniform(-most, most, 3), 0, 255)
    return float(b), float(g), float(r)


def _choose_paint(rng: np.random.Generator, first: Colour, second: Colour, periods: tuple[float, float]) -> Paint:
    """Return a random texture of two colours, its period between the two given (in pixels)."""
    return Paint(
        fill=str(rng.choice(FILLS)),
        colours=(first, second),
        period=float(rng.uniform(*periods)),
        angle=float(rng.uniform(0, np.pi)),
        seed=int(rng.integers(2**31)),
    )


def _choose_shape(rng: np.random.Generator, taken: Sequence[Colour]) -> Shape:
    """Return a shape anywhere in the image, at most about a third of it outside, unlike the colours taken."""
    radius = float(np.exp(rng.uniform(*np.log(_RADII))))
    x, y = rng.uniform(0.5 * radius, SIZE - 0.5 * radius, 2)
    colour = _contrasting(rng, taken)
    paint = _choose_paint(rng, colour, _near(rng, colour, 60), (6, 24))
    angle = float(rng.uniform(0, 2 * np.pi))
    return make_shape(int(rng.integers(len(NAMES))), (float(x), float(y)), radius, angle, paint)


def _choose_shapes(rng: np.random.Generator, ground: Paint) -> tuple[Shape, ...]:
    """Return one to _MOST_OBJECTS shapes that overlap a little, rarely a lot."""
    shapes: tuple[Shape, ...] = ()
    taken = list(ground.colours)
    for _ in range(int(rng.integers(1, _MOST_OBJECTS + 1))):
        least = 0.0 if rng.random() < _CROWDED else float(rng.uniform(0.6, 1.0))
        for _attempt in range(20):
            shape = _choose_shape(rng, taken)
            if all(fraction >= least for _, fraction in visible_masks((*shapes, shape))):
                shapes = (*shapes, shape)
                taken.append(shape.paint.colours[0])
                break
    return shapes


def _choose_clutter(rng: np.random.Generator, ground: Paint) -> tuple[Line, ...]:
    """Return up to eight thin polylines of two or three corners."""
    lines = []
    for _ in range(int(rng.integers(0, 9))):
        points = rng.uniform(0, SIZE, (int(rng.integers(2, 4)), 2))
        colour = _near(rng, ground.colours[0], 90)
        corners = tuple((float(x), float(y)) for x, y in points)
        lines.append(Line(corners, colour, int(rng.integers(1, 4))))
    return tuple(lines)


def choose_scene(seed: int, split: str, index: int) -> Scene:
    """Return the scene of one image; the same arguments always give the same scene."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    b, g, r = rng.uniform(20, 235, 3)
    ground_colour = (float(b), float(g), float(r))
    ground = _choose_paint(rng, ground_colour, _near(rng, ground_colour, 45), (10, 60))
    return Scene(
        ground=ground,
        clutter=_choose_clutter(rng, ground),
        shapes=_choose_shapes(rng, ground),
        blur=float(rng.choice([0.0, rng.uniform(0.4, 1.2)])),
        noise=float(rng.uniform(0, 8)),
        gain=float(rng.uniform(0.6, 1.2)),
        seed=int(rng.integers(2**31)),
    )


# --- Drawing ----------------------------------------------------------------------------------------------


def _speckle(paint: Paint) -> Array:
    """Return smooth noise, (SIZE, SIZE), whose cells are about as large as the paint's period."""
    cells = max(2, round(SIZE / paint.period))
    coarse = np.random.default_rng(paint.seed).random((cells, cells))
    return np.asarray(cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), np.float64)


def _weights(paint: Paint) -> Array:
    """Return where the paint shows its second colour, (SIZE, SIZE) in 0..1."""
    weights = np.zeros((SIZE, SIZE))
    x, y = np.arange(SIZE, dtype=np.float64)[None, :], np.arange(SIZE, dtype=np.float64)[:, None]
    along = x * np.cos(paint.angle) + y * np.sin(paint.angle)
    across = y * np.cos(paint.angle) - x * np.sin(paint.angle)
    stripes = np.sin(2 * np.pi * along / paint.period)
    if paint.fill == "stripes":
        weights = 0.5 + 2 * stripes
    elif paint.fill == "checks":
        weights = 0.5 + 4 * stripes * np.sin(2 * np.pi * across / paint.period)
    elif paint.fill == "gradient":
        weights = 0.5 + 0.5 * np.sin(2 * np.pi * along / (8 * paint.period))
    elif paint.fill == "speckle":
        weights = _speckle(paint)
    return np.asarray(np.clip(weights, 0, 1), np.float64)


def _painted(paint: Paint) -> Array:
    """Return the paint over the whole image, (SIZE, SIZE, 3)."""
    first, second = (np.array(colour, np.float64) for colour in paint.colours)
    return first + _weights(paint)[:, :, None] * (second - first)


def draw(scene: Scene) -> Image:
    """Return the image of a scene."""
    canvas = _painted(scene.ground)
    for line in scene.clutter:
        points = np.rint(np.array(line.points)).astype(np.int32)
        cv2.polylines(canvas, [points], isClosed=False, color=line.colour, thickness=line.thickness)
    for shape in scene.shapes:
        canvas += coverage(shape)[:, :, None] * (_painted(shape.paint) - canvas)
    if scene.blur:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), scene.blur), np.float64)
    grain = np.random.default_rng(scene.seed).normal(0, scene.noise, canvas.shape)
    image: Image = np.clip(np.rint(canvas * scene.gain + grain), 0, 255).astype(np.uint8)
    return image


# --- Writing ----------------------------------------------------------------------------------------------


def bounding_box(shape: Shape, seen: Mask) -> Array:
    """Centre and size, (4,) in pixels, of the visible part's box."""
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    x0, x1, y0, y1 = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])


def visible_outline(shape: Shape, seen: Mask) -> Array:
    """The outer contour of the largest visible piece, (2 · corners,) in pixels; a hole is not told."""
    contours, _ = cv2.findContours(seen.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(contours, key=cv2.contourArea)
    simple = cv2.approxPolyDP(largest, 0.75, closed=True)
    corners = simple if len(simple) >= 3 else largest
    return np.asarray(corners, np.float64).reshape(-1) + 0.5


def oriented_box(shape: Shape, seen: Mask) -> Array:
    """Corners of the smallest turned rectangle around the visible part, (8,) in pixels."""
    points = np.argwhere(seen)[:, ::-1].astype(np.float32) + 0.5
    return np.asarray(cv2.boxPoints(cv2.minAreaRect(points)), np.float64).reshape(-1)


def keypoints(shape: Shape, seen: Mask) -> Array:
    """Box and five points, (4 + 5 · 3,) in pixels: centre, then the outline's left, top, right and bottom end.

    They are those of the whole object. Visibility: 0 outside the image, 1 behind something else, 2 seen.
    """
    outline = np.array(shape.outline)
    ends = [outline[:, 0].argmin(), outline[:, 1].argmin(), outline[:, 0].argmax(), outline[:, 1].argmax()]
    points = np.concatenate((np.array([shape.centre]), outline[ends]))
    rows = []
    for x, y in points:
        inside = 0 <= x < SIZE and 0 <= y < SIZE
        near = seen[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2] if inside else seen[:0]
        rows.append((x, y, 2.0 if near.any() else 1.0) if inside else (0.0, 0.0, 0.0))
    return np.concatenate((bounding_box(shape, seen), np.array(rows).reshape(-1)))


LABELS: dict[str, Callable[[Shape, Mask], Array]] = {
    "detect": bounding_box,
    "segment": visible_outline,
    "pose": keypoints,
    "obb": oriented_box,
}
"""Task → what stands behind the class in a line of its labels, in pixels."""

KEYPOINTS = 5
_VISIBILITY = slice(6, None, 3)  # of a pose label


def label_lines(scene: Scene, task: str = "detect") -> str:
    """Return the scene's YOLO labels for a task, a line for each visible object, in fractions of the image's size."""
    lines = []
    for shape, (seen, fraction) in zip(scene.shapes, visible_masks(scene.shapes), strict=True):
        if fraction < _LEAST_VISIBLE:
            continue
        values = LABELS[task](shape, seen)
        unit = np.full(len(values), float(SIZE))
        if task == "pose":
            unit[_VISIBILITY] = 1
        lines.append(f"{shape.kind} " + " ".join(f"{value:.6f}" for value in values / unit) + "\n")
    return "".join(lines)


def render_split(out: Path, split: str, count: int, seed: int, task: str = "detect") -> None:
    """Write images and a task's labels `0` to `count - 1` of one split under `out`; images that are there stay."""
    images, labels = out / "images" / split, out / "labels" / split
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = choose_scene(seed, split, index)
        name = f"{split}{index:05d}"
        if not (images / f"{name}.jpg").exists():
            cv2.imwrite(str(images / f"{name}.jpg"), draw(scene), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        (labels / f"{name}.txt").write_text(label_lines(scene, task))


def render_labels(out: Path, split: str, count: int, seed: int, task: str) -> None:
    """Write another task's labels for images that are there, in a folder beside the detector's."""
    folder = out / f"labels-{task}" / split
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        text = label_lines(choose_scene(seed, split, index), task)
        (folder / f"{split}{index:05d}.txt").write_text(text)


def write_description(out: Path, task: str = "detect", beside: bool = False) -> Path:
    """Write the data set's YAML under `out` and return its path; with `beside` that of labels beside the detector's."""
    path = out / (f"shapes-{task}.yaml" if beside else "shapes.yaml")
    description: dict[str, Any] = {"train": "images/train", "val": "images/val", "names": dict(enumerate(NAMES))}
    if task == "pose":
        description["kpt_shape"] = [KEYPOINTS, 3]
        description["flip_idx"] = [0, 3, 2, 1, 4]  # left and right end change places
    if beside:
        description["labels"] = f"labels-{task}"
    path.write_text(yaml.safe_dump(description, sort_keys=False))
    return path


# --- Crops for classification -----------------------------------------------------------------------------

CROP = 96
CROPS_EACH = 32
"""Committed crops of each class and split."""
_MARGIN = 1.3  # a crop's side as a multiple of the box's longer one


def crops(scene: Scene) -> list[tuple[int, Image]]:
    """Return (class, image of CROP × CROP pixels) of each object that is at least half visible."""
    image, found = draw(scene), []
    for shape, (seen, fraction) in zip(scene.shapes, visible_masks(scene.shapes), strict=True):
        if fraction < 0.5:
            continue
        x, y, width, height = bounding_box(shape, seen)
        half = max(width, height) * _MARGIN / 2
        corners = np.array([[x - half, y - half], [x + half, y - half], [x - half, y + half]], np.float32)
        target = np.array([[0, 0], [CROP, 0], [0, CROP]], np.float32)
        moved = cv2.warpAffine(
            image,
            cv2.getAffineTransform(corners, target),
            (CROP, CROP),
            flags=cv2.INTER_AREA,
            borderMode=cv2.BORDER_REFLECT,
        )
        found.append((shape.kind, np.asarray(moved, np.uint8)))
    return found


def render_crops(out: Path, split: str, count: int, seed: int) -> None:
    """Write `count` crops of each class under `out/<split>/<class>/`, from as many scenes as it takes."""
    left = dict.fromkeys(range(len(NAMES)), count)
    index = 0
    while any(left.values()):
        for kind, image in crops(choose_scene(seed, split, index)):
            if left[kind]:
                left[kind] -= 1
                folder = out / split / NAMES[kind]
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{split}{index:05d}_{left[kind]:05d}.jpg"
                cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        index += 1


def main() -> None:
    """Render the data set that the command line asks for."""
    parser = argparse.ArgumentParser(description="Render the synthetic detection data set.")
    parser.add_argument("--out", type=Path, default=COMMITTED, help="folder to write (default: %(default)s)")
    parser.add_argument("--train", type=int, default=COMMITTED_TRAIN, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=COMMITTED_VAL, help="validation images (%(default)s)")
    parser.add_argument("--seed", type=int, default=COMMITTED_SEED, help="the committed set has %(default)s")
    wanted = parser.parse_args()
    render_split(wanted.out, "train", wanted.train, wanted.seed)
    render_split(wanted.out, "val", wanted.val, wanted.seed)
    write_description(wanted.out)
    for task in (task for task in LABELS if task != "detect"):
        render_labels(wanted.out, "train", wanted.train, wanted.seed, task)
        render_labels(wanted.out, "val", wanted.val, wanted.seed, task)
        write_description(wanted.out, task, beside=True)
    for split in SPLITS:
        render_crops(wanted.out / "crops", split, CROPS_EACH, wanted.seed)


if __name__ == "__main__":
    main()
