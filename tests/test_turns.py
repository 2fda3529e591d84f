"""Runs side by side: while one measures, no other works."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from qexport.clock import Clock
from qexport.data.selection import RunImages
from qexport.measurement.measure import measure
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.sweeps.turns import Turns

pytest.importorskip("fcntl", reason="this system has no flock")


def test_who_measures_is_alone_and_all_come_to_their_end(tmp_path: Path) -> None:
    """Three runs of three pieces of work and two measurements each; locks are of open files, as between processes."""
    working, measuring, seen = set[int](), set[int](), list[tuple[str, int, int]]()
    guard, start = threading.Lock(), threading.Barrier(3)

    def note(kind: str) -> None:
        with guard:
            seen.append((kind, len(working), len(measuring)))

    def run(number: int) -> None:
        turns = Turns(tmp_path)
        start.wait()
        with turns.working():
            for piece in range(3):
                working.add(number)
                note("work")
                threading.Event().wait(0.005 * (number + 1))
                working.discard(number)
                if piece < 2:
                    with turns.alone(Silent()):
                        measuring.add(number)
                        note("measure")
                        threading.Event().wait(0.005)
                        note("measure")
                        measuring.discard(number)

    with ThreadPoolExecutor(3) as pool:
        for each in [pool.submit(run, number) for number in range(3)]:
            each.result(timeout=30)
    assert [each for each in seen if each[0] == "measure"] == [("measure", 0, 1)] * 12
    assert {measured for kind, _, measured in seen if kind == "work"} == {0}
    assert max(at_work for _, at_work, _ in seen) > 1


def test_nobody_begins_while_one_waits_to_measure(tmp_path: Path) -> None:
    """Else new runs would keep it from its turn for ever."""
    first, second, third = Turns(tmp_path), Turns(tmp_path), Turns(tmp_path)
    order: list[str] = []
    waits, ended = threading.Event(), threading.Event()

    class Told(Silent):
        def step(self, title: str, total: int | None = None):  # type: ignore[no-untyped-def]
            waits.set()
            return super().step(title, total)

    def measure() -> None:
        with first.working(), first.alone(Told()):
            order.append("measured")

    def begin() -> None:
        with third.working():
            order.append("began")

    with ThreadPoolExecutor(2) as pool:
        with second.working():
            measuring = pool.submit(measure)
            assert waits.wait(30)
            ended.wait(0.1)
            beginning = pool.submit(begin)
            ended.wait(0.1)
            assert order == []
        for each in (measuring, beginning):
            each.result(timeout=30)
    assert order == ["measured", "began"]


def test_a_lock_that_cannot_be_had_ends_the_run_and_leaves_the_others_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network drive without room for locks, while the run has the door: it must not wait for itself."""
    import fcntl

    lock, asked, told = fcntl.flock, list[int](), threading.Event()

    def refuses_the_second(descriptor: int, how: int) -> None:
        asked.append(how)
        if asked == [fcntl.LOCK_EX, fcntl.LOCK_EX]:
            raise OSError(errno.ENOLCK, "No locks available")
        lock(descriptor, how)

    def run() -> None:
        turns = Turns(tmp_path)
        with turns.working():
            monkeypatch.setattr(fcntl, "flock", refuses_the_second)
            with pytest.raises(OSError, match="No locks"), turns.alone(Silent()):
                raise AssertionError
        told.set()

    threading.Thread(target=run, daemon=True).start()
    assert told.wait(5)
    with Turns(tmp_path).working():
        pass


def test_folders_that_cannot_be_written_have_no_turns(tmp_path: Path) -> None:
    assert Turns(tmp_path).can_be_taken()
    assert not Turns(tmp_path / "missing").can_be_taken()


def test_latency_is_what_a_run_is_alone_for(tiny: Program) -> None:
    entered: list[str] = []

    @contextmanager
    def alone() -> Iterator[None]:
        entered.append("alone")
        yield

    for latency in (False, True):
        measure(tiny, "", RunImages(), (), threads=1, accuracy=False, latency=latency, clock=Clock(Silent(), alone))
        assert entered == ["alone"] * latency
