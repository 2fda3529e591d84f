"""Which kind of CPU a machine has, from the text that Linux gives about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qexport.system.machine import ARM, AVX2, CPUINFO, KINDS, VNNI, cpu_kind

COMMON = "fpu sse4_2 avx avx2 fma"


def cpuinfo(folder: Path, flags: str) -> Path:
    """What the kernel writes about a machine with two cores, shortened."""
    core = (
        f"processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: some avx512_vnni name\n{flags}bugs\t\t: amx_int8\n\n"
    )
    path = folder / "cpuinfo"
    path.write_text(core + core.replace(": 0", ": 1"), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ("avx512_vnni", VNNI),
        ("avx_vnni", VNNI),
        ("amx_int8", VNNI),
        ("avx512f avx512_vnni amx_tile", VNNI),
        ("", AVX2),
        ("avx512f avx512bw avx512vl", AVX2),  # wider, but the sums still have 16 bits
        ("avx512_vnni_not", AVX2),
    ],
)
def test_the_flags_decide(tmp_path: Path, extra: str, kind: str) -> None:
    text = cpuinfo(tmp_path, f"flags\t\t: {COMMON} {extra}\n")
    for machine in ("x86_64", "AMD64", "i686"):
        assert cpu_kind(text, machine) == kind


def test_a_machine_that_cannot_be_asked_is_treated_carefully(tmp_path: Path) -> None:
    assert cpu_kind(tmp_path / "missing", "AMD64") == AVX2
    assert cpu_kind(tmp_path, "x86_64") == AVX2  # a folder
    assert cpu_kind(cpuinfo(tmp_path, ""), "x86_64") == AVX2  # the names of CPUs and bugs are no flags


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "ARM64"])
def test_arm_is_known_by_the_machines_name(tmp_path: Path, machine: str) -> None:
    assert cpu_kind(cpuinfo(tmp_path, f"flags\t\t: {COMMON} avx512_vnni\n"), machine) == ARM
    assert cpu_kind(tmp_path / "missing", machine) == ARM


@pytest.mark.skipif(not CPUINFO.exists(), reason="needs Linux")
def test_this_machine_is_of_a_known_kind() -> None:
    assert cpu_kind() in KINDS
    words = CPUINFO.read_text(encoding="utf-8").split()
    assert (cpu_kind() == VNNI) == bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(words))
