"""What this machine has that makes inference fast: features of its CPU, cores and memory that may be used, GPUs.

Nothing heavy is imported: what the kernel writes is read, and the driver's own program is asked for GPUs.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qexport.system.guard import run_tied
from qexport.system.machine import CPUINFO, cores, cpu_flags

FEATURES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "x86": {
        "AVX2": ("avx2",),
        "AVX512": ("avx512f",),
        "AVX512-VNNI": ("avx512_vnni",),
        "AVX-VNNI": ("avx_vnni",),
        "AMX-INT8": ("amx_int8",),
        "BF16": ("avx512_bf16", "amx_bf16"),
        "FP16": ("avx512_fp16",),
    },
    "arm": {
        "NEON": ("asimd", "neon"),
        "dotprod": ("asimddp",),
        "i8mm": ("i8mm",),
        "BF16": ("bf16",),
        "FP16": ("asimdhp",),
        "SVE": ("sve",),
    },
}
"""Family of CPUs → feature → Linux's names of it, of which one suffices (arch/*/kernel of Linux)."""
ARM_MACHINES = ("aarch64", "arm64", "armv7l", "armv8l")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
BOARD = Path("/proc/device-tree/model")
ASK_GPUS = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
MAX_SECONDS = 10
"""For the driver's program, which hangs where the driver does."""
MIB = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """A GPU of NVIDIA's, its memory in bytes, and the version of its driver."""

    name: str
    memory: int
    driver: str


@dataclass(frozen=True)
class Capabilities:
    """What runtimes can use here.

    Attributes:
        architecture: as the system calls it.
        board: of a single-board computer, "" for others.
        features: of the CPU → whether it has them; None where nobody says.
        cores: that this process may use.
        quota: CPU seconds that its control group may use in a second; None for as many as it likes.
        memory: bytes that it may use; None where nobody says.
        gpus: that the driver lists.
        gpu_note: why there are none, or none that can be asked.
    """

    architecture: str
    board: str
    features: Mapping[str, bool] | None
    cores: int
    quota: float | None
    memory: int | None
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str = ""


def capabilities() -> Capabilities:
    """Those of this machine."""
    quota, limit = control_group_limits()
    present = _physical_memory()
    known = [each for each in (present, limit) if each is not None]
    gpus, note = _gpus()
    return Capabilities(
        architecture=platform.machine(),
        board=_board(),
        features=cpu_features(),
        cores=cores(),
        quota=quota,
        memory=min(known, default=None),
        gpus=gpus,
        gpu_note=note,
    )


def cpu_features(cpuinfo: Path = CPUINFO, machine: str = "") -> dict[str, bool] | None:
    """Features that matter to integer and half-precision kernels → whether the CPU has them; None: nobody says."""
    flags = cpu_flags(cpuinfo)
    if flags is None:
        return None
    family = "arm" if (machine or platform.machine()).lower() in ARM_MACHINES else "x86"
    return {name: bool(flags.intersection(names)) for name, names in FEATURES[family].items()}


def control_group_limits(own: Path = OWN_CGROUP, root: Path = CGROUPS) -> tuple[float | None, int | None]:
    """CPU seconds in a second, and bytes of memory, that containers limit a process to; None for no limit.

    The least of the process's own group and of those above it counts (Linux, control groups version 2; of version 1,
    the group that is mounted at the top: a container's own).
    """
    quotas, limits = [_old_quota(root)], [_number(root / "memory" / "memory.limit_in_bytes")]
    path = next((line[3:] for line in _text(own).splitlines() if line.startswith("0::")), "/").strip("/")
    group = root / path
    for folder in (group, *(each for each in group.parents if each == root or root in each.parents)):
        allowed, _, period = _text(folder / "cpu.max").partition(" ")
        if allowed.isdigit() and period.strip().isdigit():
            quotas.append(int(allowed) / int(period))
        limits.append(_number(folder / "memory.max"))
    present = _physical_memory() or 0
    bounds = [each for each in limits if each is not None and (not present or each < present)]
    return min((each for each in quotas if each is not None), default=None), min(bounds, default=None)


def _old_quota(root: Path) -> float | None:
    allowed, period = (_number(root / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return allowed / period if allowed and period else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _board() -> str:
    return _text(BOARD).strip("\0\n ")


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """GPUs that NVIDIA's driver lists, and why there are none."""
    asked = shutil.which("nvidia-smi")
    if asked is None:
        return (), "libcuda is here, but no nvidia-smi to ask" if _has_libcuda() else "no NVIDIA driver found"
    try:
        done = run_tied([asked, *ASK_GPUS], MAX_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return (), "nvidia-smi does not answer"
    if done.returncode:
        said = " ".join((done.stdout.strip() or done.stderr.strip()).split())[:160]
        return (), f"nvidia-smi fails: {said or f'exit code {done.returncode}'}"
    found = tuple(gpu for line in done.stdout.splitlines() if (gpu := gpu_of(line)))
    return found, "" if found else "nvidia-smi lists no GPU"


def gpu_of(line: str) -> Gpu | None:
    """A line of nvidia-smi's table; None for what is none. Jetsons have no memory of their own: `[N/A]`, 0 here."""
    name, _, rest = line.rpartition(", ")[0].rpartition(", ")
    driver = line.rpartition(", ")[2].strip()
    return Gpu(name.strip(), int(rest) * MIB if rest.strip().isdigit() else 0, driver) if name else None


def _has_libcuda() -> bool:
    with suppress(OSError):
        ctypes.CDLL("libcuda.so.1")
        return True
    return False
