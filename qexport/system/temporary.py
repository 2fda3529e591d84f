"""A writable folder for temporary files, or an error of one line.

Python takes the first of TMPDIR, /tmp and the like that can be written; libraries in C++ and other processes look at
TMPDIR alone. So what Python finds is what they are told, and where it finds nothing with room the output folder serves.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qexport.errors import InputError
from qexport.system.scratch import made, own_folder, remove_abandoned, remove_folder

MIN_FREE = 256 << 20
"""Bytes: converters of usual models run out of room with less."""
VARIABLE = "TMPDIR"


@contextmanager
def temporary_files(folder: Path) -> Iterator[None]:
    """Put temporary files where there is room for them: in `folder` if nowhere else.

    Those that runs which were killed have left in either are removed.

    Raises:
        InputError: no folder can be written.
    """
    before, chosen = os.environ.get(VARIABLE), tempfile.tempdir
    usual = _usual()
    for place in filter(None, (usual, folder)):
        remove_abandoned(place)
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    made(folder)
    own = None if usual and _free(usual) >= MIN_FREE else _own(folder, usual)
    try:
        os.environ[VARIABLE] = tempfile.tempdir = str(own or usual)
        yield
    finally:
        tempfile.tempdir = chosen
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})
        if own:
            remove_folder(own)
            with suppress(OSError):  # a folder with something in it stays
                for each in created:
                    each.rmdir()


def _usual() -> Path | None:
    """Python's own choice; the working directory, its last one, is none unless the user says so."""
    tempfile.tempdir = None
    try:
        found = Path(tempfile.gettempdir())
    except FileNotFoundError:
        return None
    asked = os.environ.get(VARIABLE)
    return None if found == Path.cwd() and (not asked or Path(asked).absolute() != found) else found


def _own(folder: Path, usual: Path | None) -> Path | None:
    """A new folder in `folder`; None if that has no more room than the usual one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if usual and _free(folder) < MIN_FREE:
            return None
        return own_folder(folder)
    except OSError as error:
        if usual:
            return None
        tried = ", ".join(dict.fromkeys((os.environ.get(VARIABLE, "/tmp"), "/tmp", str(folder))))
        raise InputError(
            f"no folder for temporary files can be written (tried {tried}; {error.strerror})",
            f"set {VARIABLE} to a folder that can be, or choose another --out",
        ) from error


def _free(folder: Path) -> int:
    """Free bytes; plenty if the system does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return MIN_FREE
