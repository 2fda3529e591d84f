"""What other processes do to this machine while something is timed."""

from __future__ import annotations

import os
from pathlib import Path

STAT = Path("/proc/stat")
BUSY = (0, 1, 2, 5, 6, 7)
"""Columns of `cpu`: user, nice, system, irq, softirq, steal; not idle and iowait, and guests are users (proc(5))."""


def seconds_of_others(stat: Path = STAT) -> float | None:
    """CPU seconds since the machine started that neither this process has had nor children that have ended.

    None where the system does not say.
    """
    try:
        words = stat.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
        busy = sum(int(words[column]) for column in BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
    return busy - sum(os.times()[:4])
