"""What must not outlive a run: its temporary files, and files elsewhere that are not finished.

A process that is killed runs no `finally`. So whatever a process has begun is known to whoever ends it: within a
process as entries of a table, to others as notes in its folder for temporary files. Who owns such a folder holds a lock
in it, which the system releases however the process ends: a folder without is undone and removed by the next run.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import stat
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
"""Environment variable: the folder for notes of what a process has not finished."""
SUFFIX = ".unfinished"
PREFIX = "qexport-run-"
LOCK = "owner.lock"
_NAME = re.compile(rf"\.?{PREFIX}[a-z0-9_]{{8}}")


@dataclass(frozen=True)
class Unfinished:
    """A file or folder that is removed if the process ends now; with `home` it goes back there if nothing is there."""

    path: Path
    home: Path | None = None


_begun: dict[str, Unfinished] = {}
_made: list[Path] = []
_owned: dict[Path, int] = {}


def own_folder(parent: Path | None = None) -> Path:
    """Make a folder for temporary files that the next run removes if this process is killed.

    Args:
        parent: where, and then it is hidden; None for where temporary files go.

    Raises:
        OSError: it cannot be written.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{'.' if parent else ''}{PREFIX}", dir=parent and parent.absolute()))
        with suppress(FileNotFoundError):  # another run took it for one without an owner before it was locked
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if _lock(descriptor) is not False and (folder / LOCK).exists():
                _owned[folder] = descriptor
                return folder
            os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder that this process owns, and what is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    if (descriptor := _owned.pop(folder, None)) is not None:
        os.close(descriptor)


def remove_abandoned(parent: Path) -> None:
    """Undo what killed runs of this user have noted in their folders in `parent`, and remove those."""
    with suppress(OSError):
        for folder in [each for each in parent.iterdir() if _NAME.fullmatch(each.name)]:
            with suppress(OSError):
                _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    """Remove a folder that nobody owns any more; another user's is left alone: its notes might name anything."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
        return
    if not (folder / LOCK).exists():
        folder.rmdir()  # its owner was killed before the lock was there; one with anything in it stays
        return
    descriptor = os.open(folder / LOCK, os.O_RDWR)
    try:
        if _lock(descriptor):
            undo_notes(folder)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock a file until it is closed; False where another process has it, None where files cannot be locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network drives
        return None
    return True


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make the folder for temporary files of this process, its libraries and its children; remove it at the end.

    Raises:
        InputError: no folder for temporary files can be written.
    """
    try:
        folder = own_folder()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"no folder for temporary files can be written ({reason})", "set TMPDIR to one") from error
    before, environment = tempfile.tempdir, {name: os.environ.get(name) for name in (*VARIABLES, NOTES)}
    tempfile.tempdir = str(folder)
    os.environ.update(dict.fromkeys(environment, str(folder)))
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        for name, value in environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        remove_folder(folder)


def folder_until_exit() -> Path:
    """Make a folder for temporary files that is removed when this process ends, however it ends.

    Raises:
        OSError: no folder for temporary files can be written.
    """
    folder = own_folder()
    atexit.register(remove_folder, folder)
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
    for folder in list(_owned):
        undo_notes(folder)
        shutil.rmtree(folder, ignore_errors=True)
    for folder in list(_made):
        with suppress(OSError):  # there is something in it
            folder.rmdir()


def undo_notes(folder: Path) -> None:
    """Remove what a child process that is gone has noted below a folder."""
    for note in list(folder.rglob(f"*{SUFFIX}")):
        with suppress(OSError):  # somebody else is about to undo it
            if content := note.read_bytes():
                _undo(Unfinished(*(Path(os.fsdecode(each)) for each in content.split(b"\0"))))


def _undo(entry: Unfinished) -> None:
    with suppress(OSError):
        if entry.home is not None and not entry.home.exists():
            os.replace(entry.path, entry.home)
        elif entry.path.is_dir():
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            entry.path.unlink(missing_ok=True)


at_end.append(clear_up)
