"""This machine: the kind of its CPU as far as profiles depend on it, its cores, its processor's name, its packages."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
    return VNNI if (cpu_flags(cpuinfo) or frozenset()) & VNNI_FLAGS else AVX2


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str] | None:
    """What Linux calls the features of the first core, x86 or ARM; None where nobody says."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return next(map(frozenset, found), None)


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


DEFAULT_THREADS = 2
"""CPU threads that artifacts are run with, where there are as many cores."""
PACKAGES = ("torch", "ultralytics", "numpy")
"""What every run needs."""

BESIDE = (
    *("torchvision", "torchao", "opencv-python", "opencv-python-headless", "pillow", "pi-heif", "scipy"),
    *("onnxscript", "onnx-ir", "litert-converter", "tensorflow"),
)
"""What pixels, figures and files depend on, too: the last are converters, and TFLite's second opinion."""
VARIABLES = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_", "TORCH_", "PYTORCH_"),
    *("TF_", "XNNPACK_", "ORT_", "OV_", "OPENVINO_", "CUDA_", "OPENCV_"),
)
"""How the names of environment variables begin by which libraries choose kernels and threads."""


@dataclass(frozen=True)
class Environment:
    """A machine, and the packages that figures were measured with.

    Attributes:
        cpu_kind: see `cpu_kind`.
        cores: None where the system does not say.
        packages: name → version, of those that are installed.
    """

    python: str = ""
    system: str = ""
    processor: str = ""
    cpu_kind: str = ""
    cores: int | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


def environment(packages: Iterable[str] = ()) -> Environment:
    """This machine.

    Args:
        packages: those of the formats, see `qexport.backends.registry.reported_packages`.
    """
    return Environment(
        python=platform.python_version(),
        system=platform.platform(),
        processor=processor_name(),
        cpu_kind=cpu_kind(),
        cores=os.cpu_count(),
        packages={name: found for name in (*PACKAGES, *packages) if (found := version_of(name))},
    )


def conditions(packages: Iterable[str] = (), places: Iterable[Path] = ()) -> dict[str, Any]:
    """What bytes and figures depend on that are made here, whatever they are made from, as JSON's types.

    This package counts by its code, so that it may be changed where it lies; others by their versions.

    Args:
        packages: those of the formats, see `qexport.backends.registry.reported_packages`.
        places: folders and modules of other packages that count by their code, too.
    """
    machine = environment((*BESIDE, *packages))
    return {
        "code": [_code(each) for each in (Path(__file__).resolve().parents[1], *places)],
        "packages": dict(machine.packages),
        "machine": [machine.python, machine.system, machine.processor, machine.cpu_kind, cores()],
        "flags": sorted(cpu_flags() or ()),  # virtual machines of one name have others
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
    }


def _code(place: Path) -> str:
    """SHA-256 over a module, or those of a package."""
    total = hashlib.sha256()
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        content = path.read_bytes()
        total.update(f"{path.relative_to(place).as_posix()} {len(content)} ".encode() + content)
    return total.hexdigest()


def version_of(package: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def default_threads() -> int:
    """CPU threads that artifacts are run with where nobody says how many: no more than this process has cores."""
    return min(DEFAULT_THREADS, cores())


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
