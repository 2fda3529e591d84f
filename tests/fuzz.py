"""Run the readers of everything that a user can name on hostile files made by a seed: `make fuzz CASES=10000 SEED=0`.

Each case has to end by itself, within bounds of time and memory, in a documented exit code other than 1 and at most one
error line, and nothing may run, be imported or be written (`fuzzing.watch`). Cases run in a process of their own, which
may die; one that is not as it must be is kept in a folder: `python tests/fuzz.py --replay FOLDER/CASE` runs it again.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import io
import itertools
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from fuzzing.kinds import KINDS, Kind
from fuzzing.watch import Watch
from PIL import Image

MAX_SECONDS, MAX_WAIT = 5.0, 60.0
"""Of processor time for one case; by the clock until its process is ended, on a machine that has other things to do."""
MAX_GROWTH = 2**29
"""Bytes that a case of a few kilobytes may need; beyond four times as many, memory runs out."""
PREFIX = "qexport: error: "
FAULTS = (f"{PREFIX}unexpected ", f"{PREFIX}out of memory")


@dataclass(frozen=True)
class Case:
    """One hostile file."""

    kind: str
    seed: int
    number: int

    @property
    def name(self) -> str:
        """What it is kept as."""
        return f"{self.kind.replace(' ', '-')}-{self.seed}-{self.number}"

    @property
    def content(self) -> bytes:
        """Its bytes, the same every time."""
        return KINDS[self.kind].make(Random(f"{self.kind} {self.seed} {self.number}"))


@dataclass(frozen=True)
class Outcome:
    """How a case ended: exit code, what is not as it must be, "" for nothing, and seconds of processor time."""

    code: int
    fault: str
    seconds: float = 0.0


def cases(count: int, seed: int, kinds: Sequence[str]) -> list[Case]:
    """So many cases, each kind its share and at least one."""
    whole = sum(KINDS[kind].share for kind in kinds)
    return [
        Case(kind, seed, number) for kind in kinds for number in range(max(1, round(count * KINDS[kind].share / whole)))
    ]


def run_case(kind: Kind, content: bytes, watch: Watch, folder: Path) -> Outcome:
    """Write a file, read it as the command does, and look at everything that came of it."""
    place = folder / "case"
    place.mkdir()
    path = place / kind.file
    path.write_bytes(content)
    watch.found.clear()
    output, errors = io.StringIO(), io.StringIO()
    peak, started = _peak(), time.process_time()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        watch.armed = True
        try:
            code = kind.door(path)
        except BaseException:  # what even the command does not catch
            code = 1
            traceback.print_exc()
        finally:
            watch.armed = False
    seconds, grown = time.process_time() - started, _peak() - peak
    left = [each.name for each in place.iterdir() if each != path and (code != 0 or each.name != "page.html")]
    faults = {
        f"exit code {code}: {errors.getvalue()[-3000:]}": code not in kind.codes,
        f"error lines: {errors.getvalue()[:500]!r}": not _is_right(code, errors.getvalue()),
        f"it does {'; '.join(watch.found)}": bool(watch.found),
        f"it takes {seconds:.1f} seconds": seconds > MAX_SECONDS,
        f"it takes {grown:,} bytes": grown > MAX_GROWTH,
        f"it leaves {', '.join(left)}": bool(left),
    }
    for each in place.iterdir():
        each.unlink()
    place.rmdir()
    return Outcome(code, "\n".join(fault for fault, wrong in faults.items() if wrong), seconds)


def _is_right(code: int, errors: str) -> bool:
    lines = errors.splitlines()
    if code in (0, 1):
        return not lines
    line = lines[0] if len(lines) == 1 else ""
    return line.startswith(PREFIX) and not line.startswith(FAULTS) and len(line) < 20_000


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def ready(folder: Path, kinds: Iterable[str]) -> Iterator[Watch]:
    """A process that is watched, with little memory, no terminal and every module that readers import."""
    os.chdir(folder)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    sink = os.open("libraries.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(sink, 2)
    warnings.simplefilter("ignore")  # as in the command
    Image.init()  # readers of Pillow are imported when they are asked for
    watch = Watch(folder)
    for name in kinds:
        kind = KINDS[name]
        found = run_case(replace(kind, codes=(0,)), kind.plain(), watch, folder)
        if found.code != 0:
            raise RuntimeError(f"a plain {name} is refused: {found}")
    watch.known = frozenset(sys.modules)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 4 * MAX_GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    gc.collect()
    yield watch


def work(given: Sequence[Case], folder: Path, results: Connection) -> None:
    """Run cases one by one and tell of each; the process that does it may die."""
    try:
        with ready(folder, dict.fromkeys(case.kind for case in given)) as watch, (folder / "hung.log").open("w") as log:
            faulthandler.enable(log)
            for case in given:
                content = case.content
                faulthandler.dump_traceback_later(MAX_WAIT, exit=True, file=log)
                found = run_case(KINDS[case.kind], content, watch, folder)
                faulthandler.cancel_dump_traceback_later()
                results.send(found)
    except BaseException:
        results.send(Outcome(1, f"the harness: {traceback.format_exc()}"))


def outcomes(given: list[Case]) -> Iterator[tuple[Case, Outcome]]:
    """Run cases; where a process dies of one, the next one goes on behind it."""
    context = multiprocessing.get_context("fork")
    while given:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            results, end = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(given, Path(name), end))
            process.start()
            end.close()
            done = 0
            while done < len(given):
                try:
                    found = results.recv()
                except EOFError:
                    process.join()
                    log = Path(name) / "hung.log"
                    found = Outcome(
                        1, f"it ends the process ({process.exitcode}): {log.read_text()[:4000] if log.exists() else ''}"
                    )
                    yield given[done], found
                    done += 1
                    break
                if found.fault.startswith("the harness"):
                    raise RuntimeError(found.fault)
                yield given[done], found
                done += 1
            process.join()
            given = given[done:]


def keep(case: Case, found: Outcome, folder: Path) -> None:
    """Write what it takes to run a case again."""
    place = folder / case.name
    place.mkdir(parents=True, exist_ok=True)
    (place / KINDS[case.kind].file).write_bytes(case.content)
    (place / "fault.txt").write_text(f"{case.kind}\n{found.fault}\n", encoding="utf-8", errors="replace")


def replayed(folder: Path) -> Outcome:
    """Read a kept case once more, in this process."""
    kind = KINDS[(folder / "fault.txt").read_text(encoding="utf-8").splitlines()[0]]
    content = (folder / kind.file).read_bytes()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        return run_case(kind, content, Watch(Path(name)), Path(name))


def told(kind: str, done: Sequence[Outcome]) -> str:
    """What became of the cases of a kind."""
    codes = ", ".join(f"{code}: {count}" for code, count in sorted(Counter(one.code for one in done).items()))
    faults, seconds = sum(bool(one.fault) for one in done), sum(one.seconds for one in done)
    return f"{kind:15} {len(done):6} cases, {faults} with faults; exit codes {codes}; {seconds:.1f} s"


def main() -> int:
    """Run the cases that are asked for, say what became of them, and return 1 where one did not end as it must."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated")
    parser.add_argument("--kept", type=Path, default=Path("build/fuzz"), help="folder for cases with faults")
    parser.add_argument("--replay", type=Path, help="a case in such a folder")
    given = parser.parse_args()
    if given.replay:
        found = replayed(given.replay)
        print(f"exit code {found.code}: {found.fault or 'as it must be'}")
        return int(bool(found.fault))
    chosen, started = cases(given.cases, given.seed, given.kinds.split(",")), time.monotonic()
    faults = 0
    for kind, each in itertools.groupby(outcomes(chosen), lambda one: one[0].kind):
        done = list[Outcome]()
        for case, found in each:
            done.append(found)
            if found.fault:
                keep(case, found, given.kept.absolute())
                print(f"{case.name}: {' '.join(found.fault.split())[:300]}", flush=True)
        print(told(kind, done), flush=True)
        faults += sum(bool(one.fault) for one in done)
    print(f"{len(chosen)} cases of seed {given.seed} in {time.monotonic() - started:.0f} s, {faults} with faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
