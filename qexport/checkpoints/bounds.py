"""What a pickle may make a machine do: bounds on the steps and keys of what is read from one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MAX_STEPS = 2_000_000
"""Operations of a pickle, and values that they copy: a small YOLO has 100,000, a large one in training 500,000."""
MAX_STRANGE_KEYS = 2_000
"""Of one pickle: whose hash the file can choose, so that each may be compared with all others."""
MAX_NAME = 200
"""Characters of the name of a class."""
MAX_SHOWN = 60
"""Characters of a name in a message, and half of those that a place may have before its middle is left out."""
SMALL = 2**31
"""Numbers below have hashes of their own."""


class Allowance:
    """Counts down, and refuses what goes below 0.

    Attributes:
        left: how much there may be yet.
        what: is counted, for the message.
    """

    def __init__(self, most: int, what: str, error: type[Exception]) -> None:
        self.left, self.most, self.what, self.error = most, most, what, error

    def take(self, count: int) -> None:
        """Count so many.

        Raises:
            Exception: of the kind that was given: they are too many.
        """
        self.left -= count
        if self.left < 0:
            raise self.error(f"it has more than {self.most:,} {self.what}")


def strange_keys(keys: Iterable[Any]) -> int:
    """How many keys are neither texts, whose hashes nobody can foresee, nor small numbers."""
    return sum(type(key) is not str and not (type(key) is int and -SMALL < key < SMALL) for key in keys)


def inside(place: str, key: Any) -> str:
    """The place of what a container holds under a key, of a bounded length."""
    shown = key if type(key) is str else str(key) if strange_keys([key]) == 0 else type(key).__name__
    longer = f"{place}.{shortened(shown)}"
    return longer if len(longer) <= 8 * MAX_SHOWN else f"{longer[: 2 * MAX_SHOWN]} … {longer[-2 * MAX_SHOWN :]}"


def shortened(name: str) -> str:
    """A name as it is shown."""
    return name if len(name) <= MAX_SHOWN else f"{name[:MAX_SHOWN]}…"
