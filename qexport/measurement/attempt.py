"""What can be measured is measured: a step that fails leaves its reason, and the run goes on."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qexport.errors import OUT_OF_MEMORY, MeasurementError, QexportError, is_out_of_memory, named_reason
from qexport.system.files import out_of_room

VERBS = {"accuracy": "scored", "latency": "measured", "outputs": "compared", "report.json": "written"}
MAX_REASON = 200
"""Characters of the first line of an error that was not foreseen."""


@dataclass(frozen=True)
class Unmeasured:
    """What could not be measured or rendered, and why.

    Attributes:
        artifact: file name of the artifact that it is of; "" for the run as a whole.
        what: what is missing, such as "accuracy".
        reason: one line.
        exit_code: what the run ends with.
        details: traceback of an error that was not foreseen; "" otherwise.
    """

    artifact: str
    what: str
    reason: str
    exit_code: int
    details: str = ""

    @property
    def text(self) -> str:
        """What is missing and why, in one line."""
        return f"{self.what} could not be {VERBS.get(self.what, 'made')}: {self.reason}"


@contextmanager
def attempt(missing: list[Unmeasured], what: str, *artifacts: Path) -> Iterator[None]:
    """Do the block; where it raises, say of each artifact (of the run, without any) what is missing, and go on.

    An interrupt is no failure of a step: it ends the run.
    """
    try:
        yield
    except Exception as error:  # runtimes, Ultralytics and codecs raise anything
        reason, code, details = _told(error)
        missing += [Unmeasured(path.name, what, reason, code, details) for path in artifacts]
        if not artifacts:
            missing.append(Unmeasured("", what, reason, code, details))


def _told(error: Exception) -> tuple[str, int, str]:
    """Reason, exit code and traceback of an error."""
    if isinstance(error, QexportError):
        return str(error), error.exit_code, ""
    if full := out_of_room(error):
        return str(full), MeasurementError.exit_code, ""
    if is_out_of_memory(error):
        return ": ".join(OUT_OF_MEMORY), MeasurementError.exit_code, ""
    return named_reason(error, MAX_REASON), MeasurementError.exit_code, "".join(traceback.format_exception(error))
