"""Two processes of one command line with what `torchrun` sets, forked from one that has loaded everything.

`python two_processes.py FOLDER WORD…` runs `qexport WORD… --out FOLDER/out`, where the second process is killed in the
middle of the second epoch, then the same with `--resume`. Writes the exit codes as JSON; what each process says is in
FOLDER/killed.0.txt and so on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from qexport.cli.app import main
from qexport.compat.quiet import quiet_libraries
from qexport.system.launch import TORCHRUN

WORLD = 2
KILLED_AT = 25
"""Sums over both processes: two in each of the 8 steps of an epoch."""


def started(rank: int, port: int, words: list[str], folder: Path, name: str, killed: bool) -> int:
    """Fork one process; return its number."""
    if process := os.fork():
        return process
    said = os.open(folder / f"{name}.{rank}.txt", os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(said, stream)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_PORT": port}
    os.environ.update(
        {key: str(value) for key, value in place.items()}, **{TORCHRUN: "test", "MASTER_ADDR": "127.0.0.1"}
    )
    if killed:
        kill_at(KILLED_AT)
    code = main([*words, "--out", str(folder / "out")])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def kill_at(count: int) -> None:
    """Let this process die when it is going to add up something for so manieth time."""
    calls, summed = [0], distributed.all_reduce

    def counted(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return summed(*arguments)

    vars(distributed)["all_reduce"] = counted


def run(name: str, words: list[str], folder: Path, killed: int | None) -> list[int]:
    """Exit codes of both, negative ones for signals."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [started(rank, port, words, folder, name, rank == killed) for rank in range(WORLD)]
    return [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in ranks]


if __name__ == "__main__":
    quiet_libraries()
    import qexport.training_run  # noqa: F401

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # threads do not outlive a fork
    place, command = Path(sys.argv[1]), sys.argv[2:]
    codes = [run("killed", command, place, 1), run("resumed", [*command, "--resume"], place, None)]
    sys.stdout.write(json.dumps(codes))
