"""Images where INT8 lost or gained boxes: each thumbnail is stored once, however many artifacts show it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from qexport.page.content import Entry

PICTURE = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/=]+")
MOST_BYTES = 1_500_000
"""Of all thumbnails together: the page is to stay small enough for a mail."""


@dataclass(frozen=True)
class Shot:
    """One image of one artifact's gallery: the report's dictionary and the number of its thumbnail."""

    data: Mapping[str, Any]
    picture: int | None

    def count(self, kind: str) -> int:
        """How many boxes were kept, lost or gained."""
        return len(self.data.get(kind) or ())


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI, and the size in pixels of the image that boxes refer to."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Thumbnails by number, and each artifact's images by its path in the report."""

    pictures: tuple[Picture, ...]
    shots: Mapping[str, tuple[Shot, ...]]


def make_gallery(entries: Sequence[Entry], most: int = MOST_BYTES) -> Gallery:
    """Take images in turn from all artifacts, those with the most differences first, until `most` bytes are used."""
    numbers: dict[Picture, int] = {}
    shots: dict[str, list[Shot]] = {each.at: [] for each in entries}
    used = 0
    for row in zip_longest(*(each.part("gallery") or () for each in entries)):
        for entry, image in zip(entries, row, strict=True):
            if image is None:
                continue
            picture = picture_of(image)
            if picture is not None and picture not in numbers:
                used += len(picture.uri)
                if used > most:
                    return Gallery(tuple(numbers), {at: tuple(each) for at, each in shots.items()})
                numbers[picture] = len(numbers)
            shots[entry.at].append(Shot(image, None if picture is None else numbers[picture]))
    return Gallery(tuple(numbers), {at: tuple(each) for at, each in shots.items()})


def picture_of(image: Mapping[str, Any]) -> Picture | None:
    """The thumbnail, None where there is none or where it is something else than a picture."""
    uri = image.get("thumbnail") or ""
    return Picture(uri, image["width"], image["height"]) if PICTURE.fullmatch(uri) else None
