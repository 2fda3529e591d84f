"""End runs at each step of the walk, by kill -9, SIGTERM, SIGINT and a full disk; look at what is left and comes next.

The command is started as a user starts it and followed by the lines that it prints and the files that it leaves; the
signal comes at a random moment of the step, whose length an undisturbed run has shown, and so does the end of the disk
(FULL), which is the end of what a file may have. Then:

- the exit code and one line on standard error, nothing else; no process is left a second later;
- every file in the output folder is what a whole run leaves, and a report is there with its files only;
- with a disk that is full, one line for what it cost, exit code 3 or 7, and the same as above;
- the next run ends with 0 and the same bytes, takes what was finished, and leaves no temporary file of either.

Linux only: it looks for processes in /proc.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

COMMAND = Path(sys.executable).with_name("qexport")
DEMO = Path(__file__).resolve().parents[1] / "calibration_data"
MODEL = str(DEMO / "shapes26.pt")
DATA = ("--data", str(DEMO / "shapes" / "shapes.yaml"), "--imgsz", "64", "--calib-images", "8")
IMAGES = "images.txt"
"""What is scored, in the folder of a run: a few images, for short steps."""
NO_ROOM = (3, 7)
"""Exit codes of a run that finds no room: nothing, or not all that was measured, is written."""
ENDS = {"KILL": (-9,), "TERM": (143,), "INT": (130,), "FULL": NO_ROOM}
"""How a run is ended → its exit codes."""
FULL = {"20kB": 20_000, "2MB": 2_000_000}
"""What no file of a run may exceed: a calibration's table has more than the first, a float file than the second."""
LEFT = 1000
"""Bytes that a file may have once the disk is full."""
TOKEN = "QEXPORT_FAULTS"
"""Environment variable that all processes of a run have, whoever their parents are by now."""
MAX_SECONDS = 1.0
"""What a process may live on for."""
POLL, PATIENCE = 0.01, 900.0
CACHE = "cache"
"""Folder that the runs of one place keep what they share in."""
TIMED = (".manifest.json", "report.json", "train.json", "train.html")
"""Files whose bytes have times in them; those of JSON end with a bracket and a line break."""


