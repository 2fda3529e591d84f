"""Files that somebody else has written: nothing but regular ones of a bounded size is opened, and nothing waits.

A named pipe waits for a writer, a device never ends, and an archive of a few megabytes may say that it unpacks to
terabytes. All that reads what a user names opens it here.
"""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile

MAX_BYTES = 2**32
"""Of any file: the largest YOLO with its optimiser has half of it."""
CHUNK = 2**20
MAX_TEXT = 2**26
"""Bytes of JSON and of lists: a hundred times what a report with pictures has."""
MAX_ENTRIES = 100_000
"""Files in an archive."""
UNPACKING = 100
"""Times its size that an archive of arrays may unpack to: histograms are mostly zeros."""
ALWAYS_UNPACKED = 2**26
"""Bytes that any archive may unpack to, however small it is."""
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnfitFileError(OSError):
    """What is named is no file that can be read; `strerror` and the text say what it is instead."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)

    def __str__(self) -> str:
        return str(self.strerror)


def open_given(path: str | Path, most: int = MAX_BYTES) -> BinaryIO:
    """Open a file to read its bytes; also what a link leads to.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: there is none, it cannot be read, is no regular file, or larger; `strerror` says which.
    """
    try:
        _check(os.stat(path), most)
        # A pipe that takes a file's place in between is opened without waiting, and refused.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # zero bytes in a name, or characters that the system's encoding has not
        raise UnfitFileError("no system has files of such a name") from error
    try:
        _check(os.fstat(descriptor), most)
    except OSError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def read_bytes(path: str | Path, most: int = MAX_BYTES) -> bytes:
    """All bytes of a file.

    Raises:
        OSError: as `open_given`.
    """
    data = bytearray()
    with open_given(path, most) as stream:
        while part := stream.read(min(CHUNK, most + 1 - len(data))):  # makes room for all that is asked for
            data += part
            if len(data) > most:  # it grows
                raise UnfitFileError(_too_large(most))
    return bytes(data)


def read_text(path: str | Path, encoding: str = "utf-8", errors: str = "strict", most: int = MAX_TEXT) -> str:
    """All text of a file.

    Raises:
        OSError: as `open_given`.
        UnicodeDecodeError: it is of another encoding.
    """
    return read_bytes(path, most).decode(encoding, errors)


def special_kind(path: str | Path) -> str:
    """What a name stands for that is neither file nor folder, in words; "" for those, and where there is nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    return "" if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else _kind(mode)


@contextmanager
def open_arrays(path: str | Path) -> Iterator[NpzFile]:
    """Open an `.npz` archive; nothing in it is unpickled.

    Raises:
        OSError: as `open_given`.
        ValueError: it unpacks to more than arrays do; or whatever goes wrong in the block, which reads it: of a damaged
            archive readers raise anything.
    """
    import numpy as np

    with open_given(path) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                if bomb := exceeded(archive, os.fstat(stream.fileno()).st_size):
                    raise ValueError(bomb)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as content:
                yield content
        except Exception as error:  # of a damaged archive zipfile, zlib and NumPy raise anything
            raise _as_value_error(error) from error


def _as_value_error(error: Exception) -> Exception:
    from qexport.errors import QexportError

    if isinstance(error, QexportError):
        return error
    reason = " ".join(str(error).split())[:120]
    return ValueError(reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}")


def exceeded(archive: zipfile.ZipFile, size: int, unpacking: int = UNPACKING) -> str:
    """What an archive has more of than its kind has, "" for nothing; no reader takes more out of an entry than it says.

    Args:
        size: bytes of the archive.
        unpacking: times its size that it may unpack to.
    """
    entries = archive.infolist()
    unpacked = sum(each.file_size for each in entries)
    if len(entries) > MAX_ENTRIES:
        return f"it is an archive of {len(entries):,} files"
    if unpacked > min(MAX_BYTES, max(ALWAYS_UNPACKED, unpacking * size)):
        return f"its {size:,} bytes unpack to {unpacked:,}"
    return ""


def _check(state: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise UnfitFileError(f"it is {_kind(state.st_mode)}, not a file")
    if state.st_size > most:
        raise UnfitFileError(_too_large(most))


def _kind(mode: int) -> str:
    return next((name for is_one, name in KINDS if is_one(mode)), "something else")


def _too_large(most: int) -> str:
    return f"it has more than {most:,} bytes"
