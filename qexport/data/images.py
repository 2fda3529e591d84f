"""Images from file to network input, pixel for pixel as Ultralytics prepares them at inference."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.compat.quiet import quiet_ultralytics
from qexport.data.dataset import IMAGE_SUFFIXES
from qexport.detections.placement import PADDING, letterboxed
from qexport.errors import InputError, first_line
from qexport.system.given_files import read_bytes

MAX_ENCODED = 2**30
"""Bytes of an image file."""
MIN_SIDE = 10
"""Pixels: Ultralytics' data sets leave out what is smaller."""
OWN_WAYS = (".tif", ".tiff", ".avif", ".heic", ".heif")
"""Endings that Ultralytics' `imread` does more for than OpenCV."""
HEIC = (".heic", ".heif")
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
"""Pictures and sequences of them in HEVC (ISO/IEC 23008-12, annex B)."""
MAX_BRANDS = 256
"""Bytes that are looked for them in."""
ALL_PAGES = (".tif", ".tiff")
"""Endings of files whose pages are all decoded, whichever of them is used."""
MAX_PIXELS, MAX_PAGES = 2**27, 10_000
COLOURS = 3


def read_image(path: Path, channels: int = COLOURS) -> NDArray[np.uint8]:
    """Decode an image file to HxWxC uint8, colours in BGR order, as Ultralytics' data sets do.

    What those leave out is refused here, too, so that calibration, training and measurement see the same images. Of an
    animation that is the first picture; whether EXIF's orientation is applied depends on the format.

    Args:
        channels: 1 reads any image in grey; with others than 1 and 3 the file must have as many, such as a TIFF of
            several bands.

    Raises:
        InputError: the file is missing, empty, cut off, not an image, or none that Ultralytics' data sets take.
    """
    try:
        encoded = read_bytes(path, MAX_ENCODED)
    except OSError as error:
        raise InputError(f"image {path} cannot be read ({error.strerror})", "restore or remove it") from error
    reason = _refused(path, encoded) if encoded else "is empty"
    if reason:
        raise InputError(f"image {path} {reason}", "restore or remove it")
    image = _decode(path, np.frombuffer(encoded, np.uint8), channels)
    if image is None:
        reason = f"is corrupt or not an image{_heic_reason(path, encoded)}"
        raise InputError(f"image {path} {reason}", "restore or remove it")
    if image.shape[2] != channels:
        raise InputError(f"image {path} has {image.shape[2]} channels, not {channels}", "restore or remove it")
    return image


