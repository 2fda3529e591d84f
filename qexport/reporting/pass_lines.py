"""What became of passes over the weights, in one line for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qexport.optimisation.pass_record import PassRecord


def pass_lines(records: Sequence[PassRecord]) -> Iterator[str]:
    """Yield a line for each pass: kept or not, and why, which has its figures."""
    for record in records:
        reason = record.reason.removeprefix(f"{record.outcome}: ")
        yield f"{record.name} {record.outcome}{': ' if reason else ''}{reason}"
