"""A stand-in for the package `tensorrt`, 10 or 11, that writes down how it is used. Its "engine" is that record.

Tests load it in their own process, or copy it as `tensorrt.py` to where a script finds it. Needs the standard library.
"""

from __future__ import annotations

import importlib.util
import json
import os
from types import SimpleNamespace
from typing import Any

__version__ = os.environ.get("FAKE_TENSORRT", "10.9.0")
OLD = int(__version__.split(".")[0]) < 11
SHAPE = (1, 3, 96, 96)
REFUSED: tuple[str, ...] = ()
"""Errors of the parser."""
BUILDS = True
ELSEWHERE = ("numpy", "onnx", "onnx_ir", "onnxruntime", "qexport", "torch", "ultralytics")

record: dict[str, Any] = {"installed": [name for name in ELSEWHERE if importlib.util.find_spec(name)]}

NetworkDefinitionCreationFlag = SimpleNamespace(**({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1} if OLD else {}))
BuilderFlag = SimpleNamespace(TF32=7, **({"FP16": 0, "INT8": 1, "GPU_FALLBACK": 2} if OLD else {}))
DeviceType = SimpleNamespace(GPU="gpu", **({"DLA": "dla"} if OLD else {}))
MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")


class Logger:
    ERROR, WARNING = 1, 2

    def __init__(self, severity: int) -> None:
        self.severity = severity


class Builder:
    def __init__(self, logger: Logger) -> None:
        record["severity"] = logger.severity

    def create_network(self, flags: int = 0) -> Network:
        record["network_flags"] = flags
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        assert network.content is not None, "nothing was parsed"
        record["graph"] = len(network.content)
        record["device"] = [config.default_device_type, config.DLA_core]
        return json.dumps(record).encode() if BUILDS else None


class Network:
    def __init__(self) -> None:
        self.content: bytes | None = None

    def get_input(self, index: int) -> SimpleNamespace:
        assert index == 0
        return SimpleNamespace(name="images", shape=list(SHAPE))


class OnnxParser:
    def __init__(self, network: Network, logger: Logger) -> None:
        self.network = network
        self.num_errors = len(REFUSED)

    def parse(self, content: bytes) -> bool:
        self.network.content = content
        return not REFUSED

    def get_error(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(desc=lambda: REFUSED[index])


class Config:
    def __init__(self) -> None:
        self.default_device_type: str = DeviceType.GPU
        self.DLA_core = -1
        self.cache = b""

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        record[pool] = size

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        record["timing_cache"] = [cache.decode(), ignore_mismatch]
        self.cache = cache
        return True

    def get_timing_cache(self) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: self.cache + b"timed;")

    def set_flag(self, flag: int) -> None:
        record.setdefault("flags", []).append(flag)

    def add_optimization_profile(self, profile: Profile) -> int:
        record.setdefault("profiles", []).append(profile.shapes)
        return 0


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    # TensorRT's own argument names.
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = [min, opt, max]
