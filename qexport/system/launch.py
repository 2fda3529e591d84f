"""Which process of several this is that `torchrun` has started with one command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Environment variable that `torchrun` alone sets; others than it set RANK and WORLD_SIZE, too."""


@dataclass(frozen=True)
class Launch:
    """A process among those of one command, in the terms of `torch.distributed`.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        local: its number among those on this machine, from 0.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether it is the one that prints and writes."""
        return self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        """Which of how many parts of an epoch's images it has."""
        return self.rank, self.world

    def share(self, batch: int) -> int:
        """How many images of a step each process takes: the same for each."""
        return batch // self.world

    def device(self, wanted: str) -> str:
        """The device of PyTorch that it computes on: of GPUs its own, where there are several processes."""
        return f"{wanted}:{self.local}" if wanted == "cuda" and self.world > 1 else wanted


ALONE = Launch()


def launched(environment: Mapping[str, str]) -> Launch:
    """What `torchrun` says of this process; alone where something else has started it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    return Launch(*(int(environment[name]) for name in names)) if {TORCHRUN, *names} <= environment.keys() else ALONE
