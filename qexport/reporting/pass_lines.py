"""What became of passes over the weights, in one line for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qexport.optimisation.pass_record import NO_INTEGERS, NOT_RUN, PassRecord
from qexport.vocabulary import listed


def pass_lines(records: Sequence[PassRecord]) -> Iterator[str]:
    """Yield a line for each pass: kept or not, and why, which has its figures.

    Passes that were not run for one reason share a line; those of a file of floats have none.
    """
    told: dict[str, list[str]] = {}
    for record in records:
        reason = record.reason.removeprefix(f"{record.outcome}: ")
        said = f"{record.outcome}{': ' if reason else ''}{reason}"
        if record.outcome != NOT_RUN:
            yield f"{record.name} {said}"
        elif reason != NO_INTEGERS:
            told.setdefault(said, []).append(record.name)
    for said, names in told.items():
        yield f"{listed(names)} {said}"
