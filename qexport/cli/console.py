"""The console: standard error of libraries, and how a run that failed is told of."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qexport.cli.completion import WORDS
from qexport.cli.output import say
from qexport.errors import OUT_OF_MEMORY, InputError, QexportError, UsageError, is_out_of_memory, named_reason
from qexport.plugins import BACKENDS, names
from qexport.system.files import out_of_room
from qexport.system.launch import launched
from qexport.system.scratch import scratch_folder
from qexport.system.temporary import temporary_files
from qexport.vocabulary import FORMAT_ALIASES, canonical, closest

SETTINGS = {"help_option_names": ["-h", "--help"]}
MAX_SECONDS = 1e7
"""Of a time limit: more than a hundred days."""


def option(text: str, *names: str, **settings: Any) -> Any:
    """An option of a verb with its help, which says what the default is."""
    settings.setdefault("autocompletion", WORDS.get(names[0]))
    return typer.Option(*names, help=text, show_default=False, **settings)


def _seconds(value: float | None) -> float | None:
    """A time limit as it was given.

    Raises:
        UsageError: it is none, or the system has none.
    """
    if value is not None and not 0 < value <= MAX_SECONDS:
        raise UsageError(f"--timeout cannot be {value:g}", f"give seconds above 0, {MAX_SECONDS:.0f} at most")
    if value is not None and not hasattr(signal, "setitimer"):
        raise UsageError("--timeout is not to be had on this system", "leave it out")
    return value


Timeout = Annotated[
    float | None,
    option("End the run after so many seconds: code 124.", "--timeout", metavar="SEC", callback=_seconds),
]


@contextmanager
def captured_stderr() -> Iterator[tuple[Console, Path]]:
    """Send what libraries write to stderr to a file for the time of the block, warnings of compiled code included.

    Yields:
        A console on the real stderr, and the file.
    """
    sys.stderr.flush()
    real = os.dup(2)
    with scratch_folder() as folder:
        log = folder / "stderr.log"
        with open(real, "w", encoding="utf-8") as terminal, log.open("wb") as sink:
            os.dup2(sink.fileno(), 2)
            try:
                yield Console(file=terminal), log
            finally:
                sys.stderr.flush()
                os.dup2(real, 2)


@contextmanager
def library_output(folder: Path = Path()) -> Iterator[Console]:
    """Keep what libraries write to stderr for the report of a fault, and from the terminal otherwise.

    Args:
        folder: for temporary files where the usual one cannot be written.
    """
    with temporary_files(folder), captured_stderr() as (terminal, log):
        try:
            yield terminal
        except InputError:
            raise
        except Exception as error:
            if full := out_of_room(error):
                raise full from error
            if isinstance(error, QexportError):
                raise
            if is_out_of_memory(error):
                raise InputError(*OUT_OF_MEMORY) from error
            # a fault of ours: shown as one line, with the libraries' output kept
            raise UnexpectedError(error, log.read_text(encoding="utf-8", errors="replace")) from error


class UnexpectedError(Exception):
    """A fault of ours, with what libraries had to say before it."""

    def __init__(self, error: Exception, output: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.output = output


def fail(line: str, code: int) -> int:
    """Print one line on stderr, wrapped between words on a terminal, behind what is on stdout; return the code.

    What is wrong with a command line that several processes have is printed by the first one.
    """
    if code == UsageError.exit_code and not launched(os.environ).first:
        return code
    with suppress(OSError):  # nobody reads it: this line is for stderr
        sys.stdout.flush()
    say(f"qexport: error: {line}", sys.stderr, wrapped=True)
    return code


def misused(error: typer.TyperException) -> str:
    """What an option parser says, and where to look if it does not say what would be right."""
    said = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "qexport"
    missing = getattr(getattr(error, "param", None), "metavar", None)
    if missing and said.startswith("Missing argument"):
        said = f"Missing argument {missing}"
    if meant := _meant_as_formats(said, context):
        return f"{said}: {meant}"
    wrong, known = getattr(error, "option_name", "") or "", getattr(error, "possibilities", None)
    if not known:
        return ": ".join(filter(None, (said, f"see {command} --help")))
    near = closest(wrong.lstrip("-"), [name.lstrip("-") for name in known])
    hint = f"did you mean --{near}" if near else f"see {command} --help"
    return f"{said.partition(' (Possible')[0]}: {hint}"


def _meant_as_formats(said: str, context: Any) -> str:
    """What to do about words behind the value of --format that are formats as well; "" for other words."""
    extra = re.search(r"unexpected extra arguments?(?:\(s\))? \((.+)\)", said)
    words = getattr(context, "obj", None) or []
    place = next((place for place, word in enumerate(words[:-1]) if word in ("--format", "-f")), None)
    if not extra or place is None:
        return ""
    more = extra[1].replace(",", " ").split()
    if not all(canonical(each, FORMAT_ALIASES) in names(BACKENDS) for each in more):
        return ""
    return f"give --format {','.join([words[place + 1].strip(','), *more])}"


def tell(line: str) -> None:
    """Print one line on stderr that says what is going to happen, wrapped between words on a terminal."""
    say(f"→ {line}", sys.stderr, wrapped=True)


def unexpected(error: Exception, output: str) -> int:
    """A fault of ours: keep the traceback and the libraries' output in a file, show one line.

    Where the working directory is gone, it is that: everything that makes a path absolute fails.
    """
    try:
        os.getcwd()
    except OSError as gone:
        return fail(f"the working directory cannot be used ({gone.strerror}): change to another", InputError.exit_code)
    return fail(f"unexpected {named_reason(error, 200)} ({_kept(error, output)})", 1)


def _kept(error: Exception, output: str) -> str:
    """Write what a report of a fault needs, in the working folder if there is no other; say where it is."""
    for folder in (None, "."):
        with suppress(OSError):
            number, name = tempfile.mkstemp(prefix="qexport-", suffix=".log", dir=folder)
            with open(number, "w", encoding="utf-8") as log:
                traceback.print_exception(error, file=log)
                log.write(output)
            return f"report it with {name}"
    return "no log of it: no folder for temporary files can be written"
