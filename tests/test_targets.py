"""Devices by name, CPUs for single formats, and the words that people type."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import pytest

from qexport import targets
from qexport.backends.registry import available_formats, find_class
from qexport.errors import UsageError
from qexport.job.options import ExportJob, make_job
from qexport.reporting.warnings import cpu_warnings
from qexport.steps.plan import make_target
from qexport.system import machine as cpu_module
from qexport.system.machine import ANY, ARM, AVX2, KINDS, VNNI, default_threads, kind_for
from qexport.targets import TARGETS
from qexport.vocabulary import CPU_ALIASES, FORMAT_ALIASES, OTHER_FORMATS, PRECISION_ALIASES, PRECISIONS, canonical

DATA: dict[str, Any] = {"model": "m.pt", "data": "d.yaml"}


@pytest.fixture(params=KINDS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """This machine, were it of a kind."""
    kind: str = request.param
    monkeypatch.setattr(cpu_module, "cpu_kind", lambda: kind)
    monkeypatch.setattr(targets, "cpu_kind", lambda: kind)
    return kind


@pytest.mark.parametrize(
    ("name", "formats", "precision", "cpu", "threads"),
    [
        ("raspberrypi5", ("tflite", "onnx"), "int8", ARM, 4),
        ("raspberrypi4", ("tflite", "onnx"), "int8", ARM, 4),
        ("jetson-orin", ("tensorrt",), "int8", ARM, 4),
        ("intel", ("openvino",), "int8", VNNI, 4),
        ("intel-avx2", ("openvino",), "int8", AVX2, 4),
        ("android", ("tflite",), "int8", ARM, 4),
        ("coral", ("edgetpu",), "int8-full", "auto", default_threads()),
        ("mcu", ("tflite",), "int8-full", "auto", default_threads()),
    ],
)
def test_what_a_target_stands_for(
    name: str, formats: tuple[str, ...], precision: str, cpu: str, threads: int, machine: str
) -> None:
    job = make_job({**DATA, "target": name})
    assert (job.format, job.precision, job.cpu, job.threads) == (formats, precision, cpu, threads)
    here = cpu == machine
    assert job.measures_latency is here
    # An engine is of the machine that built it; a Coral's file is compiled anywhere.
    assert job.no_build is (name == "jetson-orin" and not here)


def test_the_table_holds_together() -> None:
    for name, target in TARGETS.items():
        assert set(target.formats) <= set(target.runs) <= set(available_formats()), name
        assert target.cpu in (ANY, *KINDS)
        assert all(target.precision in find_class(each).info.precisions for each in target.formats)
    aliases = [alias for target in TARGETS.values() for alias in target.aliases]
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & set(TARGETS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"target": "raspberrypi5", "format": "openvino"}, {"format": ("openvino",), "precision": "int8", "cpu": ARM}),
        ({"target": "raspberrypi5", "half": True, "format": "onnx"}, {"precision": "fp16", "threads": 4}),
        ({"target": "raspberrypi4", "threads": 1}, {"threads": 1, "format": ("tflite", "onnx")}),
        ({"target": "jetson-orin", "precision": "fp16"}, {"precision": "fp16", "format": ("tensorrt",)}),
        ({"target": "jetson-orin", "no_build": False}, {"no_build": False}),
        ({"target": "android", "precision": "w8a16"}, {"precision": "w8a16", "format": ("tflite",)}),
        ({"target": "mcu", "int8": True}, {"precision": "int8-full", "format": ("tflite",)}),
        ({"target": "raspberrypi5", "cpu": "onnx=arm64"}, {"cpu": "arm,onnx=arm"}),
        ({"target": "raspberrypi5", "model": "m.onnx"}, {"format": ("onnx",), "cpu": ARM}),
        ({"target": "android", "model": "m.onnx"}, {"format": ("onnx",), "cpu": ARM}),
        ({"target": "Raspberry Pi 5"}, {"target": "raspberrypi5"}),
        ({"target": "jetson_orin"}, {"target": "jetson-orin"}),
        ({"target": "TFLM"}, {"target": "mcu"}),
    ],
)
def test_what_is_given_wins(given: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "cpu_kind", lambda: VNNI)
    job = make_job({**DATA, **given})
    assert {name: getattr(job, name) for name in expected} == expected


def test_a_config_counts_as_given(tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("target: raspberrypi5\nthreads: 3\ncpu: {onnx: arm}\n")
    job = make_job({**DATA, "format": "onnx"}, config)
    assert (job.format, job.threads, job.cpu, job.precision) == (("onnx",), 3, "arm,onnx=arm", "int8")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"target": "raspberrypi5", "cpu": "vnni"},
            "--cpu vnni and --target raspberrypi5 exclude each other: its CPU is arm: leave out one of them",
        ),
        (
            {"target": "raspberrypi5", "cpu": "onnx=avx2"},
            "--cpu onnx=avx2 and --target raspberrypi5 exclude each other: its CPU is arm: leave out one of them",
        ),
        (
            {"target": "intel", "cpu": "arm"},
            "--cpu arm and --target intel exclude each other: its CPU is vnni: leave out one of them",
        ),
        (
            {"target": "raspberrypi4", "format": "tensorrt"},
            "--target raspberrypi4 is for TFLite, ONNX and OpenVINO files only: "
            "give --format tflite,onnx,openvino, or leave it out",
        ),
        (
            {"target": "coral", "format": "onnx"},
            "--target coral is for Edge TPU files only: give --format edgetpu, or leave it out",
        ),
        ({"target": "coral", "half": True}, "--target coral is for integer-only files: give --precision int8-full"),
        ({"target": "android", "io": "uint8"}, "--io uint8 is for integer-only files: give --precision int8-full"),
        (
            {"target": "jetson-orin", "data": None, "no_eval": True},
            "--target jetson-orin, which is int8, needs images to calibrate with and to verify on: "
            "add --data DATA.yaml, for example: qexport m.pt --target jetson-orin --data DATA.yaml",
        ),
        (
            {"target": "raspberrypi5", "max_latency_ms": 5},
            "--max-latency-ms and --target raspberrypi5 exclude each other: leave out one of them",
        ),
        (
            {"int8": True, "cpu": "openvino=arm"},
            "--cpu is for openvino, which is not written: the formats are tflite: see --format",
        ),
        (
            {"int8": True, "format": "onnx", "cpu": "onnx=sparc"},
            "--cpu onnx=sparc is out of range: give auto, vnni, avx2 or arm",
        ),
        (
            {"int8": True, "cpu": "avx512"},
            "--cpu avx512 is out of range: give auto, vnni, avx2 or arm; did you mean avx2",
        ),
    ],
)
def test_contradictions_are_refused_in_one_line(
    given: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "cpu_kind", lambda: VNNI)
    with pytest.raises(UsageError) as caught:
        make_job({**DATA, **given})
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("raspbery5", "raspberrypi5"), ("jetson-nano", "jetson-orin"), ("intl", "intel"), ("microcontroler", "mcu")],
)
def test_an_unknown_target_gets_a_suggestion(typed: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"^--target {typed} is out of range: give .*mcu; did you mean {meant}$"):
        make_job({**DATA, "target": typed})


@pytest.mark.parametrize(
    ("choice", "kinds"),
    [
        ("auto", {"onnx": VNNI, "openvino": VNNI}),
        ("arm", {"onnx": ARM, "openvino": ARM}),
        ("onnx=arm,openvino=avx2", {"onnx": ARM, "openvino": AVX2, "tflite": VNNI}),
        ("avx2,onnx=arm", {"onnx": ARM, "openvino": AVX2, "tflite": AVX2}),
        ("onnx=auto,arm", {"onnx": VNNI, "openvino": ARM}),
    ],
)
def test_each_format_has_its_cpu(choice: str, kinds: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_module, "cpu_kind", lambda: VNNI)
    assert {name: kind_for(choice, name) for name in kinds} == kinds


def test_one_run_plans_for_two_kinds_of_cpu() -> None:
    """ONNX for a machine with 16-bit sums of pairs, OpenVINO for one without."""
    job = make_job({**DATA, "int8": True, "format": "onnx,openvino", "cpu": "onnx=avx2,openvino=vnni"})
    found = {name: make_target(name, job.precision, job.cpu) for name in job.format}
    assert {
        name: (each.cpu, each.profile and each.profile.saturating_pair_accumulation) for name, each in found.items()
    } == {
        "onnx": (AVX2, True),
        "openvino": (VNNI, False),
    }


@pytest.mark.parametrize(
    ("planned", "here", "warned"),
    [
        ("arm", "vnni", True),
        ("avx2", "arm", True),
        ("vnni", "vnni", False),
        ("any", "arm", False),
        (None, "arm", False),
    ],
)
def test_latency_of_another_kind_of_cpu_carries_a_warning(planned: str | None, here: str, warned: bool) -> None:
    found = cpu_warnings({"cpu": planned} if planned else None, here)
    assert bool(found) is warned
    assert all(each.about == "latency" for each in found)
    assert all(planned and planned in each.text and here in each.text for each in found)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        *((word, "tensorrt") for word in ("engine", "trt", "TensorRT", ".engine", "tensor-rt")),
        *((word, "tflite") for word in ("litert", "LiteRT", "tf-lite", "TF Lite", "tensorflow lite", ".tflite")),
        *((word, "openvino") for word in ("ov", "OpenVINO")),
        *((word, "onnx") for word in ("ort", "onnxruntime", "ONNX Runtime", ".onnx")),
        *((word, "edgetpu") for word in ("edge-tpu", "edge_tpu", "Edge TPU", "coral")),
    ],
)
def test_formats_by_the_names_that_people_type(typed: str, name: str) -> None:
    assert make_job({**DATA, "format": typed, "no_eval": True}).format == (name,)


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_formats_of_ultralytics_that_are_not_written_here_are_known(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^format {name} has no backend in qexport: choose from .*tflite$"):
        make_job({**DATA, "format": name})


def test_every_format_of_ultralytics_is_known() -> None:
    from ultralytics.engine.exporter import export_formats

    names = [name for name in export_formats()["Argument"] if name != "-"]
    known = {canonical(name, FORMAT_ALIASES) for name in names} - set(FORMAT_ALIASES)
    assert {name.replace("_", "-") for name in known} <= set(OTHER_FORMATS)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        *((word, "int8-full") for word in ("int8_full", "full_integer", "INT8-FULL", "int8full")),
        *((word, "fp16") for word in ("float16", "half", "FP16", 16)),
        *((word, "fp32") for word in ("float32", "float", 32)),
        *((word, "int8-dynamic") for word in ("dynamic", "w8", "int8_dynamic", "weights only")),
        *((word, "w8a16") for word in ("int16x8", "16x8", "W8A16")),
    ],
)
def test_precisions_by_the_names_that_people_type(typed: object, name: str) -> None:
    assert make_job({**DATA, "precision": typed}).precision == name


@pytest.mark.parametrize(
    ("names", "aliases"),
    [(available_formats(), FORMAT_ALIASES), (PRECISIONS, PRECISION_ALIASES)],
    ids=["format", "precision"],
)
def test_no_alias_means_two_things(names: tuple[str, ...], aliases: dict[str, tuple[str, ...]]) -> None:
    assert set(aliases) == set(names)
    every = [*names, *(alias for others in aliases.values() for alias in others)]
    assert len(set(every)) == len(every)
    assert all(canonical(name, aliases) == name for name in names)


def test_a_name_that_is_registered_goes_before_an_alias() -> None:
    assert canonical("engine", FORMAT_ALIASES, ("engine", "tflite")) == "engine"
    assert canonical("arm64", CPU_ALIASES) == ARM


@pytest.mark.parametrize("seed", ["tflit", "opnvino", "tensorr", "onx", "edgetp", "litrt"])
def test_an_unknown_format_gets_a_suggestion(seed: str) -> None:
    every = [*FORMAT_ALIASES, *(alias for others in FORMAT_ALIASES.values() for alias in others)]
    meant = canonical(difflib.get_close_matches(seed, every, 1)[0], FORMAT_ALIASES)
    with pytest.raises(UsageError, match=rf"^unknown format {seed}: choose from .*; did you mean {meant}$"):
        make_job({**DATA, "format": seed})


def test_a_job_that_names_no_target_is_as_it_was() -> None:
    assert ExportJob("m.pt").measures_latency
    assert make_job({**DATA, "device": "CPU"}).device == "cpu"
