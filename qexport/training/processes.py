"""Several processes that train together, by `torch.distributed`: what each has, and what they have in common.

Gradients are summed as by `DistributedDataParallel` (Li et al., "PyTorch Distributed: Experiences on Accelerating Data
Parallel Training", 2020), but behind the whole step and in one piece: steps are long beside what is sent.

All functions but `joined` are for a block of that, in the same order in every process; alone they cost nothing. What a
process has to say to others is pickled, as `torch.distributed` does: whoever reaches its port can run code here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from qexport.errors import OtherProcessError, QexportError
from qexport.optimisation.candidate import Candidate, changed_parameters
from qexport.planning.plan import QuantPlan
from qexport.programs.program import Program
from qexport.system.launch import Launch
from qexport.training.state import Store, TrainingState

MAX_WAIT = timedelta(days=1)
"""For another process, such as the first one while it calibrates; one that has ended is known of at once."""
_Made = TypeVar("_Made")


@contextmanager
def joined(launch: Launch, device: str) -> Iterator[None]:
    """Connect the processes of a launch for the time of the block: by NCCL on GPUs, by Gloo otherwise.

    Where it ends by an error the connection ends with the process, so that the others are still there while it is told.

    Args:
        device: "cpu", or this process's own GPU.
    """
    if launch.world == 1:
        yield
        return
    nccl = device.startswith("cuda") and torch.cuda.is_available() and distributed.is_nccl_available()
    with _or_lost(launch):
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=MAX_WAIT, rank=launch.rank, world_size=launch.world
        )
    if nccl and launch.local < torch.cuda.device_count():  # one that is not here is refused where all can be told
        torch.cuda.set_device(device)
    yield
    distributed.destroy_process_group()


def mean(launch: Launch, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean over processes of each tensor, float32 on one device; the same bits in each of them."""
    if launch.world == 1:
        return list(tensors)
    joint = torch.cat([each.flatten() for each in tensors])
    with _or_lost(launch):
        distributed.all_reduce(joint)
    parts = (joint / launch.world).split([each.numel() for each in tensors])
    return [part.view_as(each) for part, each in zip(parts, tensors, strict=True)]


def anyone(launch: Launch, said: bool) -> bool:
    """Whether any process says so."""
    if launch.world == 1:
        return said
    together = torch.tensor(int(said))
    with _or_lost(launch):
        distributed.all_reduce(together, distributed.ReduceOp.MAX)
    return bool(together)


def from_first(launch: Launch, make: Callable[[], _Made]) -> _Made:
    """What the first process makes, in all of them; the others wait for it.

    Raises:
        QexportError: what `make` raises, there; `OtherProcessError` in the others.
    """
    if launch.world == 1:
        return make()
    held: list[Any] = [_first_error_raised(launch, make if launch.first else None)]
    with _or_lost(launch):
        distributed.broadcast_object_list(held, src=0)
    made: _Made = held[0]
    return made


def candidates_from_first(
    launch: Launch, reference: Program, make: Callable[[], Sequence[Candidate]]
) -> Sequence[Candidate]:
    """The same of candidates, whose reference each process has read for itself.

    Raises:
        QexportError: as `from_first`.
    """
    made: list[Candidate] = []

    def told() -> list[tuple[QuantPlan, dict[str, Tensor], bool]]:
        made.extend(make())
        return [(each.plan, changed_parameters(reference, each.program), each.densify) for each in made]

    found = from_first(launch, told)
    return made or [
        Candidate(reference.with_parameters(changed), plan, reference, densify) for plan, changed, densify in found
    ]


def everywhere(launch: Launch, make: Callable[[], _Made]) -> _Made:
    """What each process makes for itself, the first one before the others: it may fetch files that they need, too.

    Raises:
        QexportError: what `make` raises in the first process that it fails in, named in the first of all;
            `OtherProcessError` in the others.
    """
    if launch.world == 1:
        return make()
    made = _first_error_raised(launch, make if launch.first else None)
    others = _first_error_raised(launch, None if launch.first else make)
    own: _Made = made if launch.first else others
    return own


@dataclass(frozen=True)
class OfFirst:
    """A store that the first process has, and all of them go on from."""

    store: Store
    launch: Launch

    def save(self, state: TrainingState) -> None:
        """See `Store`; what cannot be kept ends the first process, and so the others."""
        if self.launch.first:
            self.store.save(state)

    def load(self) -> TrainingState | None:
        """See `Store`."""
        return from_first(self.launch, self.store.load)


def _first_error_raised(launch: Launch, make: Callable[[], Any] | None) -> Any:
    """What `make` gives where there is something to make; an error of one process ends all."""
    made, error = None, None
    try:
        made = make() if make else None
    except QexportError as failed:
        error = failed
    found: list[Any] = [None] * launch.world
    with _or_lost(launch):
        distributed.all_gather_object(found, error)
    rank = next((rank for rank, each in enumerate(found) if each is not None), None)
    if rank is None:
        return made
    if launch.first:
        raise error or type(found[rank])(f"in process {rank} of {launch.world}: {found[rank].what}", found[rank].remedy)
    with suppress(RuntimeError):  # until that process is gone: `torchrun` ends all when one has failed
        distributed.broadcast(torch.zeros(1), src=0)
    raise OtherProcessError(f"process {rank} of {launch.world} has failed")


@contextmanager
def _or_lost(launch: Launch) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of Gloo and NCCL: a connection is closed
        what = f"another of the {launch.world} processes has ended, or cannot be reached"
        raise OtherProcessError(what, "--resume goes on behind the last whole epoch") from error