def letterbox(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image into `shape` without distortion, centred on grey (114).

    Args:
        image: HxWxC uint8.
        shape: height and width of the result, in pixels.

    Returns:
        uint8 of `shape` x C, the same bytes as `LetterBox(shape, auto=False, scaleup=True)` of Ultralytics.
    """
    import cv2

    placement = letterboxed((image.shape[0], image.shape[1]), shape)
    scaled = stretch(image, placement.inner)
    top, bottom, left, right = placement.margins
    if image.shape[2] != COLOURS:  # OpenCV's borders have four channels at most
        margins = ((top, bottom), (left, right), (0, 0))
        return np.pad(scaled, margins, constant_values=PADDING)
    grey = (PADDING, PADDING, PADDING)
    return _uint8(cv2.copyMakeBorder(scaled, top, bottom, left, right, cv2.BORDER_CONSTANT, value=grey))


def stretch(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image (HxWxC uint8) to `shape` whatever becomes of its proportions, as RT-DETR takes it."""
    import cv2

    if image.shape[:2] == shape:
        return image
    scaled = _uint8(cv2.resize(image, shape[::-1], interpolation=cv2.INTER_LINEAR))
    return scaled if scaled.ndim == image.ndim else scaled[..., None]


def centre_crop(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image until its shorter side fits and cut out its middle, by Ultralytics' own transforms.

    Args:
        image: HxWx3 uint8 BGR.
        shape: height and width of the result; for a square the shorter side is scaled to it, else both sides.
    """
    from PIL import Image
    from ultralytics.data.augment import classify_transforms

    size: Any = shape[0] if shape[0] == shape[1] else shape
    resize, crop = classify_transforms(size).transforms[:2]
    cut = crop(resize(Image.fromarray(image[..., ::-1])))
    return _uint8(np.asarray(cut)[..., ::-1])


PREPROCESS: Mapping[str, Callable[[NDArray[np.uint8], tuple[int, int]], NDArray[np.uint8]]] = {
    "letterbox": letterbox,
    "centre crop": centre_crop,
    "stretch": stretch,
}
"""Ways from an image of any size to one of the network's."""


def to_tensor(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """HxWx3 uint8 BGR → contiguous 3xHxW float32 RGB in 0..1; other channels keep their order."""
    ordered = image[..., ::-1] if image.shape[2] == COLOURS else image
    planes = np.ascontiguousarray(ordered.transpose(2, 0, 1))
    return planes.astype(np.float32) / np.float32(255)


def stream(
    paths: Iterable[Path],
    imgsz: tuple[int, int],
    on_skip: Callable[[Path, str], None],
    preprocess: str = "letterbox",
    channels: int = COLOURS,
) -> Iterator[tuple[Path, NDArray[np.float32]]]:
    """Yield every readable image as (path, CxHxW float32 in 0..1, colours RGB), one in memory at a time.

    Args:
        paths: image files, in the order in which they are wanted.
        imgsz: height and width of the network input, in pixels.
        on_skip: called with the path and the reason for each image that cannot be used.
        preprocess: entry of `PREPROCESS`.
        channels: how many the network takes.
    """
    for path in paths:
        try:
            image = read_image(path, channels)
        except InputError as error:
            on_skip(path, error.what)
            continue
        yield path, to_tensor(PREPROCESS[preprocess](image, imgsz))


def _refused(path: Path, encoded: bytes) -> str:
    """Why Ultralytics' data sets leave an image out before they decode it (`check_image`), "" where they do not."""
    from PIL import Image, UnidentifiedImageError

    if path.suffix.lower() in OWN_WAYS:
        _imread()  # with its import Pillow learns of decoders
    try:
        with Image.open(BytesIO(encoded)) as opened:
            opened.verify()
            kind, size = str(opened.format), opened.size
        if path.suffix.lower() in ALL_PAGES and (pixels := _pixels_of_pages(encoded)):
            return f"is too large (its pages have more than {pixels:,} pixels)"
    except (UnidentifiedImageError, ImportError):  # Ultralytics' `Image.open` wants another decoder then
        return f"is corrupt or not an image{_heic_reason(path, encoded)}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"is too large ({first_line(error)})"
    except Exception as error:  # Pillow raises anything of a damaged one
        return f"is corrupt ({first_line(error)})"
    if min(size) < MIN_SIDE:
        return f"is {size[0]}x{size[1]} pixels, and data sets need {MIN_SIDE} and more"
    known = kind == "JPEG2000" or f".{kind.lower()}" in IMAGE_SUFFIXES
    return "" if known else f"is a {kind}, which is none of Ultralytics' formats of images"


def _pixels_of_pages(encoded: bytes) -> int:
    """What one image may have in pixels where the pages of a file have more together, else 0."""
    from PIL import Image, ImageSequence

    most, total = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS), 0  # Pillow refuses one of twice as many as it warns of
    with Image.open(BytesIO(encoded)) as opened:
        for number, page in enumerate(ImageSequence.Iterator(opened), 1):
            total += page.size[0] * page.size[1]
            if total > most or number > MAX_PAGES:
                return most
    return 0


def _decode(path: Path, encoded: NDArray[np.uint8], channels: int) -> NDArray[np.uint8] | None:
    """The pixels, None where they cannot be read."""
    import cv2
    from cv2.utils import logging

    flag = {1: cv2.IMREAD_GRAYSCALE, COLOURS: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)
    # On a corrupt file OpenCV writes lines of its own across progress bars; the error names the file instead.
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    image: Any
    try:
        if channels == COLOURS and path.suffix.lower() not in OWN_WAYS:
            image = cv2.imdecode(encoded, flag)  # all that Ultralytics does, whose import takes seconds
        else:
            image = _read_as_ultralytics(path.suffix, encoded, flag)
    except (cv2.error, IndexError):
        return None
    finally:
        logging.setLogLevel(level)
    return None if image is None else _uint8(image)


def _read_as_ultralytics(suffix: str, encoded: NDArray[np.uint8], flag: int) -> Any:
    """Ultralytics' reader takes names: it gets the bytes that were checked, whatever has become of their file."""
    with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
        checked = Path(scratch) / f"image{suffix}"
        checked.write_bytes(encoded.data)
        return _imread()(checked, flag)


def _imread() -> Callable[[Path, int], Any]:
    """Ultralytics' own reader."""
    quiet_ultralytics()
    from ultralytics.utils.patches import imread

    return imread


def _heic_reason(path: Path, encoded: bytes) -> str:
    """What a reader has to know of an image of a phone, whatever it is called; "" of all others."""
    named = path.suffix.lower() in HEIC
    if not named and not _is_heic(encoded[:MAX_BRANDS]):
        return ""
    if find_spec("pi_heif") is None:
        return ": HEIC needs the package pi-heif" + ("" if named else f", and a name that ends in {HEIC[0]}")
    return "" if named else f": it is HEIC, whose name has to end in {HEIC[0]}"


def _is_heic(head: bytes) -> bool:
    """Whether a file says so in its first box (ISO/IEC 14496-12, 4.3): type, version, and the types it is read as."""
    size = int.from_bytes(head[:4], "big")
    brands = head[8:12], *(head[at : at + 4] for at in range(16, min(size, len(head)) - 3, 4))
    return head[4:8] == b"ftyp" and any(brand in HEIC_BRANDS for brand in brands)


def _uint8(image: Any) -> NDArray[np.uint8]:
    # OpenCV's own types say only "some number"; no copy is made.
    return np.asarray(image, dtype=np.uint8)
