"""What came of a search for the fastest plan, and what every plan gave, in a line each."""

from __future__ import annotations

from collections.abc import Iterator

from qexport.optimisation.tune_record import TuneRecord


def tuning_lines(name: str, record: TuneRecord | None) -> Iterator[str]:
    """Lines of a file; none where nothing was searched for.

    Args:
        name: of the file.
    """
    if record is None:
        return
    yield f"tuned: {name}: {record.reason}{', on a restless machine' if record.restless else ''}"
    timed = [f"{each.name} {each.speedup:.2f}×" for each in record.curve if each.speedup is not None]
    others = [f"{each.name} ({each.outcome})" for each in record.curve[1:] if each.speedup is None]
    if timed or others:
        yield f"tried for {name}: {', '.join((*timed, *others))}"