@dataclass
class Seen:
    """What is known of a run that is under way."""

    folder: Path
    pid: int
    lines: list[str] = field(default_factory=list)

    def said(self, start: str) -> bool:
        """Whether a step is over whose title begins so."""
        return any(line.startswith(f"✓ {start}") for line in self.lines)

    def wrote(self, pattern: str) -> bool:
        """Whether there is such a file in the output folder."""
        return any(self.folder.glob(pattern))

    def listens(self) -> bool:
        """Whether the command has taken SIGTERM over, as it does before anything else."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@dataclass(frozen=True)
class Step:
    """A step of a verb, which has begun from the moment on at which something is seen."""

    name: str
    begun: Callable[[Seen], bool]


@dataclass(frozen=True)
class Verb:
    """What is run: its words, its steps in their order, and how the next run goes on."""

    words: tuple[str, ...]
    steps: tuple[Step, ...]
    resume: Callable[[Path], tuple[str, ...]] = lambda _: ()


BEGINNING = (
    Step("read", Seen.listens),
    Step("calibrate", lambda seen: seen.said("Reading")),
    Step("plan", lambda seen: seen.wrote("calibration.npz")),
)


def exporting(name: str) -> Verb:
    """An export to one format."""
    options = ("--int8", *DATA, "--eval-data", IMAGES, "--optimise", "bias-correction", "--format", name)
    return Verb(
        (MODEL, *options),
        (
            *BEGINNING,
            Step("optimise", lambda seen: seen.said("measuring held-out")),
            Step("simulate", lambda seen: seen.said("judging")),
            Step("lower", lambda seen: seen.wrote("plan.json")),
            Step("verify", lambda seen: seen.wrote(f".*.{name}*") and not seen.wrote("report.json")),
            Step("float", lambda seen: seen.wrote("shapes26_int8*")),
            Step("measure", lambda seen: seen.wrote("report.json")),
            Step("report", lambda seen: seen.said("Keeping samples")),
        ),
    )


VERBS = {
    "onnx": exporting("onnx"),
    "tflite": exporting("tflite"),
    "qat": Verb(
        ("qat", MODEL, *DATA, "--effort", "fast", "--format", "onnx", "--epochs", "3", "--batch", "4"),
        (
            *BEGINNING,
            Step("optimise", lambda seen: seen.said("Planning")),
            Step("train", lambda seen: seen.said("Measuring held-out")),
            Step("state", lambda seen: seen.wrote(".*.state") or seen.wrote("train_*.state")),
            Step("write", lambda seen: seen.said("Training, epoch 3")),
            Step("checkpoint", lambda seen: seen.wrote(".*.pt") or seen.wrote("*_qat.pt")),
            Step("record", lambda seen: seen.wrote("*_qat.pt")),
            Step("page", lambda seen: seen.wrote("train.json")),
        ),
        lambda folder: ("--resume",) if any(folder.glob("train_*.state")) else (),
    ),
}


class Run:
    """A run of the command in a folder of its own, with a folder for temporary files."""

    def __init__(self, place: Path, words: Sequence[str], most: int = resource.RLIM_INFINITY) -> None:
        """Start it; no file of it grows beyond `most` bytes, as if the disk were full then."""
        self.temporary, self.token = place / "tmp", uuid.uuid4().hex
        self.temporary.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [COMMAND, *words, "--out", "out"],
            cwd=place,
            env={**os.environ, "TMPDIR": str(self.temporary), "QEXPORT_CACHE": str(place / CACHE), TOKEN: self.token},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: _prepare(most),
        )
        self.seen = Seen(place / "out", self.process.pid)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.seen.lines.append(line.rstrip("\n"))

    def until(self, step: Step) -> bool:
        """Wait for a step to begin; False where the run was over first."""
        while self.process.poll() is None:
            if self.has_begun(step):
                return True
            time.sleep(POLL)
        return False

    def has_begun(self, step: Step) -> bool:
        """Whether a step has begun; not where the process is gone."""
        with suppress(OSError, StopIteration):
            return step.begun(self.seen)
        return False

    def end(self, name: str) -> None:
        """Send a signal to it, or let its disk be full."""
        pid = self.process.pid
        if name == "FULL":
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (LEFT, resource.RLIM_INFINITY))
        else:
            (os.killpg if name == "INT" else os.kill)(pid, signal.Signals[f"SIG{name}"])

    def ended(self) -> int:
        """Wait for its end and its last line; return the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(MAX_SECONDS)
        return code

    @property
    def errors(self) -> list[str]:
        """Lines that are not of steps, nor of what is going to be done."""
        return [line for line in self.seen.lines if not line.startswith(("✓ ", "… ", "→ "))]

    def living(self) -> list[int]:
        """Its processes, and theirs, that are not dead."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX" and self.token.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found


def _prepare(most: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


@dataclass(frozen=True)
class Whole:
    """An undisturbed run: seconds of each step, and what it leaves."""

    seconds: Mapping[str, float]
    files: Mapping[str, str]


def undisturbed(verb: Verb) -> Whole:
    """Run a verb to its end."""
    with new_place() as place:
        run, times = Run(place, verb.words), list[float]()
        for step in verb.steps:
            if not run.until(step):
                raise RuntimeError(f"{step.name} was not seen: {run.errors}")
            times.append(time.monotonic())
        if run.ended():
            raise RuntimeError(f"the run failed: {run.errors}")
        times.append(time.monotonic())
        pairs = zip(verb.steps, times, times[1:], strict=False)
        return Whole({step.name: end - start for step, start, end in pairs}, contents(place / "out"))


@contextmanager
def new_place() -> Iterator[Path]:
    """A folder for one run and the next."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        images = sorted((DEMO / "shapes" / "images" / "val").iterdir())[:4]
        Path(name, IMAGES).write_text("".join(f"{image}\n" for image in images))
        yield Path(name)


