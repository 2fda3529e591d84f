"""`qexport doctor`: machines by what their kernels write, formats that are there or not, JSON, and what is shown."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_cli import imported_by

from qexport.backends import installed
from qexport.backends.info import Engine
from qexport.backends.installed import format_states
from qexport.cli import doctor
from qexport.cli.app import main
from qexport.cli.doctor_lines import print_diagnosis
from qexport.measurement import peaks as measuring
from qexport.measurement.peaks import Peaks, RuntimePeaks
from qexport.plugins import BACKENDS
from qexport.reporting.diagnosis import Diagnosis, Fit, to_json
from qexport.system import load, packages
from qexport.system.capabilities import Capabilities, Gpu, control_group_limits, cpu_features, gpu_of
from qexport.system.load import seconds_of_others
from qexport.system.machine import ARM, Environment, cpu_kind
from qexport.system.packages import Misfit, misfits, wanted_range
from qexport.testing import FakeBackend, registered
from qexport.testing.registered import entry_point

RASPBERRY_PI_5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""
GRAVITON_3 = "Features\t: fp asimd fphp asimdhp asimddp sve asimdfhm svei8mm svebf16 i8mm bf16 dgh rng\n"
XEON = "model name\t: Xeon\nflags\t\t: avx avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8\n"
OLD_INTEL = "flags\t\t: sse4_2 avx avx2 fma avx512fish\n"


class Elsewhere(FakeBackend):
    info = replace(FakeBackend.info, modules=("no_such_module",), install="no-such-package[extra]")


class Built(FakeBackend):
    info = replace(FakeBackend.info, engine=Engine(".plan", None, "plan_builder", "pip install plan-builder"))


@pytest.mark.parametrize(
    ("text", "machine", "there"),
    [
        (RASPBERRY_PI_5, "aarch64", {"NEON", "dotprod", "FP16"}),
        (GRAVITON_3, "aarch64", {"NEON", "dotprod", "i8mm", "BF16", "FP16", "SVE"}),
        (XEON, "x86_64", {"AVX2", "AVX512", "AVX512-VNNI", "AMX-INT8", "BF16"}),
        (OLD_INTEL, "AMD64", {"AVX2"}),
    ],
)
def test_features_by_what_linux_calls_them(text: str, machine: str, there: set[str], tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    found = cpu_features(path, machine)
    assert found is not None
    assert {name for name, has in found.items() if has} == there
    assert ("NEON" in found) == (cpu_kind(path, machine) == ARM)


def test_a_system_that_does_not_say_is_not_guessed_at(tmp_path: Path) -> None:
    assert cpu_features(tmp_path / "missing", "x86_64") is None
    (tmp_path / "bare").write_text("processor\t: 0\n")
    assert cpu_features(tmp_path / "bare", "aarch64") is None


def test_a_containers_limits_are_the_least_of_its_groups(tmp_path: Path) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    inner = root / "pod" / "container"
    inner.mkdir(parents=True)
    own.write_text("0::/pod/container\n")
    assert control_group_limits(own, root) == (None, None)
    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text("max\n")
    assert control_group_limits(own, root) == (None, None)
    (root / "pod" / "cpu.max").write_text("150000 100000\n")
    (inner / "memory.max").write_text("1000000\n")
    assert control_group_limits(own, root) == (1.5, 1_000_000)
    (inner / "cpu.max").write_text("50000 100000\n")
    assert control_group_limits(own, root) == (0.5, 1_000_000)


def test_limits_of_old_control_groups(tmp_path: Path) -> None:
    for name, text in (("cpu.cfs_quota_us", "200000"), ("cpu.cfs_period_us", "100000")):
        (tmp_path / "cpu").mkdir(exist_ok=True)
        (tmp_path / "cpu" / name).write_text(f"{text}\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # no limit
    assert control_group_limits(tmp_path / "none", tmp_path) == (2.0, None)
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert control_group_limits(tmp_path / "none", tmp_path) == (None, None)


@pytest.mark.parametrize(
    ("line", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3, 81559, 535.129.03", Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, "535.129.03")),
        ("Orin (nvgpu), [N/A], 540.4.0", Gpu("Orin (nvgpu)", 0, "540.4.0")),
        ("", None),
        ("No devices were found", None),
    ],
)
def test_a_line_of_the_drivers_table(line: str, gpu: Gpu | None) -> None:
    assert gpu_of(line) == gpu


def required(monkeypatch: pytest.MonkeyPatch, installed_: dict[str, str]) -> None:
    lines = ["torch>=2.9", "ultralytics<8.5,>=8.4.190", "onnx>=1.19; extra == 'onnx'", "ruff>=0.9; extra == 'dev'"]
    monkeypatch.setattr(packages, "requires", lambda _: lines)
    monkeypatch.setattr(packages, "version_of", installed_.get)


def test_versions_outside_the_range_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"torch": "2.13.0+cpu", "ultralytics": "8.4.200"}
    required(monkeypatch, {**good, "ruff": "0.1"})
    assert misfits() == ()  # onnx is an extra's, and ruff is for who works on qexport
    assert wanted_range("ultralytics") == ">=8.4.190,<8.5"
    required(monkeypatch, {"torch": "2.10.0", "ultralytics": "8.5.1", "onnx": "1.9.0"})
    assert misfits() == (
        Misfit("ultralytics", "8.5.1", "ultralytics>=8.4.190,<8.5"),
        Misfit("onnx", "1.9.0", "onnx>=1.19"),
    )
    required(monkeypatch, {"ultralytics": "8.4.190"})
    assert misfits() == (Misfit("torch", None, "torch>=2.9"),)


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(installed, "available_formats", lambda: names)


def test_a_format_names_what_it_lacks_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "fake")
    with registered(Elsewhere):
        (state,) = format_states()
    assert (state.format, state.title) == ("fake", "Fake")
    assert state.problem == "format fake needs no_such_module"
    assert state.remedy == "pip install 'no-such-package[extra]'"
    with registered(FakeBackend):
        (state,) = format_states()
    assert (state.problem, state.remedy, state.engine) == ("", "", None)
    assert state.packages.keys() == {"torchao"}
    assert state.precisions == ("fp16", "fp32", "int8", "int8-dynamic")


def test_a_broken_package_breaks_its_own_line_only(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "bad", "onnx")
    with entry_point(BACKENDS, "bad = no_such_module:Backend", "broken-things"):
        bad, good = format_states()
    assert "broken-things 0 cannot be loaded" in bad.problem
    assert bad.remedy == "repair or uninstall it"
    assert good.format == "onnx"


def test_what_builds_an_engine_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only(monkeypatch, "fake")
    with registered(Built):
        (state,) = format_states()
        assert state.engine is not None
        assert (state.engine.builder, state.engine.found) == ("plan_builder", False)
        assert (state.problem, state.engine.remedy) == ("", "pip install plan-builder")
        program = tmp_path / "plan_builder"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        (state,) = format_states()
    assert state.engine is not None
    assert (state.engine.found, state.engine.remedy) == (True, "")


def test_nothing_heavy_is_loaded_to_look(tmp_path: Path) -> None:
    code = "from qexport.cli.app import main\nassert main(['doctor', '--no-benchmark']) == 0"
    loaded = imported_by(code)
    assert "qexport.system.capabilities" in loaded
    heavy = {"torch", "ultralytics", "onnx", "onnxruntime", "openvino", "ai_edge_litert", "litert_torch", "tensorflow"}
    assert loaded.isdisjoint({*heavy, "matplotlib", "cv2", "jinja2"})


KEYS = {
    "": [
        "schema",
        "qexport",
        "able",
        "environment",
        "capabilities",
        "formats",
        "misfits",
        "torchvision",
        "peaks",
        "kept",
    ],
    "environment": ["python", "system", "processor", "cpu_kind", "cores", "packages"],
    "capabilities": ["architecture", "board", "features", "cores", "quota", "memory", "gpus", "gpu_note"],
}
"""What schema 1 has; one more key needs no other number, one less does."""


def test_json_is_one_object_with_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--no-benchmark", "--json"]) == 0
    output, errors = capsys.readouterr()
    found: dict[str, Any] = json.loads(output)
    assert (errors, found["schema"]) == ("", 1)
    for name, keys in KEYS.items():
        assert list(found[name] if name else found) == keys
    assert found["able"] == [each["format"] for each in found["formats"] if not each["problem"]]
    assert {"edgetpu", "onnx", "openvino", "tensorrt", "tflite"} <= {each["format"] for each in found["formats"]}
    assert (found["peaks"], found["torchvision"], found["kept"]) == (None, None, None)


def test_where_no_format_can_be_written_the_code_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "fake")
    with registered(Elsewhere):
        assert main(["doctor", "--no-benchmark"]) == 4
    output, errors = capsys.readouterr()
    assert "✗ fake" in output
    assert "pip install 'no-such-package[extra]'" in output
    assert "0 of 1 formats can be written here" in output
    assert errors == "qexport: error: no format can be written here: add what is missing\n"


def test_without_torch_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    required(monkeypatch, {"ultralytics": "8.4.190"})
    assert main(["doctor", "--no-benchmark"]) == 4
    output = capsys.readouterr().out
    assert "✗ torch" in output
    assert "pip install 'torch>=2.9'" in output


@pytest.mark.parametrize("threads", ["0", "-2", "x"])
def test_threads_that_cannot_be(threads: str) -> None:
    assert main(["doctor", "--threads", threads]) == 2


def test_a_runtime_that_fails_does_not_end_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = {
        "onnx": RuntimePeaks("onnx", failure="it was killed by SIGILL"),
        "tflite": RuntimePeaks("tflite", {"FP32": 1e10, "INT8": 3e10}),
    }
    monkeypatch.setattr(measuring, "measurable", lambda _: tuple(made))
    monkeypatch.setattr(measuring, "peaks_apart", lambda name, _: made[name])
    monkeypatch.setattr(load, "seconds_of_others", lambda: 3.0)
    monkeypatch.setattr(doctor, "_torchvision", lambda _: Fit("operator nms does not exist", "pip install both"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert main(["doctor"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "not measured: it was killed by SIGILL" in output
    assert "10 30 INT8 is 3.0× as fast as FP32" in output
    assert "! torchvision does not fit this torch (operator nms does not exist)" in output
    assert "Fastest in INT8 here: tflite" in output
    assert "no cache folder can be written" in output


FULL = Diagnosis(
    Environment("3.12.1", "Linux-6.1-aarch64-with-glibc2.36", "aarch64", ARM, 8, {"torch": "2.9.0", "numpy": "2.0"}),
    Capabilities(
        "aarch64",
        "NVIDIA Jetson Orin Nano",
        {"NEON": True, "dotprod": False},
        8,
        1.5,
        8 << 30,
        (Gpu("Orin", 0, "540"),),
    ),
    (
        installed.FormatState("onnx", "ONNX", ("int8",), {"onnx": "1.23.2", "onnxruntime": "1.31.1"}),
        installed.FormatState("tflite", "TFLite", problem="format tflite needs a, b", remedy="pip install 'c'"),
        installed.FormatState(
            "tensorrt", "TensorRT", ("int8",), {"onnx": "1"}, engine=installed.EngineState("x", False, "pip install x")
        ),
    ),
    (Misfit("ultralytics", "8.5.1", "ultralytics>=8.4.190,<8.5"),),
    Fit("operator torchvision::nms does not exist", "pip install " + "long-" * 30),
    Peaks(2, (RuntimePeaks("onnx", {"FP32": 4.04e10, "FP16": 8e10, "INT8": 4.2e10}),), load=7.5),
)


def test_it_fits_80_columns_but_for_commands(capsys: pytest.CaptureFixture[str]) -> None:
    print_diagnosis(FULL, Console(width=80, force_terminal=True, color_system=None))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == [" " * 16 + FULL.torchvision.remedy]  # type: ignore[union-attr]
    text = " ".join(" ".join(lines).split())
    for told in (
        "8 cores (1.5 of them by the container's quota), 8.6 GB of memory",
        "board NVIDIA Jetson Orin Nano",
        "has NEON lacks dotprod",
        "GPU Orin, driver 540",
        "! ultralytics 8.5.1, outside the tested range pip install 'ultralytics>=8.4.190,<8.5'",
        "✗ tflite needs a, b pip install 'c'",
        "! tensorrt onnx 1; writes the file, builds no engine (x is not installed) pip install x",
        "FP32 FP16 INT8",
        "40 80 42",
        "2 of 3 formats can be written here.",
        "Other processes were busy",
    ):
        assert told in text


def test_json_says_what_int8_is_worth() -> None:
    (runtime,) = json.loads(to_json(FULL))["peaks"]["runtimes"]
    assert runtime["peaks"] == {"FP32": 4.04e10, "FP16": 8e10, "INT8": 4.2e10}
    assert runtime["int8_gain"] == pytest.approx(1.0396, abs=1e-4)
    assert "hardly faster than FP32 (1.04×): this CPU has no dotprod, 0.5× as fast as FP16" in runtime["verdict"]


def test_a_real_runtime_is_timed_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(measuring, "measurable", lambda _: ("onnx",))
    monkeypatch.setattr(doctor, "_torchvision", lambda _: Fit())
    (tmp_path / "tmp").mkdir()
    monkeypatch.delenv("QEXPORT_CACHE")
    for name, folder in (("TMPDIR", "tmp"), ("XDG_CACHE_HOME", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    assert main(["doctor", "--json", "--threads", "1"]) == 0
    output, errors = capsys.readouterr()
    found = json.loads(output)
    (runtime,) = found["peaks"]["runtimes"]
    assert errors == ""
    assert {"FP32", "INT8"} <= runtime["peaks"].keys()
    assert (found["peaks"]["threads"], found["torchvision"]) == (1, {"fault": "", "remedy": ""})
    kept = [each for each in (tmp_path / "cache").rglob("*") if each.is_file()]  # none where the machine was busy
    assert kept == ([Path(found["kept"])] if found["kept"] else [])
    assert list((tmp_path / "tmp").iterdir()) == []


def test_cpu_seconds_that_others_have_had(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    columns = [30, 20, 10, 9000, 900, 5, 3, 2, 30, 0]  # idle and waiting for disks is not busy, guests are users
    (tmp_path / "stat").write_text(f"cpu  {' '.join(str(each * ticks) for each in columns)}\ncpu0 1 2 3\n")
    found = seconds_of_others(tmp_path / "stat")
    assert found is not None
    assert found + sum(os.times()[:4]) == pytest.approx(70, abs=0.5)
    (tmp_path / "stat").write_text("cpu 1 2\n")
    assert seconds_of_others(tmp_path / "stat") is None
    assert seconds_of_others(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("threads", "cores", "busy", "crowded"),
    [
        (2, 2, 0.1, False),
        (2, 2, 0.5, True),
        (2, 8, 5.0, False),
        (2, 8, 7.0, True),
        (4, 2, 0.1, False),
        (2, 2, None, False),
    ],
)
def test_threads_that_waited_for_cores(threads: int, cores: int, busy: float | None, crowded: bool) -> None:
    assert Peaks(threads, (), busy).crowded(cores) is crowded
