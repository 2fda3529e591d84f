"""What integer instructions this machine's CPU has, as far as profiles depend on it."""

from __future__ import annotations

import platform
from pathlib import Path

ANY, VNNI, AVX2, ARM = "any", "vnni", "avx2", "arm"
KINDS = (VNNI, AVX2, ARM)
VNNI_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
CPUINFO = Path("/proc/cpuinfo")


def cpu_kind(cpuinfo: Path = CPUINFO, machine: str = "") -> str:
    """Return "vnni", "avx2" or "arm"; x86 CPUs that cannot be asked count as "avx2", the careful choice.

    Without VNNI, x86 kernels add pairs of 8-bit products in 16 bits and saturate there.
    """
    if (machine or platform.machine()).lower() in ("aarch64", "arm64"):
        return ARM
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return AVX2
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    return VNNI if flags & VNNI_FLAGS else AVX2


def kind_for(choice: str, name: str) -> str:
    """The kind of CPU that a format is planned for.

    Args:
        choice: "auto" (this machine's), a kind, or kinds of single formats: "onnx=arm,openvino=vnni"; what stands
            without a name there is for all others, this machine's where nothing does.
        name: of the format.
    """
    kinds = choices(choice)
    kind = kinds.get(name, kinds.get("", "auto"))
    return cpu_kind() if kind == "auto" else kind


def choices(text: str) -> dict[str, str]:
    """Format → kind of CPU, "" for all that are not named."""
    parts = (part.rpartition("=") for part in text.split(","))
    return {name.strip(): kind.strip() for name, _, kind in parts}
