"""One run of a sweep: an ordinary export in a process of its own, on whichever machine it is asked for."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from qexport.errors import InputError
from qexport.progress import Progress
from qexport.sweeps.run_record import RunRecord, load_run, save_run
from qexport.sweeps.turns import Turns
from qexport.system.files import make_folder, write_text
from qexport.system.guard import run_code
from qexport.system.scratch import child_environment, undo_notes

COMMAND = "import sys; from qexport.__main__ import main; code = main(); print(code); sys.exit(code)"
"""It says its code itself: that of a child that somebody else has waited for, as what ends this process does, is 0."""
OPTIONS = "options.yaml"
TRUST = "trust_checkpoint"
"""The one option that no file gives."""
ERROR = "qexport: error: "


@dataclass(frozen=True)
class RunRequest:
    """What is to be run.

    Attributes:
        label: what it is, in a few words.
        folder: for all that it writes; absolute.
        page: where its report goes as a page, beside report.json.
        options: of the export, as a config file has them, and `TRUST`.
        fingerprint: see `RunRecord`.
        turns: folder for `Turns`; None where runs come one after the other.
        start: folder that relative paths begin at.
    """

    label: str
    folder: Path
    page: Path
    options: Mapping[str, Any]
    fingerprint: str
    turns: Path | None = None
    start: Path = Path()


def run_export(request: RunRequest, *, progress: Progress) -> RunRecord:
    """Run one export to its end, and leave its record in its folder.

    What an earlier run has begun there is gone on with if it is of the same, and removed if it is not.

    Raises:
        InputError: the folder cannot be written, or is a link.
    """
    with progress.step(request.label):
        folder, begun = request.folder, time.monotonic()
        _prepare(request)
        side_by_side = request.turns is not None
        turns = request.turns if request.turns and Turns(request.turns).can_be_taken() else None
        record = RunRecord(request.fingerprint, alone=bool(turns) or not side_by_side)
        save_run(record, folder)
        words = ["--config", str(folder / OPTIONS), "--out", str(folder), "--report", str(request.page), "--quiet"]
        words += ["--trust-checkpoint"] if request.options.get(TRUST) else []
        code, line = _run([*words, *(("--turns", str(turns)) if turns else ())], request.start)
        done = replace(record, exit_code=code, line=line, seconds=round(time.monotonic() - begun, 1))
        save_run(done, folder)
        return done


def _prepare(request: RunRequest) -> None:
    if request.folder.is_symlink():
        raise InputError(f"{request.folder} is a link, which may lead anywhere", "remove it, or give another --out")
    folder, earlier = make_folder(request.folder), load_run(request.folder)
    if earlier and earlier.fingerprint != request.fingerprint:
        shutil.rmtree(folder)
        make_folder(folder)
    options = {name: value for name, value in request.options.items() if name != TRUST}
    write_text(folder / OPTIONS, yaml.safe_dump(options, allow_unicode=True, sort_keys=False))


def _run(words: list[str], start: Path) -> tuple[int, str]:
    """Exit code and first error line of the command."""
    with tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True) as scratch:
        try:
            done = run_code(COMMAND, words=words, environment=child_environment(Path(scratch)), folder=start)
        finally:
            undo_notes(Path(scratch))
    number = -done.returncode if done.returncode < 0 else signal.SIGKILL
    if done.returncode < 0 or (done.returncode == 0 and done.stdout.split()[-1:] != ["0"]):
        what = f"its process was ended by {signal.Signals(number).name}"
        return 128 + number, f"{what}: is there enough memory for so many at once?"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith(ERROR)), lines[-1] if lines else "")
    return done.returncode, said.removeprefix(ERROR) if done.returncode else ""
