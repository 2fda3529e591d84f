"""What one run leaves for the next, whatever folder that one writes to: data, by a key of all that they depend on.

An entry is one archive, which appears whole or not at all and is read through one open file: who replaces or removes it
meanwhile disturbs nobody. Nothing in it is unpickled or unpacked by a name of its own; what is damaged counts as
missing. Without a folder that can be written, and by this user alone, nothing is kept, and nothing fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from qexport.errors import QexportError
from qexport.system.files import remove_unfinished, write_whole
from qexport.system.given_files import MAX_TEXT, open_given
from qexport.system.json_form import parse_json

Found = TypeVar("Found")
VARIABLE = "QEXPORT_CACHE"
"""Environment variable: another folder."""
MAX_BYTES = 2**31
"""Of all entries together: those that were used longest ago go first."""
ROOT = 0
"""Whoever that is can write to every folder."""
MADE = "made"
"""File in an entry: when it was made."""
SUFFIX = ".qexport-cache"
_NAME = re.compile(rf"[a-z]+-[0-9a-f]{{64}}{re.escape(SUFFIX)}")


@dataclass(frozen=True)
class Entry:
    """An entry that is being read; each file has the size that the archive says, and the archive's checksum holds."""

    archive: zipfile.ZipFile
    made: str

    def read(self, name: str, most: int = MAX_TEXT) -> bytes:
        """All bytes of one of its files, which has no more than `most`."""
        if self.archive.getinfo(name).file_size > most:
            raise ValueError(f"{name} is too large")
        return self.archive.read(name)

    @property
    def names(self) -> list[str]:
        """Of its files."""
        return self.archive.namelist()


@dataclass(frozen=True)
class Cache:
    """A folder of entries.

    Attributes:
        folder: None where nothing is kept.
        conditions: what every entry depends on, see `qexport.system.machine.conditions`.
        limit: bytes of all entries together.
    """

    folder: Path | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    limit: int = MAX_BYTES

    def key(self, kind: str, parts: Mapping[str, Any]) -> str:
        """A name that changes with each part and with the conditions.

        Args:
            kind: small letters.
            parts: JSON's types; of others what `repr` says counts, and members of sets in their order.
        """
        content = json.dumps({"conditions": self.conditions, "parts": parts}, sort_keys=True, default=_as_text)
        return f"{kind}-{hashlib.sha256(content.encode('utf-8', 'surrogateescape')).hexdigest()}"

    @property
    def foreign(self) -> str:
        """Why what is in the folder may be a stranger's, in words; "" where it is the user's own, or is not there."""
        try:
            state = self.folder.stat() if self.folder else None
        except OSError:
            state = None
        if state is None or not hasattr(os, "getuid"):  # on Windows folders of a home are their user's
            return ""
        if state.st_uid not in (os.getuid(), ROOT):
            return "it is another user's"
        return "everybody may write to it" if state.st_mode & stat.S_IWOTH else ""

    def holds(self, key: str) -> bool:
        """Whether there is an entry, sound or not."""
        return self.folder is not None and not self.foreign and (self.folder / f"{key}{SUFFIX}").is_file()

    def read(self, key: str, reader: Callable[[Entry], Found]) -> Found | None:
        """What `reader` makes of an entry; None where there is none, or the reader raises: it is damaged, then."""
        if self.folder is None or self.foreign:
            return None
        path = self.folder / f"{key}{SUFFIX}"
        try:
            with open_given(path, self.limit) as stream, zipfile.ZipFile(stream) as archive:
                _check(archive, os.fstat(stream.fileno()).st_size)
                made = datetime.fromisoformat(archive.read(MADE).decode("ascii"))
                found = reader(Entry(archive, made.astimezone(UTC).isoformat(timespec="seconds")))
        except Exception:  # of a damaged archive zipfile, zlib, NumPy and who reads the parts raise anything
            return None
        with suppress(OSError):  # somebody else's folder
            os.utime(path)
        return found

    def keep(self, key: str, files: Mapping[str, bytes | Path]) -> None:
        """Write an entry, if there is room for it and the folder can be written.

        Args:
            files: by their names in it: bytes, or what is to be copied.
        """
        if self.folder is None:
            return
        with suppress(OSError, QexportError):
            size = sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in files.values())
            if size > self.limit // 2:
                return
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.foreign:
                return
            with write_whole(self.folder / f"{key}{SUFFIX}") as temporary, zipfile.ZipFile(temporary, "w") as archive:
                archive.writestr(MADE, datetime.now(UTC).isoformat(timespec="seconds"))
                for name, content in files.items():
                    if isinstance(content, bytes):
                        archive.writestr(name, content)
                    else:
                        archive.write(content, name)
            self._trim()

    def size(self) -> tuple[int, int]:
        """How many entries there are, and their bytes."""
        entries = self._entries()
        return len(entries), sum(state.st_size for _, state in entries)

    def clear(self) -> None:
        """Remove every entry, and nothing else.

        Raises:
            OSError: one cannot be removed.
        """
        for path, _ in self._entries():
            path.unlink(missing_ok=True)

    def _trim(self) -> None:
        assert self.folder is not None
        remove_unfinished(self.folder)
        entries = sorted(self._entries(), key=lambda each: each[1].st_mtime_ns)
        total = sum(state.st_size for _, state in entries)
        for path, state in entries:
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= state.st_size

    def _entries(self) -> list[tuple[Path, os.stat_result]]:
        """Files that are named as entries are."""
        found = []
        with suppress(OSError):
            for path in self.folder.iterdir() if self.folder else ():
                with suppress(OSError):  # another process has just removed it
                    if _NAME.fullmatch(path.name) and stat.S_ISREG((state := path.lstat()).st_mode):
                        found.append((path, state))
        return found


def _check(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse what unpacks to more than it is."""
    entries = archive.infolist()
    if any(each.compress_type != zipfile.ZIP_STORED or each.file_size != each.compress_size for each in entries):
        raise ValueError("something is packed")
    if sum(each.file_size for each in entries) > size:
        raise ValueError("files share their bytes")


def _as_text(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else repr(value)


def cache_folder() -> Path | None:
    """Where entries are kept if nobody says otherwise: QEXPORT_CACHE, or `qexport` in XDG_CACHE_HOME or in ~/.cache.

    None where there is no home folder.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named)
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():  # the specification has others ignored
        return shared / "qexport"
    try:
        return Path.home() / ".cache" / "qexport"
    except RuntimeError:
        return None


def written_json(content: Any) -> bytes:
    """A file of an entry."""
    return json.dumps(content).encode()


def read_json(entry: Entry, name: str) -> Any:
    """Such a file's content.

    Raises:
        ValueError: it is none.
    """
    return parse_json(entry.read(name))
