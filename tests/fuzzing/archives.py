"""Zip archives that nobody packs: members of other names, sizes and methods, and directories that do not fit."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from random import Random

import numpy as np

from fuzzing.pickles import COUNTS, mutated

CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
FIELDS = {CENTRAL: range(4, 46), LOCAL: range(4, 30), END: range(4, 22)}
"""Bytes of each header that stand for sizes, places, methods and flags."""
NAMES = ("../x", "/x", "a/../../x", "C:\\x", "", ".", "data.pkl", "x/data.pkl", "constants.pkl", "x/constants.pkl")
MORE = ("version", ".data/version", "byteorder", ".format_version", ".storage_alignment", "code/x.py", "é", "x" * 2000)


def read(content: bytes) -> dict[str, bytes]:
    """Members by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of members."""
    return _written(list(members.items()), lambda: method)


def _written(members: list[tuple[str, bytes]], method: Callable[[], int]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method()
            archive.writestr(info, content)
    return stream.getvalue()


def changed(members: dict[str, bytes], random: Random) -> bytes:
    """An archive with a few members that are missing, renamed, twice there, larger or of other bytes; or damaged."""
    rows = list(members.items())
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        random.choice(CHANGES)(rows, random)
    methods = (zipfile.ZIP_STORED,) * 6 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    made = _written(_once(rows), lambda: random.choice(methods) if random.random() < 0.3 else zipfile.ZIP_STORED)
    for _ in range(random.choice((0, 1, 1, 2))):
        made = random.choice((_fields, _fields, _fields, _beside, mutated))(made, random)
    return made


def _once(rows: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Names twice are written in another case, and put right in the bytes; `zipfile` would warn."""
    seen: dict[str, int] = {}
    made = []
    for name, content in rows:
        seen[name] = seen.get(name, 0) + 1
        made.append(
            (name if seen[name] == 1 else name.swapcase() if seen[name] == 2 else f"{name}{seen[name]}", content)
        )
    return list(dict(made).items())


def _drop(rows: list[tuple[str, bytes]], random: Random) -> None:
    if rows:
        del rows[random.randrange(len(rows))]


def _rename(rows: list[tuple[str, bytes]], random: Random) -> None:
    if rows:
        place = random.randrange(len(rows))
        rows[place] = random.choice((*NAMES, *MORE, rows[place][0] + "x")), rows[place][1]


def _add(rows: list[tuple[str, bytes]], random: Random) -> None:
    content = random.choice((b"", b"1", b"3\n", b"big", b"little", b"-1", b"x" * 100, bytes(2**16), b"\x80\x02}."))
    folder = rows[0][0].partition("/")[0] if rows else "x"
    rows.insert(random.randrange(len(rows) + 1), (f"{folder}/{random.choice((*NAMES, *MORE))}", content))


def _repeat(rows: list[tuple[str, bytes]], random: Random) -> None:
    if rows:
        rows.append(random.choice(rows))


def _content(rows: list[tuple[str, bytes]], random: Random) -> None:
    if rows:
        place = random.randrange(len(rows))
        name, content = rows[place]
        other = random.choice(rows)[1]
        rows[place] = (
            name,
            random.choice((b"", content[:-1], content + b"\0", mutated(content[:20_000], random), other)),
        )


CHANGES = (_drop, _rename, _add, _repeat, _content)


def _fields(made: bytes, random: Random) -> bytes:
    """A header whose sizes, places, methods or flags are others."""
    kind = random.choice((CENTRAL, CENTRAL, LOCAL, END))
    found = list(_starts(made, kind))
    if not found:
        return made
    place = random.choice(found) + random.choice(FIELDS[kind])
    width, count = random.choice((1, 2, 4)), random.choice((*COUNTS, random.randrange(2**32)))
    part = struct.pack("<Q", count % 2**64)[:width]
    return made[:place] + part + made[place + width :]


