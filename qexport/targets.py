"""Devices by name: formats, precision and CPU of each, and whether a timing on this machine says anything about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qexport.system.machine import ANY, ARM, AVX2, VNNI, cpu_kind

INTEGERS_ONLY = "int8-full"


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
        device: in words.
        formats: written unless others are given.
        runs: all that run there.
        cpu: the kind that integer types are chosen for; "any" where the format does not ask.
        precision: unless another is given; "int8-full" where it computes with nothing else.
        threads: CPU threads unless told otherwise; None where artifacts do not run on its CPU.
        remote: it is never the machine that exports, so that nothing is timed here for it.
        aliases: other names.
        check: what checks files for it, see `qexport.backends.registry.device_check`, as "module:function"; "" where
            the format's backend does, or where files run there as they do here.
    """

    device: str
    formats: tuple[str, ...]
    runs: tuple[str, ...]
    cpu: str
    precision: str = "int8"
    threads: int | None = 4
    remote: bool = False
    aliases: tuple[str, ...] = ()
    check: str = ""

    @property
    def integers_only(self) -> bool:
        """Whether it computes with integers and nothing else."""
        return self.precision == INTEGERS_ONLY

    @property
    def here(self) -> bool:
        """Whether this machine may be one, so that its engine can be built and its latency measured here."""
        return not self.remote and self.cpu == cpu_kind()


TARGETS = {
    "raspberrypi5": Device(
        "Raspberry Pi 5 (four Cortex-A76)",
        ("tflite", "onnx"),
        ("tflite", "onnx", "openvino"),
        ARM,
        aliases=("rpi5", "pi5", "raspberry-pi-5", "raspberrypi", "rpi", "raspberry-pi"),
    ),
    "raspberrypi4": Device(
        "Raspberry Pi 4 (four Cortex-A72)",
        ("tflite", "onnx"),
        ("tflite", "onnx", "openvino"),
        ARM,
        aliases=("rpi4", "pi4", "raspberry-pi-4"),
    ),
    "jetson-orin": Device(
        "NVIDIA Jetson Orin (TensorRT 10)",
        ("tensorrt",),
        ("tensorrt", "onnx", "tflite"),
        ARM,
        aliases=("jetson", "orin", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "orin-nano"),
    ),
    "intel": Device(
        "Intel CPU with VNNI (Core from the 11th, Xeon from Cascade Lake on)",
        ("openvino",),
        ("openvino", "onnx", "tflite"),
        VNNI,
        aliases=("intel-vnni", "xeon"),
    ),
    "intel-avx2": Device(
        "Intel CPU with AVX2 alone",
        ("openvino",),
        ("openvino", "onnx", "tflite"),
        AVX2,
    ),
    "android": Device(
        "Android telephone, CPU",
        ("tflite",),
        ("tflite", "onnx"),
        ARM,
    ),
    "coral": Device(
        "Coral Edge TPU",
        ("edgetpu",),
        ("edgetpu",),
        ANY,
        INTEGERS_ONLY,
        threads=None,
        remote=True,
        aliases=("edgetpu", "edge-tpu"),
    ),
    "mcu": Device(
        "microcontroller with TFLite Micro",
        ("tflite",),
        ("tflite",),
        ANY,
        INTEGERS_ONLY,
        threads=None,
        remote=True,
        aliases=("microcontroller", "tflm", "tflite-micro"),
        check="qexport.backends.tflite_micro.backend:fit_microcontroller",
    ),
}
ALIASES = {name: target.aliases for name, target in TARGETS.items()}


def preset(name: str, able: Sequence[str] | None = None) -> dict[str, Any]:
    """Options that a target stands for, by field name, for those that are not given.

    Args:
        able: formats that the model can become, where it cannot become all of them.
    """
    target = TARGETS[name]
    formats = target.formats
    if able is not None:
        formats = next((found for each in (formats, target.runs) if (found := _among(each, able))), formats)
    cpu = "auto" if target.cpu == ANY else target.cpu
    options: dict[str, Any] = {"format": formats, "precision": target.precision, "cpu": cpu}
    if target.threads is not None:
        options["threads"] = target.threads
    if "tensorrt" in formats and not target.here:
        options["no_build"] = True  # an engine is of the machine that built it
    return options


def _among(formats: Sequence[str], able: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in formats if name in able)
