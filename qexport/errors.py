"""The errors that end a run, each one line: what, where, and what to do about it.

QexportError            exit 1   something failed that has no class of its own
├── UsageError          exit 2   the command line or the config file
│   └── UnavailableError exit 2   … which asks for what its format does not have
├── InputError          exit 3   a model, data set, image or folder that cannot be used
│   └── NoRoomError     exit 3   … because its disk is full, or must not be written
├── MissingExtraError   exit 4   a package that this format needs is not installed
│   └── PluginError     exit 4   … or is broken, or two packages claim one name
├── ConversionError     exit 5   a format could not be written
├── VerificationError   exit 6   an artifact does not do what its plan says
├── MeasurementError    exit 7   all is written, but a figure could not be measured: the report says which, and why
├── EngineNotBuiltError exit 8   the graph is written, the engine for it could not be built here
├── OtherProcessError   exit 1   another process of a training that several share has failed, or has ended
└── GateError           exit 9   all is written, but a figure breaks a rule of the gate or is worse than the baseline's,
                               or, with --strict, outputs are far from FP32's
"""

from __future__ import annotations

import re


class QexportError(Exception):
    """Base of all errors that the command line shows as one line.

    Args:
        what: what is wrong, naming the thing.
        remedy: what the user can do, as a sentence without a full stop.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}: {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy


class UsageError(QexportError):
    """The command line or the config file asks for something impossible."""

    exit_code = 2


class UnavailableError(UsageError):
    """A format does not have what is asked for, whatever else is."""


class InputError(QexportError):
    """A given file or folder cannot be used."""

    exit_code = 3


class NoRoomError(InputError):
    """A folder has no room for what is to be written."""


class MissingExtraError(QexportError):
    """A package that a requested format needs is not installed."""

    exit_code = 4


class PluginError(MissingExtraError):
    """A package that registers a plug-in is broken, or two of them claim one name."""


class ConversionError(QexportError):
    """The runtime's converter refused the graph."""

    exit_code = 5


class VerificationError(QexportError):
    """The written artifact differs from its plan or from the simulated program."""

    exit_code = 6


class MeasurementError(QexportError):
    """Artifacts are written and verified, but something about them could not be measured."""

    exit_code = 7


class EngineNotBuiltError(QexportError):
    """The graph for an engine is written, but the engine could not be built on this machine."""

    exit_code = 8


class OtherProcessError(QexportError):
    """Another process of a training that several share has failed, or has ended."""


class GateError(QexportError):
    """A measured figure breaks a rule that was set for it, or is worse than the baseline's; everything is written.

    With --strict an artifact whose outputs are far from FP32's is such a figure.
    """

    exit_code = 9


OUT_OF_MEMORY = ("out of memory", "use a smaller --imgsz or --batch")
"""What, and what to do about it."""
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|bad.alloc|Failed to allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, or what torch and the runtimes say of it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def first_line(error: BaseException) -> str:
    """The first line of what an error says, the name of its class where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def named_reason(error: BaseException, most: int) -> str:
    """An error that was not foreseen in one line: its class, and at most so many characters of what it says first."""
    first = next(iter(str(error).splitlines()), "")[:most]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
