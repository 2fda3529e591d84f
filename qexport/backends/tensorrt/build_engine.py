"""Build a TensorRT engine from a graph that qexport wrote. Needs TensorRT 10 or 11, and nothing else.

    python build_engine.py yolo26n_int8_tensorrt.onnx

The graph holds every precision (INT8 Q/DQ pairs, FP16): the network is strongly typed and needs no calibration.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30


class BuildError(Exception):
    """TensorRT refused the graph or did not build it."""


@dataclass(frozen=True)
class Options:
    """How to build.

    Attributes:
        workspace: GiB that kernels may use while they are chosen; None for TensorRT's own choice.
        timing_cache: file with kernel timings of earlier builds, read and written.
        most_images: largest batch of a graph whose batch is open; the smallest is 1.
        likely_images: the batch that such an engine is tuned for.
        dla: DLA core of a Jetson (TensorRT 10 only).
    """

    workspace: float | None = None
    timing_cache: Path | None = None
    most_images: int = 16
    likely_images: int = 1
    dla: int | None = None


def build(trt: Any, graph: Path, engine: Path, metadata: Mapping[str, Any], options: Options) -> None:
    """Build `engine` from `graph` with the module `tensorrt`.

    Args:
        metadata: written in front of the engine as Ultralytics does: four bytes of length, then JSON.

    Raises:
        BuildError: in one line.
    """
    major = int(trt.__version__.split(".")[0])
    if major < 10:
        raise BuildError(f"TensorRT {trt.__version__} is too old: 10 or 11 is needed")
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, options))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph.read_bytes()):
        reasons = "; ".join(" ".join(parser.get_error(index).desc().split()) for index in range(parser.num_errors))
        raise BuildError(f"the ONNX parser refused {graph.name} ({reasons})")
    config = builder.create_builder_config()
    _configure(trt, builder, network, config, options, major)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        raise BuildError("no engine came out; TensorRT's own messages are above")
    header = json.dumps(dict(metadata)).encode()
    temporary = engine.with_name(f".{engine.name}.part")
    temporary.write_bytes(len(header).to_bytes(4, "little") + header + bytes(serialised))
    temporary.replace(engine)
    _keep_timings(config, options)


def _network_flags(trt: Any, options: Options) -> int:
    """Strongly typed; TensorRT 11 knows nothing else. DLA wants the weakly typed networks of TensorRT 10."""
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if typed is None or options.dla is not None else 1 << int(typed)


def _configure(trt: Any, builder: Any, network: Any, config: Any, options: Options, major: int) -> None:
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * GIB))
    if options.timing_cache is not None:
        known = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    if options.dla is not None:
        _use_dla(trt, config, options.dla, major)
    images = network.get_input(0)
    shape = tuple(images.shape)
    if shape[0] == -1:
        profile = builder.create_optimization_profile()
        sizes = [(count, *shape[1:]) for count in (1, options.likely_images, options.most_images)]
        profile.set_shape(images.name, *sizes)
        config.add_optimization_profile(profile)


def _use_dla(trt: Any, config: Any, core: int, major: int) -> None:
    if major >= 11:
        raise BuildError("TensorRT 11 has no DLA: use 10.x")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    for flag in ("GPU_FALLBACK", "FP16", "INT8"):
        config.set_flag(getattr(trt.BuilderFlag, flag))


def _keep_timings(config: Any, options: Options) -> None:
    if options.timing_cache is None:
        return
    try:
        options.timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    except OSError as error:
        raise BuildError(f"the engine is built, but {options.timing_cache} cannot be written ({error})") from error


def read_metadata(graph: Path) -> dict[str, Any]:
    """Metadata of an ONNX file, read without the package `onnx`: field 14 of the model, pairs of texts."""
    found: dict[str, Any] = {}
    try:
        for number, content in _fields(graph.read_bytes()):
            if number == 14:
                pair = {key: value.decode() for key, value in _fields(content)}
                found[pair[1]] = _value(pair.get(2, ""))
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise BuildError(f"{graph} is not an ONNX file") from error
    return found


def _value(text: str) -> Any:
    """What a text stands for where JSON has a word for that, else the text."""
    try:
        found = ast.literal_eval(text)
        json.dumps(found)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
    return found


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message, as (number, content)."""
    found, at = [], 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(message, at)
            found.append((key >> 3, message[at : at + length]))
            at += length
        elif kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise BuildError("this is not an ONNX file")
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path, help="…_tensorrt.onnx")
    parser.add_argument("-o", "--output", type=Path, help="default: the graph's name with .engine")
    parser.add_argument("--workspace", type=float, help="GiB")
    parser.add_argument("--timing-cache", type=Path, help="file to keep kernel timings in")
    parser.add_argument("--most-images", type=int, default=16, help="largest batch, for graphs with an open batch")
    parser.add_argument("--likely-images", type=int, default=1, help="batch to tune for")
    parser.add_argument("--dla", type=int, help="DLA core (Jetson, TensorRT 10)")
    given = parser.parse_args(arguments)
    output = given.output or given.graph.with_name(given.graph.name.replace("_tensorrt.onnx", "") + ".engine")
    options = Options(given.workspace, given.timing_cache, given.most_images, given.likely_images, given.dla)
    try:
        import tensorrt
    except ImportError:
        print("build_engine: TensorRT is not installed: pip install tensorrt", file=sys.stderr)
        return 8
    try:
        build(tensorrt, given.graph, output, read_metadata(given.graph), options)
    except (BuildError, OSError) as error:
        print(f"build_engine: {error}", file=sys.stderr)
        return 8
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