def contents(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of the bytes, "" where those have times in them; of a checkpoint, of what was learned."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _hash(path) for path in files}


def _hash(path: Path) -> str:
    if path.name.startswith(".") or path.name.endswith(TIMED) or path.suffix == ".state":  # the first are unfinished
        return ""
    return _learned(path) if path.suffix == ".pt" else hashlib.sha256(path.read_bytes()).hexdigest()


def _learned(path: Path) -> str:
    """The rest names the command, which says --resume or not."""
    from qexport.checkpoints.checkpoint import load_checkpoint
    from qexport.training.qat_file import read_learned

    total = hashlib.sha256()
    for profile in read_learned(load_checkpoint(path).learned, path).profiles:
        total.update(profile.plan.fingerprint.encode())
        for name, tensor in sorted(profile.parameters.items()):
            total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def left_wrong(folder: Path, whole: Whole, name: str) -> Iterator[str]:
    """What is in the output folder that should not be there when a run was ended by a signal."""
    found = contents(folder)
    for file, digest in found.items():
        if Path(file).parts[0].startswith("."):
            if name != "KILL":  # the next run removes them
                yield f"{file} is left"
        elif file.endswith(".json") and not (folder / file).read_bytes().endswith(b"}\n"):
            yield f"{file} is half-written"
        elif file not in whole.files:
            yield f"{file} is of no whole run"
        elif digest and digest != whole.files[file] and not file.endswith(".pt"):  # an interrupt ends training early
            yield f"{file} is half-written"
    if "report.json" in found:
        named = {Path(each["path"]).name for each in json.loads((folder / "report.json").read_text())["artifacts"]}
        yield from (f"the report has {each}, which is not there" for each in named - set(found))


@dataclass(frozen=True)
class Outcome:
    """How a run was ended and what became of the next.

    Attributes:
        at: the step at which it was when the signal came.
        faults: what was not as it must be.
        seconds: from the signal until the last process was gone.
        taken: what the next run took of this one.
    """

    at: str
    faults: tuple[str, ...]
    seconds: float
    taken: tuple[str, ...]


def interrupted(verb: Verb, step: Step, name: str, whole: Whole) -> Outcome | None:
    """End a run at a random moment of a step, and run once more; None where it was over before."""
    with new_place() as place:
        run, out = Run(place, verb.words), place / "out"
        if not run.until(step):
            raise RuntimeError(f"{step.name} was not seen: {run.errors}")
        time.sleep(random.uniform(0, whole.seconds[step.name]))
        if run.process.poll() is not None:
            return None
        at = [each.name for each in verb.steps if run.has_begun(each)][-1]
        sent = time.monotonic()
        run.end(name)
        if run.ended() == 0 and contents(out) == whole.files:  # it was on its way out
            return None
        faults = list(_end_wrong(run, name))
        seconds = time.monotonic() - sent
        faults += left_wrong(out, whole, name)
        if name != "KILL":
            faults += [f"{path.name} is left in TMPDIR" for path in run.temporary.iterdir()]
        taken, more = _next(place, verb, whole)
        return Outcome(at, (*faults, *more), seconds, taken)


def starved(verb: Verb, most: int, whole: Whole) -> Outcome:
    """Let a run find the disk full, and run once more."""
    with new_place() as place:
        run = Run(place, verb.words, most)
        faults = [*_end_wrong(run, "FULL"), *left_wrong(place / "out", whole, "FULL")]
        faults += [f"{path.name} is left in TMPDIR" for path in run.temporary.iterdir()]
        taken, more = _next(place, verb, whole)
        return Outcome("full", (*faults, *more), 0.0, taken)


def _end_wrong(run: Run, name: str) -> Iterator[str]:
    """What is wrong with how a run ends that a signal was sent to; all of its processes are gone then, or never."""
    code, over = run.ended(), time.monotonic()
    while (alive := run.living()) and time.monotonic() - over < 10 * MAX_SECONDS:
        time.sleep(POLL)
    if time.monotonic() - over > MAX_SECONDS:
        yield f"processes live on{': ' if alive else ''}{', '.join(map(str, alive))}"
    errors = [line for line in run.errors if not line.endswith("Ctrl-C again ends at once")]
    if code not in ENDS[name]:
        yield f"exit code {code}"
    if name == "FULL" and any("cannot be written (" not in line for line in errors):
        yield f"error lines: {errors}"
    if name != "FULL" and len(errors) != (name != "KILL"):
        yield f"error lines: {errors}"


def _next(place: Path, verb: Verb, whole: Whole) -> tuple[tuple[str, ...], list[str]]:
    """Run once more; what that took of the run before, and what is wrong with it."""
    out, faults = place / "out", list[str]()
    kept = [path.name for kind in ("calibration", "artifact") for path in (place / CACHE).glob(f"{kind}-*")]
    resumable = tuple(path.name for path in out.glob("*.state"))
    run = Run(place, (*verb.words, *verb.resume(out)))
    if code := run.ended():
        faults.append(f"the next run ends with {code}: {run.errors}")
    found = contents(out)
    faults += [f"{name} is other than in an undisturbed run" for name in found if found[name] != whole.files.get(name)]
    faults += [f"the next run has no {name}" for name in whole.files if name not in found]
    faults += [f"{path.name} is left in TMPDIR by the next run" for path in run.temporary.iterdir()]
    taken = tuple(line for line in run.seen.lines if line.startswith("✓ Taking"))
    if len(taken) < len(kept):
        faults.append(f"of {', '.join(kept)} the next run took {len(taken)}")
    return (*taken, *resumable), faults


def table(rows: Mapping[tuple[str, str, str], Sequence[Outcome]]) -> Iterator[str]:
    """A line for each step and signal."""
    yield f"{'verb':8} {'step':10} {'signal':6} {'runs':>4} {'faults':>6} {'gone in s':>9} {'reused':>6}  at"
    for (verb, step, name), found in rows.items():
        faults, slowest = sum(bool(each.faults) for each in found), max(each.seconds for each in found)
        reused = sum(bool(each.taken) for each in found)
        places = ",".join(sorted({each.at for each in found}))
        yield f"{verb:8} {step:10} {name:6} {len(found):4} {faults:6} {slowest:9.2f} {reused:6}  {places}"


def main() -> int:
    """Go through steps and signals, print a line for each run and a table, and return 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="runs for each step and signal")
    parser.add_argument("--steps", default=",".join(VERBS), help="verbs or single steps: onnx,qat.train")
    parser.add_argument("--signals", default=",".join(ENDS), help="signals, and FULL for a full disk")
    parser.add_argument("--seed", type=int, default=0, help="of the moments within the steps")
    given = parser.parse_args()
    random.seed(given.seed)
    wanted, rows = given.steps.split(","), dict[tuple[str, str, str], list[Outcome]]()
    for word, verb in VERBS.items():
        steps = [each for each in verb.steps if word in wanted or f"{word}.{each.name}" in wanted]
        if not steps:
            continue
        whole = undisturbed(verb)
        for step, name in ((step, name) for step in steps for name in given.signals.split(",")):
            found = rows.setdefault((word, step.name, name), [])
            while len(found) < given.times:
                if outcome := interrupted(verb, step, name, whole):
                    found.append(outcome)
                    print(f"{word}.{step.name} {name}: {'; '.join(outcome.faults) or 'ok'}", flush=True)
        for size in FULL if word in wanted else ():
            rows[word, "disk full", size] = [starved(verb, FULL[size], whole)]
            print(f"{word} full at {size}: {'; '.join(rows[word, 'disk full', size][0].faults) or 'ok'}", flush=True)
    print(*table(rows), sep="\n")
    return int(not rows or any(each.faults for found in rows.values() for each in found))


if __name__ == "__main__":
    sys.exit(main())
