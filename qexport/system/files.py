"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qexport.errors import InputError, NoRoomError
from qexport.system.scratch import made, unfinished

MIN_AGE = 60.0
"""Seconds since an unfinished file was touched last."""
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}(\..+)?")
"""Names of what `write_whole` has not finished."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROBE = 1 << 20
"""Bytes: a writer that fails for lack of room leaves less."""


def out_of_room(error: Exception, folder: Path | None = None) -> NoRoomError | None:
    """What an error comes from where `folder`, or that for temporary files, has no room; None where both have.

    Compiled libraries say something else of a full disk, or nothing: so it is looked at.
    """
    if isinstance(error, NoRoomError):
        return error
    temporary = Path(tempfile.gettempdir())
    for place, remedy in ((folder, "choose another --out"), (temporary, "set TMPDIR to another folder")):
        if place and (full := _write_error(place)):
            return NoRoomError(f"{place} cannot be written ({full.strerror})", f"make room there, or {remedy}")
    if isinstance(error, OSError) and error.errno in (*FULL, errno.EROFS):
        remedy = "make room there, or choose another --out" if folder else "make room, or set TMPDIR"
        place = folder or error.filename or temporary
        return NoRoomError(f"{place} cannot be written ({error.strerror})", remedy)
    return None


def _write_error(folder: Path) -> OSError | None:
    """What a full folder says to more; None where there is room, or something else is wrong with it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE))
            probe.flush()
    except OSError as error:
        return error if error.errno in FULL else None
    return None


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it over `path` if the block succeeds, remove it if not.

    The temporary name keeps the suffix, which some writers insist on.

    Raises:
        InputError: the folder cannot be written to; NoRoomError, whatever the block says, where it is full.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    with unfinished(temporary):
        try:
            yield temporary
            if temporary.is_dir() and path.is_dir():
                _replace_folder(temporary, path)
            else:
                os.replace(temporary, path)
        except Exception as error:  # the block is a library's writer, which raises anything
            if full := out_of_room(error, path.parent):
                raise full from error
            if not isinstance(error, OSError):
                raise
            raise InputError(f"{path} cannot be written ({error.strerror or error})", "choose another --out") from error
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink(missing_ok=True)


def _replace_folder(temporary: Path, path: Path) -> None:
    """A folder with files in it cannot be replaced at once: the old one makes way, and comes back on failure."""
    old = path.with_name(f".{uuid.uuid4().hex}")
    with unfinished(old, home=path):
        os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            os.replace(old, path)
            raise
        shutil.rmtree(old)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed runs have begun to write in a folder, where their notes are gone with a container.

    What is a minute old is nobody's: files are built elsewhere or under the folder's lock, and written in less.
    """
    with suppress(OSError):
        for path in [each for each in folder.iterdir() if _UNFINISHED.fullmatch(each.name)]:
            if time.time() - path.lstat().st_mtime > MIN_AGE:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_folder(path: Path) -> None:
    """Check that a folder can be written to, or made, without making it.

    Raises:
        InputError: it cannot.
    """
    try:
        path.exists()
    except OSError as error:  # a name that no system takes
        raise InputError(f"folder {path} cannot be written ({error.strerror})", "choose another --out") from error
    nearest = next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))
    if not nearest.is_dir():
        raise InputError(f"folder {path} cannot be written ({nearest} is not a folder)", "choose another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"folder {path} cannot be written (no permission in {nearest})", "choose another --out")


def make_folder(path: Path) -> Path:
    """Create a folder and check that it can be written to.

    Raises:
        InputError: it cannot.
    """
    try:
        made(path)
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{uuid.uuid4().hex}"
        with unfinished(probe):
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise InputError(
            f"folder {path} cannot be written ({error.strerror or error})", "choose another --out"
        ) from error
    return path
