"""What must not outlive a run: its temporary files, and files elsewhere that are not finished.

A process that is killed runs no `finally`. So whatever a process has begun is known to whoever ends it: within a
process as entries of a table, of a child process as notes in its folder for temporary files.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qexport.errors import InputError
from qexport.system.signals import at_end

VARIABLES = ("TMPDIR", "TEMP", "TMP")
"""What Python and compiled libraries look into for a folder of temporary files."""
NOTES = "QEXPORT_NOTES"
"""Environment variable of a child process: the folder for notes of what it has not finished."""
SUFFIX = ".unfinished"


@dataclass(frozen=True)
class Unfinished:
    """A file or folder that is removed if the process ends now; with `home` it goes back there if nothing is there."""

    path: Path
    home: Path | None = None


_begun: dict[str, Unfinished] = {}
_made: list[Path] = []
_folders: list[Path] = []


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make the folder for temporary files of this process, its libraries and its children; remove it at the end.

    Raises:
        InputError: no folder for temporary files can be written.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="qexport-"))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"no folder for temporary files can be written ({reason})", "set TMPDIR to one") from error
    _folders.append(folder)
    before, environment = tempfile.tempdir, {name: os.environ.get(name) for name in VARIABLES}
    tempfile.tempdir = str(folder)
    os.environ.update(dict.fromkeys(VARIABLES, str(folder)))
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        for name, value in environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _folders.remove(folder)
        shutil.rmtree(folder, ignore_errors=True)


def folder_until_exit(prefix: str) -> Path:
    """Make a folder for temporary files that is removed when this process ends, however it ends.

    Raises:
        OSError: no folder for temporary files can be written.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    _folders.append(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def child_environment(folder: Path) -> dict[str, str]:
    """Environment variables of a child process that keeps its temporary files and its notes in `folder`."""
    return {**os.environ, **dict.fromkeys((*VARIABLES, NOTES), str(folder))}


@contextmanager
def unfinished(path: Path, home: Path | None = None) -> Iterator[None]:
    """If the process ends inside the block, remove `path` or move it back."""
    key, notes = uuid.uuid4().hex, os.environ.get(NOTES)
    _begun[key] = Unfinished(path.absolute(), home and home.absolute())
    note = Path(notes) / f"{key}{SUFFIX}" if notes else None
    if note:
        note.write_bytes(b"\0".join(os.fsencode(each) for each in (path.absolute(), home and home.absolute()) if each))
    try:
        yield
    finally:
        del _begun[key]
        if note:
            note.unlink(missing_ok=True)


def made(folder: Path) -> None:
    """Remember a folder that is about to be made, and those above it: one that stays empty is removed."""
    _made.extend(each for each in (folder.absolute(), *folder.absolute().parents) if not each.exists())


def clear_up() -> None:
    """Remove what this process and its children have not finished, and their temporary files."""
    for entry in list(_begun.values()):
        _undo(entry)
    for folder in list(_folders):
        undo_notes(folder)
        shutil.rmtree(folder, ignore_errors=True)
    for folder in list(_made):
        with suppress(OSError):  # there is something in it
            folder.rmdir()


def undo_notes(folder: Path) -> None:
    """Remove what a child process that is gone has noted below a folder."""
    for note in list(folder.rglob(f"*{SUFFIX}")):
        paths = [Path(os.fsdecode(each)) for each in note.read_bytes().split(b"\0")]
        if note.stat().st_size:
            _undo(Unfinished(*paths))


def _undo(entry: Unfinished) -> None:
    with suppress(OSError):
        if entry.home is not None and not entry.home.exists():
            os.replace(entry.path, entry.home)
        elif entry.path.is_dir():
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            entry.path.unlink(missing_ok=True)


at_end.append(clear_up)