def _starts(made: bytes, kind: bytes) -> Iterator[int]:
    place = made.find(kind)
    while place >= 0:
        yield place
        place = made.find(kind, place + 1)


def _beside(made: bytes, random: Random) -> bytes:
    """Another archive, or anything else, before, behind or within it."""
    other = random.choice(
        (made, _written([("x/data.pkl", b"\x80\x02}.")], lambda: 0), random.randbytes(30), b"\0" * 70_000)
    )
    return random.choice((other + made, made + other, made[: len(made) // 2] + other + made[len(made) // 2 :]))


@cache
def _packed_zeros(size: int, count: int) -> bytes:
    rows = [("x/data.pkl", b"\x80\x02}."), *((f"x/data/{number}", bytes(size)) for number in range(count))]
    return _written(rows, lambda: zipfile.ZIP_DEFLATED)


def bomb(random: Random) -> bytes:
    """A small archive that unpacks, or says that it unpacks, to very much."""
    made = _packed_zeros(*random.choice(((2**27, 2), (2**24, 12), (2**10, 4000))))
    # What the directory says of one member is small: readers that believe it are shown another size than others.
    place = random.choice(list(_starts(made, CENTRAL))) + 24
    return made[:place] + struct.pack("<I", 100) + made[place + 4 :] if random.random() < 0.5 else made


def arrays(members: dict[str, bytes], random: Random) -> bytes:
    """An `.npz` archive whose arrays have other shapes, types or numbers, or whose members are others."""
    if random.random() < 0.4:
        return changed(members, random)
    made = dict(members)
    for _ in range(random.choice((1, 1, 2))):
        name = random.choice(list(made))
        made[name] = _array(made[name], random)
    return packed(made)


def _array(content: bytes, random: Random) -> bytes:
    if random.random() < 0.3:
        return mutated(content, random)
    if random.random() < 0.3:
        shape = random.choice(
            ("()", "(0,)", "(-1,)", "(1000000000000,)", "(2, 0, 3)", "(1,) * 9", "x", "(1.5,)", "(2**99,)")
        )
        kind = random.choice(
            ("<f8", "|O", "<U1000000000", "|V8", ">i4", "<c16", "<M8[s]", "[('a', '<f8')]", "|S0", "x")
        )
        head = f"{{'descr': '{kind}', 'fortran_order': {random.choice(('False', 'True', '1'))}, 'shape': {shape}, }}"
        return b"\x93NUMPY\x01\x00v\x00" + head.ljust(117).encode()[:117] + b"\n" + content[128:]
    stream = io.BytesIO()
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:  # it is mutated already, and NumPy raises anything
        return mutated(content, random)
    np.save(stream, _other(array, random))
    return stream.getvalue()


def _other(array: np.ndarray, random: Random) -> np.ndarray:
    """An array with other numbers, another shape or another type."""
    flat = array.reshape(-1).copy()
    if flat.dtype.kind in "fiu" and flat.size and random.random() < 0.6:
        wanted = (
            (0, 1, -1, np.nan, np.inf, -np.inf, 1e300, 1e-300) if flat.dtype.kind == "f" else (0, 1, 2**31 - 1, 255)
        )
        with np.errstate(all="ignore"):
            many = random.choice((1, flat.size))
            flat[random.randrange(flat.size) :][:many] = np.array(random.choice(wanted)).astype(flat.dtype)
        return flat.reshape(array.shape)
    choice = random.randrange(5)
    if choice == 0:
        return flat
    if choice == 1:
        return flat[:-1]
    if choice == 2:
        return array[None]
    if choice == 3 and array.dtype.kind in "fiu":
        with np.errstate(all="ignore"):
            return array.astype(random.choice(("<f4", "<f8", "<i4", "<u1", "<c8", "|b1")))
    return np.zeros(random.choice(((), (0,), (3,), array.shape)), random.choice(("<f4", "<f8", "<i8", "<U5", "|b1")))
