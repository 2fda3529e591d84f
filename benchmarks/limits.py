"""What a run and a process must not grow by: memory with the number of images, and with the number of exports.

Each figure is of a process of its own. Linux and macOS: it reads `ru_maxrss`; for exports Linux with glibc, as it reads
/proc and asks malloc. Nothing is taken of earlier runs, so each export captures, calibrates, lowers and verifies anew.

Resident memory goes up and down by megabytes with the pages that malloc keeps: only hundreds of exports show a slope in
it. What was allocated and not freed is exact behind a few.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DEMO = Path(__file__).resolve().parents[1] / "calibration_data"
MODEL, SHAPES = DEMO / "shapes26.pt", DEMO / "shapes" / "images" / "train"
FEW, MANY = 100, 5000
MAX_GROWTH = 0.10
"""Share of the peak with few images that it may be higher with many."""
MAX_SLOPE = 0.1
"""MB of resident memory that a process may grow by for each export, behind the first ones."""
MAX_LEFT = 0.01
"""MB that an export may leave allocated, on average behind the first ones."""
BLOCK = 512
"""Bytes that one of Python's own blocks has at most; larger ones are malloc's."""
WARM_UP = 0.34
"""Share of the exports in which caches fill."""
MALLINFO2 = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
KIB = 1 / 1024 if sys.platform == "darwin" else 1


@dataclass(frozen=True)
class State:
    """What a process holds between two exports.

    Attributes:
        megabytes: resident.
        allocated: MB that malloc has given out, and at most those that Python has in its own arenas.
        threads, files, temporary: how many, of open files and of qexport's temporary ones.
    """

    megabytes: float
    allocated: float
    threads: int
    files: int
    temporary: int


def links(folder: Path, count: int) -> Path:
    """A folder of as many links to the demo's images."""
    originals = sorted(SHAPES.glob("*.jpg"))
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:06d}.jpg").symlink_to(originals[number % len(originals)])
    return folder


def options(data: Path, out: Path, formats: str, size: int, effort: str) -> dict[str, Any]:
    """The fields of a job that writes files of these formats and measures nothing."""
    fixed: dict[str, Any] = {"model": str(MODEL), "int8": True, "no_eval": True, "no_latency": True, "no_cache": True}
    return fixed | {"data": str(data), "out": out, "format": formats, "imgsz": size, "effort": effort}


def export_once(given: dict[str, Any]) -> None:
    """Do one export in this process."""
    from qexport.job.options import make_job
    from qexport.pipeline import export

    export(make_job(given))


def peak(count: int, formats: str, size: int, effort: str) -> float:
    """MB of this process at its highest, behind an export that calibrates with `count` images."""
    with tempfile.TemporaryDirectory(prefix="limits-") as name:
        folder = Path(name)
        given = options(links(folder / "images", count), folder / "out", formats, size, effort)
        export_once({**given, "calib_images": "all"})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / 1024


class _Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of malloc.h: bytes given out from heaps are `uordblks`, as mappings of their own `hblkhd`."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]


def allocated() -> float:
    """MB that were allocated in this process and not freed, whichever library it was.

    Raises:
        AttributeError: the C library is not glibc 2.33 or later.
    """
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Mallinfo2
    found = ask()
    return float(found.uordblks + found.hblkhd + sys.getallocatedblocks() * BLOCK) / 2**20


def state() -> State:
    """What this process holds now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    open_files = len(os.listdir("/proc/self/fd"))
    left = sum(each.name.startswith("qexport-") for each in Path(tempfile.gettempdir()).iterdir())
    resident = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return State(resident, allocated(), threading.active_count(), open_files, left)


def exports(count: int, formats: str, size: int) -> list[State]:
    """What this process holds behind each of so many exports."""
    found = []
    with tempfile.TemporaryDirectory(prefix="limits-") as name:
        folder = Path(name)
        data, tempfile.tempdir = links(folder / "images", 4), name  # others use the usual one
        for number in range(count):
            export_once(options(data, folder / "out", formats, size, "none"))
            found.append(state())
            print(f"  {number + 1}: {found[-1]}", file=sys.stderr, flush=True)
    return found


def slope(figures: Sequence[float]) -> float:
    """MB for each export, by least squares over what comes behind the warm-up."""
    settled = figures[int(len(figures) * WARM_UP) :]
    return float(np.polyfit(np.arange(len(settled)), settled, 1)[0])


def of_child(*words: str) -> Any:
    """The JSON that this script prints as a process of its own."""
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def check_images(common: list[str], few: int, many: int) -> bool:
    """Compare peaks with few and with many images, and print them."""
    low, high = (of_child("--peak", str(count), *common) for count in (few, many))
    growth = high / low - 1
    print(f"peak with {few} images {low:.0f} MB, with {many} {high:.0f} MB: {growth:+.1%}, {MAX_GROWTH:.0%} at most")
    return bool(growth <= MAX_GROWTH)


def check_exports(common: list[str], count: int) -> bool:
    """Print what exports leave in a process, and say whether that is within bounds."""
    states = [State(**each) for each in of_child("--exports-here", str(count), *common)]
    settled, last = states[int(count * WARM_UP)], states[-1]
    rise, left = slope([each.megabytes for each in states]), slope([each.allocated for each in states])
    print(f"{count} exports: each leaves {left:+.4f} MB allocated, {MAX_LEFT} at most, and is worth {rise:+.3f} MB of")
    print(f"  resident memory, {MAX_SLOPE} at most; behind the warm-up {settled}, at the end {last}")
    same = (last.threads, last.files, last.temporary) == (settled.threads, settled.files, settled.temporary)
    return rise <= MAX_SLOPE and left <= MAX_LEFT and same


def main() -> int:
    """Measure, print, and return 0 if all bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs=2, default=(FEW, MANY))
    parser.add_argument("--exports", type=int, default=60)
    parser.add_argument("--format", default="onnx")
    parser.add_argument("--imgsz", type=int, default=64)
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--exports-here", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        print(json.dumps(peak(given.peak, given.format, given.imgsz, given.effort)))
        return 0
    if given.exports_here:
        print(json.dumps([vars(each) for each in exports(given.exports_here, given.format, given.imgsz)]))
        return 0
    common = ["--format", given.format, "--imgsz", str(given.imgsz), "--effort", given.effort]
    held = [check_images(common, *given.images)] if given.images[1] else []
    held += [check_exports(common, given.exports)] if given.exports else []
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
