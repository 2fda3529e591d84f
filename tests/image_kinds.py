"""Image files of every kind that a folder of photographs may hold, written by Pillow, OpenCV or by hand."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from PIL import Image

ORIENTATION = 0x0112
HEIGHT, WIDTH = 32, 64
"""As wide as the network's input: Ultralytics' validator and predictor scale others to sizes that differ by a pixel."""


def noise(*shape: int, bits: int = 8) -> Any:
    """Smooth random pixels: codecs that lose something keep most of them."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 2**bits, shape or (HEIGHT, WIDTH, 3)).astype(np.float32)
    return cv2.GaussianBlur(coarse, (5, 5), 2).astype(np.uint16 if bits > 8 else np.uint8)


def saved(kind: str, mode: str = "RGB", image: Image.Image | None = None, **options: Any) -> bytes:
    stream = BytesIO()
    (Image.fromarray(noise()).convert(mode) if image is None else image).save(stream, kind, **options)
    return stream.getvalue()


def written(suffix: str, pixels: Any) -> bytes:
    done, encoded = cv2.imencode(suffix, pixels)
    assert done
    return bytes(encoded)


def turned(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(kind, exif=exif)


def animated(kind: str) -> bytes:
    pictures = [Image.fromarray(np.roll(noise(), shift, axis=1)) for shift in (0, 9, 18)]
    return saved(kind, image=pictures[0], save_all=True, append_images=pictures[1:], duration=40)


def see_through() -> bytes:
    palette = Image.fromarray(noise()).quantize(16)
    return saved("PNG", image=palette, transparency=3)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says so, and that has no pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


SAME: dict[str, Callable[[], bytes]] = {
    "colour.png": lambda: saved("PNG"),
    "colour.jpg": lambda: saved("JPEG"),
    "colour.webp": lambda: saved("WEBP"),
    "colour.bmp": lambda: saved("BMP"),
    "colour.tif": lambda: saved("TIFF"),
    "colour.jp2": lambda: saved("JPEG2000"),
    "colour.avif": lambda: saved("AVIF"),
    "upper case.JPG": lambda: saved("JPEG"),
    "UPPER.TIFF": lambda: saved("TIFF"),
    "progressive.jpeg": lambda: saved("JPEG", progressive=True),
    "cmyk.jpg": lambda: saved("JPEG", "CMYK"),
    "cmyk.tif": lambda: saved("TIFF", "CMYK"),
    "grey.png": lambda: saved("PNG", "L"),
    "grey.jpg": lambda: saved("JPEG", "L"),
    "grey.tif": lambda: saved("TIFF", "L"),
    "grey with alpha.png": lambda: saved("PNG", "LA"),
    "alpha.png": lambda: saved("PNG", "RGBA"),
    "alpha.webp": lambda: saved("WEBP", "RGBA"),
    "alpha.tif": lambda: saved("TIFF", "RGBA"),
    "palette.png": lambda: saved("PNG", image=Image.fromarray(noise()).quantize(16)),
    "palette.tif": lambda: saved("TIFF", image=Image.fromarray(noise()).quantize(16)),
    "palette with transparency.png": see_through,
    "one bit.png": lambda: saved("PNG", "1"),
    "one bit.tif": lambda: saved("TIFF", "1"),
    "16 bits grey.png": lambda: written(".png", noise(HEIGHT, WIDTH, bits=16)),
    "16 bits.png": lambda: written(".png", noise(HEIGHT, WIDTH, 3, bits=16)),
    "16 bits grey.tif": lambda: written(".tif", noise(HEIGHT, WIDTH, bits=16)),
    "16 bits.tif": lambda: written(".tif", noise(HEIGHT, WIDTH, 3, bits=16)),
    "animated.png": lambda: animated("PNG"),
    "animated.webp": lambda: animated("WEBP"),
    "pages.tif": lambda: animated("TIFF"),
    "thin.png": lambda: saved("PNG", image=Image.fromarray(noise(10, 2000, 3))),
    "tall.jpg": lambda: saved("JPEG", image=Image.fromarray(noise(2000, 10, 3))),
    "in truth png.jpg": lambda: saved("PNG"),
    "in truth webp.png": lambda: saved("WEBP"),
    "in truth jpeg.bmp": lambda: saved("JPEG"),
    "something behind.jpg": lambda: saved("JPEG") + b"a maker's notes",
    **{f"turned {way}.jpg": partial(turned, "JPEG", way) for way in range(1, 9)},
    "turned.png": lambda: turned("PNG", 6),
    "turned.webp": lambda: turned("WEBP", 6),
    "turned.tif": lambda: turned("TIFF", 6),
    "turned.avif": lambda: turned("AVIF", 6),
}
"""Name of a file → its bytes: every reader makes the same pixels of it."""

LEFT_OUT: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (bytes, "is empty"),
    "text.png": (lambda: b"this is no image", "corrupt or not an image"),
    "cut.jpg": (lambda: half(saved("JPEG")), "Truncated"),
    "cut.png": (lambda: half(saved("PNG")), ""),
    "cut.webp": (lambda: half(saved("WEBP")), ""),
    "cut.tif": (lambda: half(saved("TIFF")), ""),
    "cut.bmp": (lambda: half(saved("BMP")), ""),
    "damaged.png": (lambda: saved("PNG").replace(b"IDAT", b"IDAU"), ""),
    "animated.gif.png": (lambda: animated("GIF"), "is a GIF"),
    "portable.png": (lambda: saved("PPM"), "is a PPM"),
    "one pixel.png": (lambda: saved("PNG", image=Image.new("RGB", (1, 1))), "is 1x1 pixels"),
    "nine high.jpg": (lambda: saved("JPEG", image=Image.new("RGB", (200, 9))), "is 200x9 pixels"),
    "bomb.png": (lambda: png_of(20_000, 20_000), "400000000 pixels"),
    "photo.heic": (lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "HEIC needs the package pi-heif"),
    "photo.jpg": (lambda: b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(64), "a name that ends in .heic"),
    "no end.jpg": (lambda: saved("JPEG")[:-2], ""),
}
"""Name of a file → its bytes, and what the reason says of it."""
